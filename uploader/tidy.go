package uploader

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/objstore"
)

// tidy does steps 8 and 9 for every id that the journal holds as pending. prev is
// what current follows now; nil where that is not known. It returns what could not
// be done, for people: the snapshot is safe, and the next one tries again.
func (u *Uploader) tidy(ctx context.Context, prev *history.Manifest) (untidy string) {
	if u.etag == history.Superseded {
		return "another writer has taken the store over since"
	}
	listed, unlisted, branches := u.pending()
	err := u.follow(ctx, prev, listed, unlisted)
	if err == nil {
		err = u.collect(ctx, unlisted, branches)
	}
	if err == nil {
		return ""
	}
	u.o.Log.Warn("the snapshots are safe, but not everything could be tidied up; the next snapshot tries again", "error", err)
	return err.Error()
}

// pending splits the pending ids: those that the head lists, those that it does not,
// and branches, which it never does.
func (u *Uploader) pending() (listed, unlisted, branches []history.ID) {
	for _, id := range u.o.Queue.State().Pending {
		switch id := history.ID(id); {
		case id.IsBranch():
			branches = append(branches, id)
		case u.head.Lists(id):
			listed = append(listed, id)
		default:
			unlisted = append(unlisted, id)
		}
	}
	return listed, unlisted, branches
}

// follow makes current follow the newest snapshot (step 8).
func (u *Uploader) follow(ctx context.Context, prev *history.Manifest, listed, unlisted []history.ID) error {
	if len(listed) == 0 {
		return nil
	}
	next, err := u.newestManifest(ctx)
	if err != nil {
		return err
	}
	if len(listed) == 1 && listed[0] == next.ID && (prev != nil || len(u.head.History) == 1 && next.Sequence == 1) {
		err = u.o.Catalog.RefreshCurrent(ctx, u.head, prev, next)
	} else {
		err = u.repairCurrent(ctx, next, listed, unlisted)
	}
	if err := u.step("current", u.overtaken(err)); err != nil {
		return fmt.Errorf("refresh current: %w", err)
	}
	for _, id := range listed {
		if err := u.o.Queue.DropPending(string(id)); err != nil {
			return err
		}
	}
	u.KnowCurrent(next.ID)
	return nil
}

// repairCurrent makes current follow next where earlier attempts did not come that
// far: what it holds is looked at, and what any snapshot that it may have followed
// named is deleted unless next names it.
func (u *Uploader) repairCurrent(ctx context.Context, next *history.Manifest, listed, unlisted []history.ID) error {
	maybe := slices.Concat(listed, unlisted)
	for _, id := range listed {
		if i := slices.Index(u.head.History, id); i > 0 {
			maybe = append(maybe, u.head.History[i-1])
		}
	}
	slices.Sort(maybe)
	past := &history.Manifest{}
	for _, id := range slices.Compact(maybe) {
		if id == next.ID {
			continue
		}
		m, err := u.o.Catalog.Manifest(ctx, id, "")
		switch {
		case err == nil:
			past.Entries = append(past.Entries, m.Entries...)
		case errors.Is(err, history.ErrIntegrity):
			u.o.Log.Warn("what only this snapshot held may stay in current", "id", id, "error", err)
		case !errors.Is(err, history.ErrGone) && !errors.Is(err, objstore.ErrNotFound):
			return err
		}
	}
	copied, err := u.o.Catalog.RepairCurrent(ctx, u.head, past, next)
	if copied > 0 && err == nil {
		u.o.Log.Info("the files beside manifest.json follow the newest snapshot again", "id", next.ID, "copied", copied)
	}
	return err
}

// collect deletes what no list names (step 9), but no complete branch.
func (u *Uploader) collect(ctx context.Context, unlisted, branches []history.ID) error {
	for _, id := range unlisted {
		if err := u.removePending(ctx, id); err != nil {
			return err
		}
	}
	for _, id := range branches {
		if _, err := u.settle(ctx, id, false); err != nil {
			return err
		}
	}
	return nil
}

// countGone returns how many of the ids are no longer pending.
func (u *Uploader) countGone(ids []history.ID) int {
	pending := u.o.Queue.State().Pending
	n := 0
	for _, id := range ids {
		if !slices.Contains(pending, string(id)) {
			n++
		}
	}
	return n
}
