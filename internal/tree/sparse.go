package tree

import (
	"crypto/sha256"
	"hash"
	"io"
	"math/bits"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Sparse is a reader that knows its holes.
type Sparse interface {
	io.ReaderAt
	// NextData returns where in [off, end) data begins, end if there is none. What
	// lies before it reads as zeros. off is a right answer always.
	NextData(off, end int64) int64
	// Allocated returns how many bytes the file takes on disk.
	Allocated() (int64, error)
}

// NextData returns where in [off, end) of r data may begin; see Sparse. A reader that
// knows no holes is data throughout.
func NextData(r io.ReaderAt, off, end int64) int64 {
	switch r := r.(type) {
	case *os.File:
		return SeekData(int(r.Fd()), off, end)
	case Sparse:
		return r.NextData(off, end)
	}
	return off
}

// SeekData is NextData of a descriptor. What a file is too short for is no hole.
func SeekData(fd int, off, end int64) int64 {
	data, err := unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case err == nil:
		return min(data, end)
	case err != unix.ENXIO:
		return off // not every file system knows holes
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Size < end {
		return off
	}
	return end
}

// Allocated returns how many bytes an open file takes on disk; ok is false where
// that is not known.
func Allocated(r io.ReaderAt) (n int64, ok bool, err error) {
	switch r := r.(type) {
	case *os.File:
		n, err := AllocatedFile(int(r.Fd()))
		return n, err == nil, err
	case Sparse:
		n, err := r.Allocated()
		return n, err == nil, err
	}
	return 0, false, nil
}

// AllocatedFile is Allocated of a descriptor.
func AllocatedFile(fd int) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Blocks * 512, nil
}

// MakeZeros makes [off, off+length) of a file zeros without changing its size: a hole
// where the file system has holes. Of what lies beyond its end it does nothing.
func MakeZeros(f *os.File, off, length int64) error {
	if NextData(f, off, off+length) == off+length {
		return nil
	}
	err := error(unix.EINTR) // a signal of the runtime's
	for err == unix.EINTR {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
	}
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		err = overwrite(f, off, length)
	}
	if err != nil {
		return &os.PathError{Op: "punch a hole in", Path: f.Name(), Err: err}
	}
	return nil
}

func overwrite(f *os.File, off, length int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	for end := min(off+length, info.Size()); off < end; {
		n, err := f.WriteAt(zeroBlock[:min(int64(len(zeroBlock)), end-off)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// Zeros is an endless file of zeros, all of it a hole.
type Zeros struct{}

// ReadAt implements io.ReaderAt.
func (Zeros) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// NextData implements Sparse.
func (Zeros) NextData(_, end int64) int64 { return end }

// Allocated implements Sparse.
func (Zeros) Allocated() (int64, error) { return 0, nil }

var zeroBlock [64 << 10]byte

// zeroHashes remembers the hash of each size of zeros that parts have.
var zeroHashes struct {
	sync.Mutex
	known map[int64]Hash
}

// ZeroHash returns the SHA-256 of length zeros. That of a whole part is computed once;
// it takes as long as hashing that much does.
func ZeroHash(length int64) Hash {
	if length < MinPartSize || bits.OnesCount64(uint64(length)) != 1 {
		return hashZeros(length)
	}
	zeroHashes.Lock()
	defer zeroHashes.Unlock()
	sum, ok := zeroHashes.known[length]
	if !ok {
		if zeroHashes.known == nil {
			zeroHashes.known = map[int64]Hash{}
		}
		sum = hashZeros(length)
		zeroHashes.known[length] = sum
	}
	return sum
}

func hashZeros(length int64) Hash {
	h := sha256.New()
	writeZeros(h, length)
	return Hash(h.Sum(nil))
}

func writeZeros(h hash.Hash, length int64) {
	for length > 0 {
		n := min(length, int64(len(zeroBlock)))
		h.Write(zeroBlock[:n])
		length -= n
	}
}

// IsZeroPart reports whether part i of a file of several is a whole one that holds
// nothing but zeros, by its hash.
func (r *Record) IsZeroPart(i int) bool {
	const most = 1 << 30 // what is hashed to find out; only files above 10 TiB have bigger parts
	_, length := PartRange(r.Size, r.PartSize, i)
	return len(r.Parts) > 1 && length == r.PartSize && length <= most && length == PartSize(r.Size) &&
		r.Parts[i] == ZeroHash(length)
}
