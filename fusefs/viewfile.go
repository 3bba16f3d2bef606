package fusefs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	blockSize = 64 << 10 // saved before its first overwrite
	readChunk = 4 * blockSize
)

// viewFile is a file of a view that was opened, pinned or touched since the cut.
//
// A mutation saves blocks with mu held, and changes the file after that. A reader
// holds mu shared while it reads what is not saved: so what it reads is the block
// as it was at the cut.
type viewFile struct {
	v    *View
	size int64 // at the cut

	readers int // open readers; guarded by View.mu

	mu      sync.RWMutex
	fd      int    // the backing file, read-only; -1: not needed yet
	held    bool   // fd must stay: the file may not be found by its path again
	scratch int    // saved blocks at their own offsets; -1: none yet
	used    int64  // bytes of scratch
	saved   bitmap // of blocks
	dead    bool   // released
}

// openOnce sees to it that the file is open.
func (f *viewFile) openOnce(open func() (int, error)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd >= 0 {
		return nil
	}
	fd, err := open()
	if err != nil {
		return err
	}
	f.fd = fd
	return nil
}

// holdLocked keeps the file reachable whatever happens to its names.
func (f *viewFile) holdLocked(n *inode) error {
	if f.fd < 0 && !f.dead {
		fd, errno := n.open(unix.O_RDONLY)
		if errno != 0 {
			return errno
		}
		f.fd = fd
	}
	f.held = true
	return nil
}

// save puts what is not saved yet of [off, end) into scratch.
func (f *viewFile) save(n *inode, off, end int64) error {
	first, last := off/blockSize, (end-1)/blockSize
	patience := int64(copyLimit)
	f.mu.Lock()
	defer f.mu.Unlock()
	for b := first; b <= last; {
		from, to := f.saved.clear(b, last+1)
		if from == to {
			return nil
		}
		if f.dead {
			return nil
		}
		if err := f.holdLocked(n); err != nil {
			return fmt.Errorf("hold a file: %w", err)
		}
		if err := f.openScratch(); err != nil {
			return fmt.Errorf("make a scratch file: %w", err)
		}
		if err := f.keep(from*blockSize, min(to*blockSize, f.size), &patience); err != nil {
			return fmt.Errorf("save what is about to be overwritten: %w", err)
		}
		f.saved.set(from, to)
		b = to
	}
	return nil
}

// release closes what the file holds. Only for the end, or if nobody reads it.
func (f *viewFile) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
	for _, fd := range []*int{&f.fd, &f.scratch} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	f.v.scratch.Add(-f.used)
	f.used = 0
}

// readAt reads up to readChunk bytes of either kind, saved or not.
func (f *viewFile) readAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if err := f.v.err(); err != nil {
		return 0, err
	}
	if f.dead {
		return 0, fs.ErrClosed
	}
	p = p[:min(int64(len(p)), f.size-off, readChunk)]
	block := off / blockSize
	saved, until := f.saved.run(block, (off+int64(len(p))-1)/blockSize+1)
	p = p[:min(int64(len(p)), until*blockSize-off)]
	fd := f.fd
	if saved {
		fd = f.scratch
	}
	n, err := preadAll(fd, p, off)
	if err == nil && n < len(p) {
		err = fmt.Errorf("%w: it changed behind the mount's back", io.ErrUnexpectedEOF)
	}
	return n, err
}

