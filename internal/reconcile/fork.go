package reconcile

import (
	"context"
	"errors"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/failpoint"
)

// errNoBranches is why a caller that stores none has none.
var errNoBranches = errors.New("this command stores no branches")

// fork stores DIR as a branch, once, before anything else is done with either side:
// whoever is the writer meanwhile is not fenced for it. With NoLocalBackup nothing
// goes on without it. Else it is the second copy, beside the one in backups, and a
// store that does not take it keeps no mount from serving.
func (r *runner) fork(ctx context.Context, d Decision, local Local) error {
	if r.forked {
		return nil
	}
	if !local.Published { // nothing was compared with what the journal knows
		if err := r.mark("."); err != nil {
			return err
		}
	}
	err := errNoBranches
	if r.Branch != nil {
		r.branch, err = r.Branch(ctx)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && r.Flags.NoLocalBackup:
		d.Action = Refuse
		refusal := r.refusal(d, local)
		refusal.NoBranch = err
		return refusal
	case err != nil:
		r.Log.Error("the local copy could not be stored as a branch; it is kept in backups alone", "error", err, "hint", exitcode.Hint(err))
	case r.branch != "":
		r.Log.Warn("the local copy had changes that no snapshot has: it is stored as a branch", "id", r.branch,
			"to_restore", "chromafs restore --at "+string(r.branch)+" DIR")
	}
	r.forked, r.saved = true, err == nil
	return failpoint.Hit("reconcile/forked")
}
