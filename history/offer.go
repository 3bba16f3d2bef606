package history

import (
	"context"
	"errors"
	"slices"

	"github.com/chromafs/chromafs/internal/tree"
)

// OfferOlder lets an error that is, or wraps, an *IntegrityError name the newest older
// snapshot that can be restored instead, and returns it. That is one whose manifest can
// be read, whose objects are listed with their sizes, and which is right where the
// other one is damaged: that part is read. More would take as long as a restore, so
// the error's hint says what was not looked at. Other errors are returned as they are.
func (c *Catalog) OfferOlder(ctx context.Context, err error) error {
	var bad *IntegrityError
	if !errors.As(err, &bad) || bad.Asked || ctx.Err() != nil {
		return err
	}
	offer, oerr := c.newestOlder(ctx, bad)
	if oerr != nil {
		c.log.Warn("could not look for an older snapshot that is whole", "error", oerr)
		return err
	}
	bad.Offer, bad.Asked = offer, true
	return err
}

func (c *Catalog) newestOlder(ctx context.Context, bad *IntegrityError) (ID, error) {
	h, _, err := c.Head(ctx)
	if err != nil {
		return "", err
	}
	older := h.History
	if i := slices.Index(older, bad.ID); i >= 0 {
		older = older[:i]
	}
	found, err := c.scan(ctx, HistoryPrefix)
	if err != nil {
		return "", err
	}
	for _, id := range slices.Backward(older) {
		err := c.looksWhole(ctx, id, found.folders[id], bad)
		if err == nil {
			return id, nil
		}
		if !errors.Is(err, ErrIntegrity) && !errors.Is(err, ErrGone) && !otherCopyMayHelp(err) {
			return "", err
		}
		c.log.Warn("an older snapshot is not whole either", "id", id, "error", err)
	}
	return "", nil
}

// errIncomplete: objects are missing, or of other sizes.
var errIncomplete = errors.New("not all of its objects are there, each with its size")

// looksWhole says what is wrong with a snapshot as far as it is looked at.
func (c *Catalog) looksWhole(ctx context.Context, id ID, f *folder, bad *IntegrityError) error {
	m, err := c.Manifest(ctx, id, "")
	if err != nil {
		return err
	}
	if !f.holdsAll(m) {
		return &IntegrityError{ID: id, Part: -1, Err: errIncomplete}
	}
	for i := range m.Entries {
		r := &m.Entries[i]
		if r.Path != bad.Path || r.Type != tree.File || bad.Part < 0 || bad.Part >= len(r.Parts) {
			continue
		}
		_, err := c.fetchPart(ctx, ObjectKey(id, r.Path), r.ETag, r, bad.Part, nil)
		return err
	}
	return nil
}
