package reconcile

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/tree"
)

// comparison says in what a local copy differs from the newest snapshot.
type comparison struct {
	with    string // the snapshot's id
	newest  *history.Manifest
	records []tree.Record // the snapshot's, each with the local stat where the content is the same
	differ  []string      // paths whose kind or content differs, or that only one side has
	modes   []string      // paths that differ in their mode alone
}

func (c *comparison) result() Content {
	if len(c.differ) > 0 {
		return Different
	}
	return Equal
}

// compare reads the local copy and compares it with the newest snapshot. Files
// whose size differs are not read.
func (r *runner) compare(ctx context.Context) (*comparison, error) {
	newest, err := r.newest(ctx)
	if err != nil {
		return nil, err
	}
	entries, _, err := tree.Walk(r.Dir.Root(), datadir.Outside(r.Dir.Root()))
	if err != nil {
		return nil, fmt.Errorf("compare the local copy with snapshot %s: %w", newest.ID, err)
	}
	theirs := byPath(newest.Entries)
	local := make([]tree.Record, len(entries))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, e := range entries {
		local[i] = tree.Record{Entry: e}
		want, ok := theirs[e.Path]
		if e.Type != tree.File || e.Size == 0 || !ok || want.Size != e.Size {
			continue
		}
		local[i].PartSize = want.PartSize
		group.Go(func() error { return r.hash(gctx, &local[i]) })
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("compare the local copy with snapshot %s: %w", newest.ID, err)
	}
	r.Log.Info("compared the local copy with the newest snapshot", "id", newest.ID, "entries", len(entries))
	return compareRecords(newest, local), nil
}

// readers is how many files are read at once.
const readers = 4

func (r *runner) hash(ctx context.Context, rec *tree.Record) error {
	f, err := tree.OpenBeneath(r.Dir.Root(), rec.Path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	rec.Parts, err = tree.HashParts(ctx, f, rec.Size, rec.PartSize)
	if err != nil {
		return fmt.Errorf("read %s: %w", rec.Path, err)
	}
	return nil
}

// compareRecords compares what is local with a snapshot.
func compareRecords(newest *history.Manifest, local []tree.Record) *comparison {
	c := &comparison{with: string(newest.ID), newest: newest}
	here := byPath(local)
	for _, want := range newest.Entries {
		have, ok := here[want.Path]
		delete(here, want.Path)
		if ok && have.SameContent(want) {
			if have.Mode != want.Mode {
				c.modes = append(c.modes, want.Path)
			}
			mode := want.Mode
			want.Entry = have.Entry
			want.Mode = mode
		} else {
			c.differ = append(c.differ, want.Path)
			want.Inode, want.ChangeTime = 0, 0
		}
		c.records = append(c.records, want)
	}
	for path := range here {
		c.differ = append(c.differ, path)
	}
	return c
}

func byPath(records []tree.Record) map[string]tree.Record {
	m := make(map[string]tree.Record, len(records))
	for _, r := range records {
		m[r.Path] = r
	}
	return m
}
