package history

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// Listed is a snapshot on the list.
type Listed struct {
	Summary
	Sequence, Epoch uint64
	Writer          string
	Consistency     Consistency
	Err             error // why its manifest cannot be read; then all but the ID is zero
}

// List returns the published snapshots, oldest first. One whose manifest cannot be
// read is there with its error; one that is rotated away meanwhile is not.
func (c *Catalog) List(ctx context.Context) ([]Listed, error) {
	h, _, err := c.Head(ctx)
	if err != nil {
		return nil, fmt.Errorf("list history: %w", err)
	}
	all := make([]Listed, len(h.History))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, id := range h.History {
		g.Go(func() error {
			all[i] = c.listed(gctx, id)
			return gctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("list history: %w", context.Cause(ctx))
	}
	kept := all[:0]
	for _, l := range all {
		if !errors.Is(l.Err, ErrGone) {
			kept = append(kept, l)
		}
	}
	return kept, nil
}

func (c *Catalog) listed(ctx context.Context, id ID) Listed {
	data, err := c.manifestBytes(ctx, id)
	if err != nil {
		return Listed{Summary: Summary{ID: id}, Err: err}
	}
	m, err := decodeManifestOf(id, data)
	if err != nil {
		return Listed{Summary: Summary{ID: id}, Err: err}
	}
	return Listed{Summary: *m.Summary(sumHex(data)), Sequence: m.Sequence, Epoch: m.Epoch,
		Writer: m.Writer, Consistency: m.Consistency}
}
