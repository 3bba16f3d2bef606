package uploader

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
	"github.com/chromafs/chromafs/journal"
)

// item is one entry of a view on its way into a snapshot.
type item struct {
	rec     tree.Record                  // as the snapshot will hold it
	base    tree.Record                  // as the previous snapshot holds it; zero where it does not
	source  objstore.Object              // the object that holds base's content; no key: there is none
	planned []tree.Hash                  // rec.Parts before any is sent: those change then, each by itself
	unread  bool                         // the previous snapshot has no such file: rec.Parts are known once they are sent
	trusted bool                         // the content is base's because nothing marked the path; rec.Parts are base's
	touched func(off, length int64) bool // which ranges may differ from base; nil: all of them
	kept    []bool                       // parts whose hash is base's, because nothing touched them; nil: none
}

// plan is what is to be stored for one view.
type plan struct {
	view  View
	items []item
	bases int           // how many entries the previous snapshot has
	slots chan struct{} // a token per request or hashing that may run at once
}

// newPlan tells unchanged, changed and new files apart. Files that are marked are
// hashed; new ones are when they are sent (hold), so that they are read once. Parts that the view knows to be as at
// the base's cut, which is since, are not.
func newPlan(ctx context.Context, view View, q Queue, parallel int, since uint64) (*plan, error) {
	p := &plan{view: view, bases: len(q.BaseRecords()), slots: make(chan struct{}, parallel)}
	state, dirty := q.State(), q.Dirty()
	for _, e := range view.Entries() {
		it := newItem(e, q, state, dirty)
		if t, ok := view.(tracker); ok && since != 0 && !it.trusted && it.base.Type == tree.File && e.Type == tree.File {
			if touched, known := t.Touched(e.Path, since); known {
				it.touched = touched
			}
		}
		p.items = append(p.items, it)
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i := range p.items {
		it := &p.items[i]
		if it.rec.Type == tree.File && !it.trusted && !it.unread {
			group.Go(func() error { return p.hash(gctx, it) })
		}
	}
	return p, group.Wait()
}

func newItem(e tree.Entry, q Queue, state journal.State, dirty journal.Dirty) item {
	it := item{rec: tree.Record{Entry: e}}
	base, ok := q.Base(e.Path)
	if ok {
		it.base = base
	}
	if e.Type != tree.File {
		return it
	}
	if e.Size > 0 {
		it.rec.PartSize = tree.PartSize(e.Size)
	}
	it.unread = base.Type != tree.File && len(state.Pending) == 0 // else a failed attempt may have its parts
	if ok && base.Type == tree.File && base.ETag != "" && state.ID != "" {
		it.source = objstore.Object{Key: history.ObjectKey(history.ID(state.ID), e.Path), Size: base.Size, ETag: base.ETag}
	}
	if ok && base.Type == tree.File && base.Size == e.Size && base.PartSize == it.rec.PartSize && !dirty.Covers(e.Path) {
		it.rec.Parts, it.trusted = base.Parts, true
	}
	return it
}

// hash reads a file's content and sets its parts.
func (p *plan) hash(ctx context.Context, it *item) error {
	if err := p.hashWith(ctx, it); err != nil {
		return fmt.Errorf("read %s: %w", it.rec.Path, err)
	}
	return nil
}

func (p *plan) hashWith(ctx context.Context, it *item) error {
	size, part := it.rec.Size, it.rec.PartSize
	if size == 0 {
		return nil
	}
	sums := make([]tree.Hash, tree.PartCount(size, part))
	if it.keep(sums) == len(sums) {
		it.rec.Parts = sums
		return nil
	}
	f, err := p.view.Open(it.rec.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = p.eachPart(ctx, len(sums), func(ctx context.Context, i int) (err error) {
		if it.kept == nil || !it.kept[i] {
			sums[i], err = it.hashPart(ctx, f, i)
		}
		return err
	})
	if err != nil {
		return err
	}
	it.rec.Parts = sums
	return nil
}

// keep puts base's hashes of the parts that nothing touched into sums, and returns
// how many they are.
func (it *item) keep(sums []tree.Hash) (n int) {
	it.kept = nil
	if it.touched == nil {
		return 0
	}
	it.kept = make([]bool, len(sums))
	for i := range sums {
		if it.basePart(i) && !it.touched(tree.PartRange(it.rec.Size, it.rec.PartSize, i)) {
			sums[i], it.kept[i] = it.base.Parts[i], true
			n++
		}
	}
	return n
}

// basePart reports whether base has a part i of the same place and length.
func (it *item) basePart(i int) bool {
	if it.base.PartSize != it.rec.PartSize || i >= len(it.base.Parts) {
		return false
	}
	_, now := tree.PartRange(it.rec.Size, it.rec.PartSize, i)
	_, then := tree.PartRange(it.base.Size, it.base.PartSize, i)
	return now == then
}

func (it *item) hashPart(ctx context.Context, f io.ReaderAt, i int) (tree.Hash, error) {
	off, length := tree.PartRange(it.rec.Size, it.rec.PartSize, i)
	return tree.HashPart(contextReader{ctx, f}, off, length)
}

// eachPart calls f for parts 0…n-1, as many at once as there are slots.
func (p *plan) eachPart(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(cap(p.slots))
	for i := range n {
		if gctx.Err() != nil {
			break
		}
		group.Go(func() error { return p.withSlot(gctx, func() error { return f(gctx, i) }) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return objstore.Ended(ctx)
}

// withSlot calls f when fewer than the allowed number of others run.
func (p *plan) withSlot(ctx context.Context, f func() error) error {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
		return f()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// changed reports whether an entry differs from the previous snapshot's.
func (it *item) changed() bool { return it.base.Path == "" || differs(it.base, it.rec) }

// differs reports whether two records of a path are not the same to a snapshot.
func differs(a, b tree.Record) bool {
	return a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || !b.SameContent(a)
}

// records returns what the snapshot holds. Where nothing was stored the objects
// are still the previous snapshot's.
func (p *plan) records(stored bool) []tree.Record {
	out := make([]tree.Record, len(p.items))
	for i := range p.items {
		out[i] = p.items[i].rec
		if !stored {
			out[i].ETag = p.items[i].base.ETag
		}
	}
	return out
}

// contextReader ends a long read with its context.
type contextReader struct {
	ctx context.Context
	io.ReaderAt
}

func (r contextReader) ReadAt(b []byte, off int64) (int, error) {
	if err := objstore.Ended(r.ctx); err != nil {
		return 0, err
	}
	return r.ReaderAt.ReadAt(b, off)
}

// NextData implements tree.Sparse.
func (r contextReader) NextData(off, end int64) int64 { return tree.NextData(r.ReaderAt, off, end) }

// Allocated implements tree.Sparse.
func (r contextReader) Allocated() (int64, error) {
	n, _, err := tree.Allocated(r.ReaderAt)
	return n, err
}
