package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/tree"
	"github.com/chromafs/chromafs/journal"
)

// carryOut does what a final decision asks for.
func (r *runner) carryOut(ctx context.Context, d Decision) (*history.RestoreResult, error) {
	switch d.Action {
	case Nothing, Keep:
		return nil, nil
	case StartEmpty:
		return nil, r.startEmpty()
	case ServeOffline:
		if r.Journal.State().Published {
			return nil, nil
		}
		return nil, r.mark(".")
	case KeepAll:
		return nil, r.mark(".")
	case Adopt, KeepOver:
		return nil, r.keepOver()
	case Restore, Update, Replace, Fork:
		return r.restoreNewest(ctx, d)
	}
	return nil, fmt.Errorf("nothing is known of the action %q", d.Action)
}

// startEmpty forgets what the journal knew of a DIR and a store that are both gone.
func (r *runner) startEmpty() error {
	if len(r.aside) > 0 {
		r.Log.Warn("nothing was published yet, so this starts empty; but the store holds branches of writers that were left behind",
			"branches", r.aside, "to_restore", "chromafs restore --at ID DIR")
	}
	if !r.Journal.State().Published {
		return nil
	}
	if err := r.Journal.Forget(); err != nil {
		return err
	}
	if r.head.Lineage == "" {
		return nil // not taken over
	}
	return r.Journal.SetEpoch(r.head.Lineage, r.head.Epoch)
}

func (r *runner) mark(paths ...string) error { return r.Journal.Mark(r.Journal.State().Cut, paths...) }

// restoreNewest brings the newest snapshot.
func (r *runner) restoreNewest(ctx context.Context, d Decision) (*history.RestoreResult, error) {
	m, err := r.newest(ctx)
	if err != nil {
		return nil, err
	}
	clean := d.Action != Replace
	if d.Action == Fork { // what a branch holds is kept in backups too, where they are made
		clean = r.saved && r.Flags.NoLocalBackup
	}
	res, err := r.restore(ctx, m, r.head.Newest.ManifestSHA256, clean)
	if err != nil {
		return nil, err
	}
	if err := r.rebase(m, res.Entries); err != nil {
		return nil, err
	}
	return &res, r.endRestore()
}

func (r *runner) newest(ctx context.Context) (*history.Manifest, error) {
	return r.Catalog.Manifest(ctx, r.head.Newest.ID, r.head.Newest.ManifestSHA256)
}

// restore puts a snapshot in the place of what is there. clean says that the store
// has the local copy, or that there is none.
func (r *runner) restore(ctx context.Context, m *history.Manifest, sum string, clean bool) (history.RestoreResult, error) {
	res, err := history.Restore(ctx, r.Catalog, history.RestoreOptions{
		Dir: r.Dir, Manifest: m, ManifestSHA256: sum, KeepLocal: !clean || !r.Flags.NoLocalBackup, Backups: r.Backups,
		LocalClean: clean, Now: r.Now, Log: r.Log})
	if err != nil {
		return res, err
	}
	return res, failpoint.Hit("reconcile/restored")
}

// endRestore removes the restore's intent once the journal knows of it.
func (r *runner) endRestore() error {
	if err := failpoint.Hit("reconcile/rebased"); err != nil {
		return err
	}
	if err := history.FinishRestore(r.Dir); err != nil {
		return err
	}
	r.scanned, r.content = false, nil
	return r.dropGoal()
}

// rebase makes m, which is what DIR holds, the journal's base.
func (r *runner) rebase(m *history.Manifest, entries []tree.Entry) error {
	return r.Journal.Rebase(r.published(m, withStats(m.Entries, entries)))
}

func (r *runner) published(m *history.Manifest, records []tree.Record) journal.Published {
	return journal.Published{Lineage: m.Lineage, Sequence: m.Sequence, Epoch: max(m.Epoch, r.head.Epoch), ID: string(m.ID),
		Cut: r.Journal.State().Cut, Records: records}
}

