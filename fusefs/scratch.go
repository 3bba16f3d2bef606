package fusefs

import (
	"fmt"
	"io"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/tree"
)

const (
	copyChunk = 16 * blockSize

	// copyLimit bounds what one request waits for: copying that much takes 45 to
	// 70 ms. Only truncating, or punching a hole, loses more at once.
	copyLimit = 64 << 20

	// Scratch lies on the disk that the application writes to. Of what is free, at
	// least this much stays for it; a disk of less than scratchShare times as much
	// keeps that share instead.
	scratchReserve = 16 << 20
	scratchShare   = 16
	scratchCheck   = 1 << 20 // how often free space is looked at, in bytes saved
	scratchUnit    = 4 << 10 // what is allocated, at least

	defaultScratchPercent = 10
)

// ScratchLimit bounds what a view may save. The zero value is 10 % of what is free.
type ScratchLimit struct {
	Bytes   int64   // 0: Percent counts
	Percent float64 // of what is free on DIR's disk when the cut is made
}

func (l ScratchLimit) of(free int64) int64 {
	if l.Bytes > 0 {
		return l.Bytes
	}
	return int64(float64(free) / 100 * l.Percent)
}

// scratchLimit is the limit of a view that is cut now, in bytes.
func (s *fsys) scratchLimit() (int64, error) {
	free, _, err := s.scratchSpace()
	if err != nil {
		return 0, err
	}
	return s.opts.ScratchLimit.of(free), nil
}

func (s *fsys) scratchSpace() (free, size int64, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.opts.Dir.Scratch().Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("look at the free space of %s: %w", s.opts.Dir.Scratch().Name(), err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// Scratch returns how many bytes the view that is being read has saved, and how
// many it may; 0 and 0 where there is none.
func (f *FS) Scratch() (used, limit int64) {
	v := f.fsys.views.active.Load()
	if v == nil {
		return 0, 0
	}
	return v.scratch.Load(), v.limit
}

// scratchFullError says that a view would save more than it may.
type scratchFullError struct{ limit int64 }

// Error implements error.
func (e *scratchFullError) Error() string {
	return fmt.Sprintf("more was overwritten while it was read than the %d bytes that may be saved of it (--scratch-limit)", e.limit)
}

// errLongCopy says that one request would wait for a copy of more than copyLimit.
var errLongCopy = fmt.Errorf("one operation takes more than %d MiB of a file that is being stored, and would have to wait until that is copied", copyLimit>>20)

// keep puts [off, end), of which nothing is saved, into scratch. patience is how
// many bytes the caller may still wait for.
func (f *viewFile) keep(off, end int64, patience *int64) error {
	data, err := end-off, error(nil)
	if data > *patience {
		if data, err = f.dataIn(off, end, *patience); err != nil {
			return err
		}
	}
	if data <= *patience {
		*patience -= data
		return f.copy(off, end)
	}
	return f.share(off, end)
}

// nextData returns where in [off, end) of the backing file data begins; end if there
// is none.
func (f *viewFile) nextData(off, end int64) int64 { return tree.SeekData(f.fd, off, end) }

// dataIn returns how much of [off, end) is no hole; it stops counting above enough.
func (f *viewFile) dataIn(off, end, enough int64) (n int64, err error) {
	for n <= enough {
		if off = f.nextData(off, end); off >= end {
			break
		}
		hole, err := unix.Seek(f.fd, off, unix.SEEK_HOLE)
		if err != nil || hole <= off {
			return n + end - off, nil
		}
		hole = min(hole, end)
		n += hole - off
		off = hole
	}
	return n, nil
}

// copy copies the data, not the holes, of [off, end) of the backing file.
func (f *viewFile) copy(off, end int64) error {
	buf := make([]byte, min(copyChunk, end-off))
	for {
		if off = f.nextData(off, end); off >= end {
			return nil
		}
		chunk := buf[:min(int64(len(buf)), end-off)]
		got, err := preadAll(f.fd, chunk, off)
		if err != nil {
			return err
		}
		if got < len(chunk) {
			return io.ErrUnexpectedEOF
		}
		if err := f.reserve(int64(got)); err != nil {
			return err
		}
		if _, errno := writeAll(f.scratch, [][]byte{chunk}, off); errno != 0 {
			return errno
		}
		off += int64(got)
	}
}

// share makes [off, end) the scratch file's too without copying it, where the file
// system can (XFS, Btrfs; not ext4). What of it was not written to the disk yet
// would be now, so there must not be much of that either.
func (f *viewFile) share(off, end int64) error {
	var cached unix.Cachestat_t
	err := unix.Cachestat(uint(f.fd), &unix.CachestatRange{Off: uint64(off), Len: uint64(end - off)}, &cached, 0)
	if err != nil || int64(cached.Dirty+cached.Writeback)*int64(unix.Getpagesize()) > copyLimit {
		return errLongCopy // kernels before 6.5 do not say
	}
	// Whole blocks, or to the end of the file (0), which is in the last one, or beyond:
	// nothing was cut off that is not saved.
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	length := (end - off + blockSize - 1) &^ (blockSize - 1)
	if off+length > st.Size {
		length = 0
	}
	clone := unix.FileCloneRange{Src_fd: int64(f.fd), Src_offset: uint64(off), Src_length: uint64(length), Dest_offset: uint64(off)}
	if err := unix.IoctlFileCloneRange(f.scratch, &clone); err != nil {
		return errLongCopy
	}
	return f.reserve(end - off)
}

// reserve counts bytes that are about to go to scratch. It refuses them above the
// view's limit, and where the application needs the space.
func (f *viewFile) reserve(n int64) error {
	v := f.v
	n = (n + scratchUnit - 1) &^ (scratchUnit - 1)
	total := v.scratch.Add(n)
	f.used += n
	if total > v.limit {
		return &scratchFullError{v.limit}
	}
	if total/scratchCheck == (total-n)/scratchCheck && total != n {
		return nil
	}
	free, size, err := v.s.scratchSpace()
	if err != nil {
		return err
	}
	if free-n < min(scratchReserve, size/scratchShare) {
		return syscall.ENOSPC
	}
	return nil
}

// openScratch makes a file without a name: it is gone with its descriptor, also
// after a crash.
func (f *viewFile) openScratch() error {
	if f.scratch >= 0 {
		return nil
	}
	dir := int(f.v.s.opts.Dir.Scratch().Fd())
	fd, errno := openat(dir, ".", unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if errno == syscall.EOPNOTSUPP || errno == syscall.EISDIR || errno == syscall.ENOENT {
		name := "cut-" + strconv.FormatUint(f.v.number, 10) + "-" + strconv.Itoa(f.fd)
		if fd, errno = openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o600); errno == 0 {
			errno = errnoOf(unix.Unlinkat(dir, name, 0))
		}
	}
	if errno != 0 {
		return errno
	}
	if err := unix.Ftruncate(fd, f.size); err != nil {
		unix.Close(fd)
		return err
	}
	f.scratch = fd
	return nil
}
