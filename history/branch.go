package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// A branch is what a writer holds that the store has moved on from (W2): whole
// objects and a manifest, stored as a snapshot is and never listed. It counts as
// complete once its manifest is there, which is stored last and removed first. What
// has none is litter, or being stored right now.

const branchMark = "-branch-"

// NewBranchID returns an id for a branch that a writer makes at now, its tail read
// from rnd.
func NewBranchID(now time.Time, writer string, rnd io.Reader) (ID, error) {
	id, err := NewID(now, rnd)
	if err != nil {
		return "", err
	}
	return ParseID(string(id) + branchMark + writer)
}

// BranchOf returns the writer whose branch the id names; "" where it names none.
func (id ID) BranchOf() string {
	_, writer, _ := strings.Cut(string(id), branchMark)
	return writer
}

// Branch returns what a branch holds, nil where it is not complete. That it is not
// follows from a listing, which proves it; a missing object would not (R4).
func (c *Catalog) Branch(ctx context.Context, id ID) (*Manifest, error) {
	found, err := c.scan(ctx, SnapshotPrefix(id))
	if err != nil {
		return nil, fmt.Errorf("look for branch %s: %w", id, err)
	}
	if !found.folders[id].complete(id) {
		return nil, nil
	}
	return c.Manifest(ctx, id, "")
}

// HasBranch reports whether the store still holds every object of a branch. It is
// one listing.
func (c *Catalog) HasBranch(ctx context.Context, m *Manifest) (bool, error) {
	found, err := c.scan(ctx, SnapshotPrefix(m.ID))
	if err != nil {
		return false, fmt.Errorf("look for branch %s: %w", m.ID, err)
	}
	f := found.folders[m.ID]
	return f.complete(m.ID) && f.holdsAll(m), nil
}

func (f *folder) complete(id ID) bool {
	_, ok := f.size(ManifestKey(id))
	return ok
}

// Branches returns the complete branches of all writers, in the order of their ids.
// It lists history as a whole.
func (c *Catalog) Branches(ctx context.Context) ([]Listed, error) {
	found, err := c.scan(ctx, HistoryPrefix)
	if err != nil {
		return nil, fmt.Errorf("list branches: %w", err)
	}
	var all []Listed
	for _, id := range found.branches() {
		l := c.listed(ctx, id)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("list branches: %w", context.Cause(ctx))
		}
		if !errors.Is(l.Err, ErrGone) { // removed since the listing
			all = append(all, l)
		}
	}
	return all, nil
}

// branches returns the ids of the complete branches, sorted.
func (s *scan) branches() []ID {
	return slices.DeleteFunc(s.ids(), func(id ID) bool { return !id.IsBranch() || !s.folders[id].complete(id) })
}

// BranchAge is how old a branch must be before rotation takes it.
const BranchAge = 24 * time.Hour

// OldBranches returns the branches that rotation may remove, of one writer or, where
// that is "", of all: not the newest keep of their writer, and older than BranchAge.
// No single clock decides on that. By now, which is the caller's, the id must be that
// old; and by the store's clock, which has come at least as far as the newest object
// in history, the youngest object of the branch.
func (c *Catalog) OldBranches(ctx context.Context, now time.Time, writer string, keep int) ([]ID, error) {
	found, err := c.scan(ctx, HistoryPrefix)
	if err != nil {
		return nil, fmt.Errorf("look for old branches: %w", err)
	}
	var storeNow time.Time
	for _, f := range found.folders {
		if f.newest.After(storeNow) {
			storeNow = f.newest
		}
	}
	byWriter := map[string][]ID{}
	for _, id := range found.branches() {
		if writer == "" || id.BranchOf() == writer {
			byWriter[id.BranchOf()] = append(byWriter[id.BranchOf()], id)
		}
	}
	var old []ID
	for _, ids := range byWriter {
		slices.SortStableFunc(ids, func(a, b ID) int {
			return cmp.Or(found.folders[a].newest.Compare(found.folders[b].newest), cmp.Compare(a, b))
		})
		for _, id := range ids[:max(0, len(ids)-max(keep, 1))] {
			if now.Sub(id.Time()) > BranchAge && storeNow.Sub(found.folders[id].newest) > BranchAge {
				old = append(old, id)
			}
		}
	}
	slices.Sort(old)
	return old, nil
}

// resolveBranch is Resolve for what no listed snapshot is meant by.
func (c *Catalog) resolveBranch(ctx context.Context, text string) (Choice, error) {
	found, err := c.scan(ctx, HistoryPrefix)
	if err != nil {
		return Choice{}, fmt.Errorf("look for branches: %w", err)
	}
	var matches []ID
	for _, id := range found.branches() {
		if string(id) == text {
			return Choice{ID: id}, nil
		}
		if strings.HasPrefix(string(id), text) {
			matches = append(matches, id)
		}
	}
	if len(matches) == 1 {
		return Choice{ID: matches[0]}, nil
	}
	return Choice{}, &UnknownIDError{Text: text, Candidates: matches}
}