// withStats gives records the stats that their paths have on disk. Kind and mode
// stay the snapshot's, and so does the size: a record is what the store holds.
func withStats(records []tree.Record, entries []tree.Entry) []tree.Record {
	byPath := make(map[string]tree.Entry, len(entries))
	for _, e := range entries {
		byPath[e.Path] = e
	}
	out := slices.Clone(records)
	for i := range out {
		e, ok := byPath[out[i].Path]
		if !ok || e.Type != out[i].Type {
			continue
		}
		mode, size, target := out[i].Mode, out[i].Size, out[i].Target
		out[i].Entry = e
		out[i].Mode, out[i].Target = mode, target
		if e.Type == tree.File {
			out[i].Size = size
		}
	}
	return out
}

// finishRestore rolls an interrupted restore forward. What it was to become is
// kept beside it, so the store is asked only where DIR is changed in place.
func (r *runner) finishRestore(ctx context.Context) error {
	p, err := history.Unfinished(r.Dir)
	if err != nil {
		return err
	}
	r.Log.Warn("a restore was interrupted: finishing it first", "id", p.ID, "stage", p.Stage)
	m, err := p.Manifest(r.Dir)
	if err != nil {
		return err
	}
	// Its old copy was set aside, or is being overwritten, already.
	res, err := r.restore(ctx, m, p.ManifestSHA256, true)
	if errors.Is(err, history.ErrGone) && r.head.Newest != nil {
		r.Log.Info("its snapshot was rotated away: starting again from the newest", "id", p.ID, "newest", r.head.Newest.ID)
		if m, err = r.newest(ctx); err != nil {
			return err
		}
		res, err = r.restore(ctx, m, r.head.Newest.ManifestSHA256, true)
	}
	if err != nil {
		return err
	}
	goal, err := r.goal()
	if err != nil {
		return err
	}
	if goal == m.ID && (goal.IsBranch() || r.head.Newest != nil && r.head.Newest.ID != goal) {
		err = r.rebaseOnNewest(ctx, m, res.Entries)
	} else {
		err = r.rebase(m, res.Entries)
	}
	if err != nil {
		return err
	}
	return r.endRestore()
}

// rebaseOnNewest makes the newest snapshot the base of a DIR that holds another
// one, m: all in which they differ is dirty, so the next mount keeps DIR and the
// next snapshot publishes it. Where nothing was published yet (m is a branch) there is
// no base, and all is dirty.
func (r *runner) rebaseOnNewest(ctx context.Context, m *history.Manifest, entries []tree.Entry) error {
	if r.head.Newest == nil {
		if err := r.Journal.Forget(); err != nil {
			return err
		}
		return r.mark(".")
	}
	newest, err := r.newest(ctx)
	if errors.Is(err, history.ErrIntegrity) {
		// It may be why an older one was asked for. As if it held nothing: all is sent.
		r.Log.Warn("the manifest of the newest snapshot cannot be used; what was restored counts as different throughout", "error", err)
		newest, err = &history.Manifest{Lineage: r.head.Lineage, Sequence: r.head.Sequence, Epoch: r.head.Epoch, ID: r.head.Newest.ID}, nil
	}
	if err != nil {
		return err
	}
	c := compareRecords(newest, withStats(m.Entries, entries))
	return r.rebaseOn(newest, c)
}

// rebaseOn makes newest the base and marks in what DIR differs from it. Records of
// what differs carry stats that no file has, so should a crash come between, the
// journal's scan finds them.
func (r *runner) rebaseOn(newest *history.Manifest, c *comparison) error {
	if err := r.Journal.Rebase(r.published(newest, c.records)); err != nil {
		return err
	}
	if paths := slices.Concat(c.differ, c.modes); len(paths) > 0 {
		return r.mark(paths...)
	}
	return nil
}

// keepOver makes the newest snapshot the base of the local copy as it is.
func (r *runner) keepOver() error {
	return r.rebaseOn(r.content.newest, r.content)
}
