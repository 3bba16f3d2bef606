package history

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// VerifyReport says what Verify found.
type VerifyReport struct {
	ID      ID
	Files   int   // that were read
	Bytes   int64 // that were read
	Damaged []*IntegrityError
}

// Verify reads every byte of a snapshot and compares it with the manifest, and that
// with the head where the head knows its sum. Damage is reported in full, and as
// ErrIntegrity.
func (c *Catalog) Verify(ctx context.Context, id ID) (VerifyReport, error) {
	report := VerifyReport{ID: id}
	want := ""
	if !id.IsBranch() { // of which the head knows nothing
		h, _, err := c.Head(ctx)
		if err != nil {
			return report, fmt.Errorf("verify %s: %w", id, err)
		}
		if h.Newest.ID == id {
			want = h.Newest.ManifestSHA256
		}
	}
	m, err := c.Manifest(ctx, id, want)
	if err != nil {
		return report, fmt.Errorf("verify: %w", err)
	}
	stored, err := c.scan(ctx, SnapshotPrefix(id))
	if err != nil {
		return report, fmt.Errorf("verify %s: %w", id, err)
	}
	v := verifier{c: c, m: m, stored: stored.folders[id], report: &report}
	if err := v.run(ctx); err != nil {
		return report, fmt.Errorf("verify %s: %w", id, err)
	}
	if len(report.Damaged) > 0 {
		return report, report.Damaged[0]
	}
	return report, nil
}

type verifier struct {
	c      *Catalog
	m      *Manifest
	stored *folder

	mu     sync.Mutex // guards report
	report *VerifyReport
}

func (v *verifier) run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i := range v.m.Entries {
		r := &v.m.Entries[i]
		if r.Type != tree.File {
			continue
		}
		v.report.Files++
		size, ok := v.stored.size(ObjectKey(v.m.ID, r.Path))
		if !ok || size != r.Size {
			err := fmt.Errorf("the object has %d bytes, not %d", size, r.Size)
			if !ok {
				err = objstore.ErrNotFound
			}
			v.damaged(r, -1, err)
			continue
		}
		for part := range r.Parts {
			g.Go(func() error { return v.part(gctx, r, part) })
		}
	}
	return g.Wait()
}

func (v *verifier) part(ctx context.Context, r *tree.Record, part int) error {
	n, err := v.c.fetchPart(ctx, ObjectKey(v.m.ID, r.Path), r.ETag, r, part, nil)
	if err != nil && otherCopyMayHelp(err) {
		if errors.Is(err, objstore.ErrNotFound) {
			err = v.c.missing(ctx, v.m.ID, err)
		}
		if otherCopyMayHelp(err) {
			v.damaged(r, part, err)
			return nil
		}
	}
	v.mu.Lock()
	v.report.Bytes += n
	v.mu.Unlock()
	return err
}

func (v *verifier) damaged(r *tree.Record, part int, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Damaged = append(v.report.Damaged, &IntegrityError{ID: v.m.ID, Path: r.Path, Part: part, Err: err})
}
