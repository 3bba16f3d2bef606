package uploader

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/chromafs/chromafs/internal/tree"
)

// store stores a plan's objects while its databases are checked: what comes first
// ends the other. Where the last view failed, this one was checked before: a
// database that stays damaged costs no traffic.
func (u *Uploader) store(ctx context.Context, t *transfer) error {
	if u.o.Check == nil || u.suspect {
		return t.run(ctx)
	}
	inspect := u.inspection(t.plan)
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return t.run(gctx) })
	group.Go(func() error { return inspect(gctx) })
	return group.Wait()
}

// inspection returns what fails with a *DamagedError unless what a plan would publish
// is whole. What it needs of the plan it takes at once: a transfer changes that.
func (u *Uploader) inspection(p *plan) func(ctx context.Context) error {
	changed := map[string]bool{}
	for _, r := range u.o.Queue.BaseRecords() {
		if r.Type == tree.File {
			changed[r.Path] = true // unless it is in the view
		}
	}
	for i := range p.items {
		it := &p.items[i]
		changed[it.rec.Path] = it.base.Path == "" || !it.rec.SameContent(it.base)
	}
	return func(ctx context.Context) error {
		start := u.o.Now()
		damage, err := u.o.Check(ctx, p.view, func(path string) bool { return changed[path] })
		switch {
		case err != nil:
			return fmt.Errorf("check the databases: %w", err)
		case len(damage) == 0:
			u.o.Log.Debug("what is to be published is whole", "duration", u.o.Now().Sub(start))
			return nil
		}
		return &DamagedError{Damage: damage, LastGood: newestID(u.head)}
	}
}
