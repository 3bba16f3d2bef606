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
func copyPart(src io.Reader, r *tree.Record, i int, put func(p []byte, off int64) error) (n int64, err error) {
	off, length := tree.PartRange(r.Size, r.PartSize, i)
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

// fetchPart gets a part of a file from one key.
func (c *Catalog) fetchPart(ctx context.Context, key string, r *tree.Record, i int, put func([]byte, int64) error) (n int64, err error) {
	off, length := tree.PartRange(r.Size, r.PartSize, i)
	body, obj, err := c.store.Get(ctx, key, objstore.GetOptions{Offset: off, Length: length})
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
