package history

import (
	"context"
	"errors"
	"fmt"
	"strings"

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

// Resolve returns the listed snapshot that a person means by text: its id, the
// beginning of it that no other one has, or "" or "latest" for the newest. What names
// none of them may name a branch in the same ways.
func (c *Catalog) Resolve(ctx context.Context, text string) (ID, error) {
	if ID(text).IsBranch() { // there may be no listed one
		return c.resolveBranch(ctx, text)
	}
	h, _, err := c.Head(ctx)
	if err != nil {
		return "", err
	}
	if text == "" || text == "latest" {
		return h.Newest.ID, nil
	}
	var found []ID
	for _, id := range h.History {
		if string(id) == text {
			return id, nil
		}
		if strings.HasPrefix(string(id), text) {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 0:
		return c.resolveBranch(ctx, text)
	case 1:
		return found[0], nil
	}
	return "", &UnknownIDError{Text: text, Matches: len(found)}
}
