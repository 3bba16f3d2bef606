package uploader

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/chromafs/chromafs/internal/tree"
)

// maxHeld is the longest range that is held in memory while it is sent, in bytes. With
// it a slot costs that much at most; parts are longer in files above 160 GB only, and
// are read three times then.
const maxHeld = 16 << 20

// held is a range of a file in memory, read and hashed once, in place of the file. It is
// an objstore.Hashed.
type held struct {
	b   []byte
	off int64 // of b in the file
	sum tree.Hash
}

// ReadAt implements io.ReaderAt within the range.
func (h *held) ReadAt(p []byte, off int64) (int, error) {
	if off < h.off || off > h.off+int64(len(h.b)) {
		return 0, fmt.Errorf("offset %d is outside what is held, [%d, %d)", off, h.off, h.off+int64(len(h.b)))
	}
	n := copy(p, h.b[off-h.off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// SHA256 implements objstore.Hashed.
func (h *held) SHA256(off, size int64) ([32]byte, bool) {
	return h.sum, off == h.off && size == int64(len(h.b))
}

// hold reads and hashes part i of a file, records the hash as what the snapshot holds,
// and calls send with what to send. exact is false where what was sent may be other than
// what was hashed. It is called with a slot.
func (t *transfer) hold(ctx context.Context, f io.ReaderAt, it *item, i int, send func(body io.ReaderAt) error) (exact bool, err error) {
	off, length := tree.PartRange(it.rec.Size, it.rec.PartSize, i)
	if length > maxHeld {
		sum, err := it.hashPart(ctx, f, i)
		if err != nil {
			return false, fmt.Errorf("read %s: %w", it.rec.Path, err)
		}
		t.settle(it, i, sum)
		body, seen := t.witnessed(f, off, length)
		err = send(body)
		return seen.saw(sum), err
	}
	h := &held{b: t.buffer(int(length)), off: off}
	defer t.release(h.b)
	if _, err := io.ReadFull(io.NewSectionReader(contextReader{ctx, f}, off, length), h.b); err != nil {
		return false, fmt.Errorf("read %s at %d: %w", it.rec.Path, off, err)
	}
	sum, err := tree.HashPart(h, off, length)
	if err != nil {
		return false, err
	}
	h.sum = sum
	t.settle(it, i, sum)
	return true, send(h)
}

// settle records the hash of a part that is sent: what is sent is what the manifest
// says, whatever journal and view thought.
func (t *transfer) settle(it *item, i int, sum tree.Hash) {
	if known := it.rec.Parts[i]; known != sum && known != (tree.Hash{}) {
		t.log.Warn("a part that nothing was known to have written to has changed", "path", it.rec.Path, "part", i)
	}
	it.rec.Parts[i] = sum
}

// buffer returns n bytes of memory. As many are in use as there are slots.
func (t *transfer) buffer(n int) []byte {
	select {
	case b := <-t.spare:
		if cap(b) >= n {
			return b[:n]
		}
	default:
	}
	return make([]byte, n)
}

// release gives a buffer back.
func (t *transfer) release(b []byte) {
	select {
	case t.spare <- b:
	default:
	}
}

// drop returns the buffers' memory to the system: the next snapshot may be an hour away.
func (t *transfer) drop() {
	if len(t.spare) > 0 {
		t.spare = nil
		debug.FreeOSMemory()
	}
}
