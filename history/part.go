package history

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// errMismatch: the bytes of a part are not those that the manifest names.
var errMismatch = errors.New("the bytes are not those that the manifest names")

// chunk is how much of a part is in memory at once. It is a multiple of holeBlock.
const chunk = 256 << 10

// copyPart passes a part of a file from src to put in chunks and hashes it on the
// way: errMismatch if it is not the right one, whatever put did with it by then.
// Without a put, a part that is a hole where it comes from is not read.
func copyPart(src io.Reader, r *tree.Record, i int, put func(p []byte, off int64) error) (n int64, err error) {
	off, length := tree.PartRange(r.Size, r.PartSize, i)
	if z, ok := src.(objstore.Sparse); ok && put == nil && z.Zeros() && tree.ZeroHash(length) == r.Parts[i] {
		return length, nil
	}
	h := sha256.New()
	buf := make([]byte, min(chunk, length))
	for n < length {
		p := buf[:min(int64(len(buf)), length-n)]
		got, err := io.ReadFull(src, p)
		h.Write(p[:got])
		n += int64(got)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return n, fmt.Errorf("%w: it ends after %d of %d bytes", errMismatch, n, length)
		}
		if err != nil {
			return n, err
		}
		if put == nil {
			continue
		}
		if err := put(p, off+n-int64(got)); err != nil {
			return n, &localError{err}
		}
	}
	if got := tree.Hash(h.Sum(nil)); got != r.Parts[i] {
		return n, fmt.Errorf("%w: SHA-256 %s, not %s", errMismatch, got, r.Parts[i])
	}
	return n, nil
}

// localError marks what failed on this side while bytes were fetched.
type localError struct{ error }

func (e *localError) Unwrap() error { return e.error }

// fetchPart gets a part of a file from one key. It is pinned to an ETag where that is
// known, so that the parts of a file are those of one object. Where the object is
// another, its bytes decide: after a bucket was copied all ETags may be others, and then
// they are not asked for again.
func (c *Catalog) fetchPart(ctx context.Context, key, etag string, r *tree.Record, i int, put func([]byte, int64) error) (n int64, err error) {
	if etag == "" || c.unpinned.Load() {
		return c.fetchPinned(ctx, key, "", r, i, put)
	}
	n, err = c.fetchPinned(ctx, key, etag, r, i, put)
	if !errors.Is(err, objstore.ErrPrecondition) {
		return n, err
	}
	n, err = c.fetchPinned(ctx, key, "", r, i, put)
	if err == nil && !c.unpinned.Swap(true) {
		c.log.Warn("an object is not the one that was stored, but holds the same bytes: was the bucket copied?", "key", key)
	}
	return n, err
}

func (c *Catalog) fetchPinned(ctx context.Context, key, etag string, r *tree.Record, i int, put func([]byte, int64) error) (n int64, err error) {
	off, length := tree.PartRange(r.Size, r.PartSize, i)
	body, obj, err := c.store.Get(ctx, key, objstore.GetOptions{Offset: off, Length: length, IfMatch: etag})
	if err != nil {
		return 0, err
	}
	defer body.Close()
	if obj.Size != r.Size {
		return 0, fmt.Errorf("%w: it has %d bytes, not %d", errMismatch, obj.Size, r.Size)
	}
	return copyPart(body, r, i, put)
}

// otherCopyMayHelp reports whether an error says that this copy is bad, and not
// that the store, the disk or the caller is.
func otherCopyMayHelp(err error) bool {
	if local := (*localError)(nil); errors.As(err, &local) {
		return false
	}
	for _, kind := range []error{errMismatch, objstore.ErrNotFound, objstore.ErrRange, objstore.ErrDamaged, objstore.ErrPrecondition} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
