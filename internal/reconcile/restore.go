package reconcile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/atomicfile"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/tree"
)

// RestoreAt brings a snapshot back on request: at, or the newest where that is "". A
// branch counts as an older one.
// The local copy is kept in backups; with NoLocalBackup it must be in the store
// already. After the restore of an older snapshot DIR is dirty, based on the
// newest: the next mount keeps it, and the next snapshot publishes it. Where a snapshot
// is damaged the error names an older one that looks whole.
func RestoreAt(ctx context.Context, e Env, at history.ID) (Result, error) {
	r := &runner{Env: e}
	res, err := r.runRestore(ctx, at)
	return res, e.Catalog.OfferOlder(ctx, err)
}

func (r *runner) runRestore(ctx context.Context, at history.ID) (Result, error) {
	if err := r.begin(ctx); err != nil {
		return Result{}, err
	}
	for {
		d, local, err := r.decideRestore(ctx, at)
		if err != nil {
			return Result{Decision: d}, err
		}
		restored, err := r.restoreAt(ctx, at, r.storeHas(local))
		if at == "" && errors.Is(err, history.ErrGone) {
			if err := r.newestMoved(ctx, err); err != nil {
				return Result{}, err
			}
			continue
		}
		if err != nil {
			return Result{}, err
		}
		return r.result(d, restored), nil
	}
}

// decideRestore reads the table as far as it speaks for a restore that was asked
// for: a store that does not answer, or has lost its head, refuses; what was
// interrupted is finished; a local copy that the store does not have is not
// replaced without a backup (R3).
func (r *runner) decideRestore(ctx context.Context, at history.ID) (Decision, Local, error) {
	r.Flags.Offline, r.Flags.PreferLocal = false, false
	d, local, err := r.decide(ctx)
	if err != nil {
		return d, local, err
	}
	switch d.Row {
	case RowUnavailable, RowRefused, RowHeadLost, RowUnpublished:
		return d, local, r.refusal(d, local)
	}
	if r.store.Kind == NoBackup && !at.IsBranch() {
		return d, local, exitcode.New(exitcode.Failed, fmt.Errorf("%w: %s", ErrNothing, r.Catalog.Store()),
			"check the address in --store; nothing was touched")
	}
	if r.Flags.NoLocalBackup && !r.storeHas(local) {
		d.Action = Refuse
		return d, local, r.refusal(d, local)
	}
	d.Action = Restore
	return d, local, nil
}

// storeHas reports whether nothing is lost with the local copy.
func (r *runner) storeHas(l Local) bool {
	if l.Empty || l.Content == Equal {
		return true
	}
	// The same sequence with another id is a branch that was left behind (history adopt).
	listed := l.Sequence < r.store.Sequence || l.BaseID == r.store.Newest
	return l.Published && !l.Dirty && l.Lineage == r.store.Lineage && listed
}

// restoreAt brings one snapshot.
func (r *runner) restoreAt(ctx context.Context, at history.ID, clean bool) (*history.RestoreResult, error) {
	sum := ""
	newest := r.head.Newest // nil: nothing was published yet, and at is a branch
	older := at != "" && (newest == nil || at != newest.ID)
	if !older {
		at, sum = newest.ID, newest.ManifestSHA256
	}
	m, err := r.Catalog.Manifest(ctx, at, sum)
	if err != nil {
		return nil, err
	}
	if older {
		if err := r.setGoal(at); err != nil {
			return nil, err
		}
	}
	res, err := r.restore(ctx, m, sum, clean)
	if err != nil {
		return nil, err
	}
	if older {
		err = r.rebaseOnNewest(ctx, m, res.Entries)
	} else {
		err = r.rebase(m, res.Entries)
	}
	if err != nil {
		return nil, err
	}
	return &res, r.endRestore()
}

// goalName names the file in .chromafs that holds the id of an older snapshot while
// it is being restored on request. It tells such a restore, once interrupted, from
// one whose snapshot is no longer the newest: DIR keeps the older one only if that
// was asked for.
const goalName = "restore-at"

func (r *runner) setGoal(id history.ID) error {
	if err := atomicfile.Write(r.Dir.State(), goalName, []byte(id), 0o600); err != nil {
		return fmt.Errorf("note what is being restored: %w", err)
	}
	return failpoint.Hit("reconcile/goal")
}

// goal returns the id of the older snapshot that an interrupted restore was asked
// for, "" for none.
func (r *runner) goal() (history.ID, error) {
	f, err := tree.OpenBeneath(r.Dir.State(), goalName, unix.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", goalName, err)
	}
	id, err := history.ParseID(strings.TrimSpace(string(data)))
	if err != nil {
		r.Log.Warn("what an interrupted restore was asked for cannot be read; it counts as the newest", "error", err)
		return "", nil
	}
	return id, nil
}

func (r *runner) dropGoal() error {
	err := unix.Unlinkat(int(r.Dir.State().Fd()), goalName, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "remove", Path: goalName, Err: err}
	}
	return nil
}
