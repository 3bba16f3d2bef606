package uploader

import (
	"errors"
	"fmt"

	"github.com/chromafs/chromafs/internal/tree"
)

// ErrSparse: a file's size says far more than it holds.
var ErrSparse = errors.New("a file is far bigger than what it holds")

// SparseError names a file that would fill the store with zeros. It is ErrSparse.
type SparseError struct {
	Path                   string
	Size, Allocated, Limit int64 // bytes: what it says, what it takes on disk, what is allowed
}

// Error implements error.
func (e *SparseError) Error() string {
	return fmt.Sprintf("%v: %s says that it has %d bytes (%s), and takes %d (%s) on disk; each snapshot would store all of it (limit %s)",
		ErrSparse, e.Path, e.Size, sizeText(e.Size), e.Allocated, sizeText(e.Allocated), sizeText(e.Limit))
}

// Is reports whether target is ErrSparse.
func (e *SparseError) Is(target error) bool { return target == ErrSparse }

// Hint returns the next step.
func (e *SparseError) Hint() string {
	return "nothing was sent or published, and history keeps its snapshots. A link_lists.bin like that belongs to a damaged vector index: " +
		"delete its collection in ChromaDB and build it again. To store the file as it is, once per snapshot: --max-file-size " +
		sizeText(ceil(e.Size)) + " (mount, snapshot or sync)"
}

// ceil rounds up to what sizeText prints without a fraction.
func ceil(n int64) int64 {
	unit := int64(1)
	for n/unit >= 1<<10 {
		unit <<= 10
	}
	return (n + unit - 1) / unit * unit
}

// sizeText returns a size with a binary unit, as --max-file-size takes it.
func sizeText(n int64) string {
	value, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	i := 0
	for ; value >= 1<<10 && i < len(units)-1; i++ {
		value /= 1 << 10
	}
	if value == float64(int64(value)) {
		return fmt.Sprintf("%.0f%s", value, units[i])
	}
	return fmt.Sprintf("%.2f%s", value, units[i])
}

// checkSparse refuses a view with a file above the limit of which less than half is on
// disk. A snapshot without that file would not be one (S1), so there is none. What is
// dense is never refused, and a file system that knows no holes has dense files only.
func (u *Uploader) checkSparse(view View) error {
	if u.o.MaxSparse <= 0 {
		return nil
	}
	for _, e := range view.Entries() {
		if e.Type != tree.File || e.Size <= u.o.MaxSparse {
			continue
		}
		f, err := view.Open(e.Path)
		if err != nil {
			return err
		}
		allocated, known, err := tree.Allocated(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("look what %s takes on disk: %w", e.Path, err)
		}
		if known && allocated < e.Size/2 {
			return &SparseError{Path: e.Path, Size: e.Size, Allocated: allocated, Limit: u.o.MaxSparse}
		}
	}
	return nil
}
