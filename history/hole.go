package history

import (
	"bytes"
	"os"

	"github.com/chromafs/chromafs/internal/tree"
)

// holeBlock is how much has to be zero, and where, to be left out of a file.
const holeBlock = 64 << 10

// hole is a range of a file that is being written once. Blocks of zeros stay holes.
// It is for one goroutine.
type hole struct {
	f           *os.File
	off, length int64
	dirty       bool // it may hold something else than zeros
}

// write puts p at off. Writing the beginning of the range starts anew.
func (h *hole) write(p []byte, off int64) error {
	if off == h.off {
		if err := h.reset(); err != nil {
			return err
		}
	}
	for len(p) > 0 {
		n := min(int64(len(p)), holeBlock-off%holeBlock)
		if !allZero(p[:n]) {
			h.dirty = true
			if _, err := h.f.WriteAt(p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

// reset makes the range zeros: a hole where the file system has holes.
func (h *hole) reset() error {
	if !h.dirty {
		return nil
	}
	if err := tree.MakeZeros(h.f, h.off, h.length); err != nil {
		return err
	}
	h.dirty = false
	return nil
}

var zeroBlock [holeBlock]byte

func allZero(p []byte) bool { return bytes.Equal(p, zeroBlock[:len(p)]) }
