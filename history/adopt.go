package history

import (
	"context"
	"errors"
	"fmt"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
)

// Adopt makes a whole snapshot ("" means the newest) the newest again where
// manifest.json is lost, or where a first snapshot was stored and never published.
// The new head has a new epoch, so whoever wrote before is fenced; it lists the
// whole snapshots of the same lineage up to this one. It refuses where the head is
// fine: nothing that is published is ever taken back.
func (c *Catalog) Adopt(ctx context.Context, id ID) (Head, error) {
	old, etag, err := c.adoptable(ctx)
	if err != nil {
		return Head{}, fmt.Errorf("adopt: %w", err)
	}
	found, err := c.scan(ctx, HistoryPrefix)
	if err != nil {
		return Head{}, fmt.Errorf("adopt: %w", err)
	}
	all, err := c.whole(ctx, found)
	if err != nil {
		return Head{}, fmt.Errorf("adopt: %w", err)
	}
	h, err := headOf(all, id)
	if err != nil {
		return Head{}, fmt.Errorf("adopt: %s: %w", c.store, err)
	}
	h.Epoch = max(h.Epoch, old.Epoch) + 1
	if h.Writer, err = NewNonce(c.rand); err != nil {
		return Head{}, err
	}
	if h.Nonce, err = NewNonce(c.rand); err != nil {
		return Head{}, err
	}
	if _, seen, err := c.swap(ctx, h, etag); err != nil {
		if seen != nil {
			return Head{}, fmt.Errorf("adopt: manifest.json has come back meanwhile: %w", err)
		}
		return Head{}, fmt.Errorf("adopt: %w", err)
	}
	c.log.Info("snapshot adopted", "id", h.Newest.ID, "sequence", h.Sequence, "epoch", h.Epoch, "listed", len(h.History))
	return h, nil
}

// adoptable returns the head to replace, as far as there is one, and its ETag.
func (c *Catalog) adoptable(ctx context.Context) (Head, string, error) {
	old, etag, err := c.readHead(ctx)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return Head{}, "", nil
	case errors.Is(err, errUnreadable):
		return Head{}, etag, nil
	case err != nil:
		return Head{}, "", err
	case old.Newest != nil:
		return Head{}, "", exitcode.New(exitcode.Usage,
			fmt.Errorf("manifest.json is fine, its newest snapshot is %s", old.Newest.ID),
			"to go back to an older snapshot: chromafs restore --at ID DIR")
	}
	return old, etag, nil
}

// headOf makes the head that has a snapshot for its newest. The epoch is the
// highest that was seen.
func headOf(all []wholeSnapshot, id ID) (Head, error) {
	at := len(all) - 1
	if id != "" {
		for at = len(all) - 1; at >= 0 && all[at].ID != id; at-- {
		}
	}
	if at < 0 && id != "" {
		return Head{}, &UnknownIDError{Text: string(id)}
	}
	if at < 0 {
		return Head{}, errors.New("history holds no whole snapshot")
	}
	newest := all[at]
	h := Head{Format: Format, Lineage: newest.Lineage, Sequence: newest.Sequence, Newest: newest.Summary(newest.sha256)}
	for i, s := range all {
		h.Epoch = max(h.Epoch, s.Epoch)
		if s.Lineage == newest.Lineage && i <= at && (i == at || s.Sequence < newest.Sequence) {
			h.History = append(h.History, s.ID)
		}
	}
	return h, nil
}