// preadAll fills p, or stops at the end of the file.
func preadAll(fd int, p []byte, off int64) (n int, err error) {
	for n < len(p) {
		got, err := unix.Pread(fd, p[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if got == 0 {
			break
		}
		n += got
	}
	return n, nil
}

// viewReader is an open file of a view.
type viewReader struct {
	v    *View
	f    *viewFile
	path string
	once sync.Once
}

// ReadAt implements io.ReaderAt.
func (r *viewReader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, &fs.PathError{Op: "read", Path: r.path, Err: fs.ErrInvalid}
	}
	for n < len(p) {
		if off+int64(n) >= r.f.size {
			return n, io.EOF
		}
		got, err := r.f.readAt(p[n:], off+int64(n))
		n += got
		if err != nil {
			return n, &fs.PathError{Op: "read", Path: r.path, Err: err}
		}
	}
	return n, nil
}

// NextData implements tree.Sparse.
func (r *viewReader) NextData(off, end int64) int64 { return r.f.nextDataAtCut(off, end) }

// Allocated implements tree.Sparse. What was saved is not taken off.
func (r *viewReader) Allocated() (int64, error) { return r.f.allocated() }

// Close lets the file go, unless its path may not lead to it any more.
func (r *viewReader) Close() error {
	err := fs.ErrClosed
	r.once.Do(func() {
		err = nil
		r.v.mu.Lock()
		defer r.v.mu.Unlock()
		r.f.readers--
		r.f.mu.Lock()
		defer r.f.mu.Unlock()
		if r.f.readers == 0 && !r.f.held && r.f.fd >= 0 {
			err = unix.Close(r.f.fd)
			r.f.fd = -1
		}
	})
	return err
}

// bitmap is a set of block numbers that grows as needed.
type bitmap []uint64

func (b bitmap) has(i int64) bool {
	return i>>6 < int64(len(b)) && b[i>>6]&(1<<(i&63)) != 0
}

// set adds [from, to).
func (b *bitmap) set(from, to int64) {
	if need := (to + 63) >> 6; need > int64(len(*b)) {
		*b = append(*b, make([]uint64, need-int64(len(*b)))...)
	}
	for i := from; i < to; {
		if i&63 == 0 && to-i >= 64 {
			(*b)[i>>6] = ^uint64(0)
			i += 64
			continue
		}
		(*b)[i>>6] |= 1 << (i & 63)
		i++
	}
}

// union adds what is in o.
func (b *bitmap) union(o bitmap) {
	if more := len(o) - len(*b); more > 0 {
		*b = append(*b, make([]uint64, more)...)
	}
	for i, word := range o {
		(*b)[i] |= word
	}
}

// clear returns the first run in [from, end) that is not in the set; empty if all is.
func (b bitmap) clear(from, end int64) (int64, int64) {
	from = b.skip(true, from, end)
	return from, b.skip(false, from, end)
}

// run reports whether from is in the set, and how far the same holds.
func (b bitmap) run(from, end int64) (in bool, to int64) {
	in = b.has(from)
	return in, b.skip(in, from, end)
}

// skip returns where in [from, end) membership is first other than in; end if it
// is the same in all of it. A file may have millions of blocks.
func (b bitmap) skip(in bool, from, end int64) int64 {
	for from < end {
		w := from >> 6
		if w >= int64(len(b)) {
			if in {
				return from
			}
			return end
		}
		word := b[w]
		if in {
			word = ^word
		}
		if word >>= from & 63; word != 0 {
			return min(from+int64(bits.TrailingZeros64(word)), end)
		}
		from = (w + 1) << 6
	}
	return end
}

// AbandonedError says that a view ended before it was read.
type AbandonedError struct {
	Cut uint64
	Err error
}

// Error implements error.
func (e *AbandonedError) Error() string {
	return fmt.Sprintf("the view of cut %d was given up: %v", e.Cut, e.Err)
}

// Unwrap returns the cause.
func (e *AbandonedError) Unwrap() error { return e.Err }

// Is makes every such error an ErrViewAbandoned.
func (e *AbandonedError) Is(target error) bool { return target == ErrViewAbandoned }

// Hint returns what a person can do next.
func (e *AbandonedError) Hint() string {
	var full *scratchFullError
	switch {
	case errors.As(e.Err, &full):
		return "nothing is lost, and it is tried again by itself; if that keeps failing, raise --scratch-limit or take snapshots when less is written"
	case errors.Is(e.Err, errLongCopy):
		return "nothing is lost, and it is tried again by itself: a big file was shortened or emptied while it was being stored"
	case errors.Is(e.Err, syscall.ENOSPC) || errors.Is(e.Err, syscall.EDQUOT):
		return "make room on the disk of DIR: a snapshot needs space for what is overwritten while it is uploaded; the next one is tried as usual"
	}
	return ""
}
