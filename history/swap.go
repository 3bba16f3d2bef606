package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/chromafs/chromafs/internal/objstore"
)

// Superseded stands for the ETag of a head of ours that another writer has
// replaced since: no head has it, so the next swap on it is refused.
const Superseded = "superseded"

// SwapHead replaces manifest.json by h if its ETag is still etag ("" creates it),
// and returns the new ETag. It is the act that publishes and the fence (S3, W1).
//
// An answer that was lost or refuses is read back: our nonce in the head, or our
// newest snapshot in its history, means that the swap did happen, once. The ETag
// is Superseded where another writer has replaced it since. The same writer and
// epoch without it is *StaleError, another one *FencedError; both published
// nothing. Any other error leaves open whether it happened: repeat the same swap.
func (c *Catalog) SwapHead(ctx context.Context, h Head, etag string) (string, error) {
	newETag, seen, err := c.swap(ctx, h, etag)
	if err == nil || seen == nil {
		return newETag, err
	}
	now := seen.Head
	ours := now.Epoch == h.Epoch && now.Writer == h.Writer
	if h.Newest != nil && now.Lists(h.Newest.ID) {
		if ours {
			return seen.ETag, nil
		}
		published, err := c.wrote(ctx, h)
		if err != nil {
			return "", err
		}
		if published {
			return Superseded, nil
		}
	}
	if ours {
		return "", seen
	}
	return "", &FencedError{Head: now}
}

// wrote reports whether the newest snapshot of h was made by the writer of h, and
// not only taken over by it.
func (c *Catalog) wrote(ctx context.Context, h Head) (bool, error) {
	m, err := c.Manifest(ctx, h.Newest.ID, h.Newest.ManifestSHA256)
	if err != nil {
		return false, fmt.Errorf("find out whether snapshot %s was published: %w", h.Newest.ID, err)
	}
	return m.Writer == h.Writer && m.Epoch == h.Epoch, nil
}

// swap replaces the head, knowing its own write by the nonce alone. Where another
// head is there, it returns that one with an error.
func (c *Catalog) swap(ctx context.Context, h Head, etag string) (string, *StaleError, error) {
	data, err := EncodeHead(h)
	if err != nil {
		return "", nil, err
	}
	o := objstore.PutOptions{IfMatch: etag, IfAbsent: etag == "", ContentType: "application/json"}
	obj, err := c.store.Put(ctx, HeadKey, bytes.NewReader(data), int64(len(data)), o)
	if err == nil {
		return obj.ETag, nil, nil
	}
	err = fmt.Errorf("publish: %w", err)
	refused := errors.Is(err, objstore.ErrPrecondition)
	if !refused && !errors.Is(err, objstore.ErrUnavailable) {
		return "", nil, err
	}
	now, nowETag, rerr := c.readHead(ctx)
	switch {
	case errors.Is(rerr, objstore.ErrNotFound) && etag == "":
		return "", nil, fmt.Errorf("%w: %w", objstore.ErrUnavailable, err) // nothing is there, nothing was written
	case errors.Is(rerr, objstore.ErrNotFound), errors.Is(rerr, errUnreadable):
		_, _, herr := c.Head(ctx) // says what became of it
		return "", nil, errors.Join(err, herr)
	case rerr != nil:
		return "", nil, errors.Join(err, rerr)
	case now.Nonce == h.Nonce:
		return nowETag, nil, nil
	case nowETag == etag && refused: // a conflict that is over by now
		return "", nil, fmt.Errorf("%w: %w", objstore.ErrUnavailable, err)
	case nowETag == etag:
		return "", nil, err
	}
	return "", &StaleError{Head: now, ETag: nowETag}, err
}

// change replaces the head by what edit makes of it, under the epoch and writer
// that it has (so that a running writer merges and is not fenced), and repeats
// that where somebody else was faster. edit returns false for nothing to do.
func (c *Catalog) change(ctx context.Context, edit func(*Head) bool) (before Head, changed bool, err error) {
	for {
		h, etag, err := c.Head(ctx)
		if err != nil {
			return h, false, err
		}
		next := h
		if !edit(&next) {
			return h, false, nil
		}
		if next.Nonce, err = NewNonce(c.rand); err != nil {
			return h, false, err
		}
		_, seen, err := c.swap(ctx, next, etag)
		if err == nil {
			return h, true, nil
		}
		if seen == nil {
			return h, false, err
		}
	}
}
