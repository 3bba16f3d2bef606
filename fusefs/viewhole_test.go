package fusefs

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/tree"
)

// Whatever is written, punched and cut off after the cut, the holes that a view knows
// are those of the cut: S1 for readers that skip them.
func TestHolesOfAViewAreThoseOfTheCut(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	fx := mounted(t)
	const size = 40*blockSize + 123
	for range 8 {
		f := openWrite(t, in(fx.mnt, "f"), nil)
		must(t, f.Truncate(0))
		must(t, f.Truncate(size))
		want := make([]byte, size)
		put := func(to []byte) {
			off := r.IntN(size)
			p := bytes.Repeat([]byte{byte(1 + r.IntN(255))}, min(size-off, 1+r.IntN(3*blockSize)))
			_, err := f.WriteAt(p, int64(off))
			must(t, err)
			copy(to[min(off, len(to)):], p)
		}
		for range r.IntN(5) {
			put(want)
		}
		must(t, f.Sync())
		cutOnce(t, fx, func(v *View) {
			file, err := v.Open("f")
			must(t, err)
			defer file.Close()
			same(t, file, want)
			for range 6 {
				switch r.IntN(4) {
				case 0:
					must(t, f.Truncate(int64(r.IntN(size))))
					must(t, f.Truncate(size))
				case 1:
					off := int64(r.IntN(size))
					must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, size-off))
				default:
					put(nil)
				}
				must(t, f.Sync())
				same(t, file, want)
			}
		})
		must(t, f.Close())
	}
}

// same compares a file of a view with what it held at the cut, by its bytes and by
// hashes that skip its holes.
func same(t *testing.T, f io.ReaderAt, want []byte) {
	t.Helper()
	size := int64(len(want))
	for off := int64(0); off < size; off += 3*blockSize + 1000 {
		end := min(off+3*blockSize+1000, size)
		sum, err := tree.HashPart(f, off, end-off)
		if err != nil || sum != sha256.Sum256(want[off:end]) {
			t.Fatalf("[%d, %d) is not what it was at the cut: %v", off, end, err)
		}
	}
	sparse, ok := f.(tree.Sparse)
	if !ok {
		t.Fatal("a file of a view knows no holes")
	}
	if n, err := sparse.Allocated(); err != nil || bytes.Count(want, []byte{0}) < len(want) && n == 0 {
		t.Fatalf("%d bytes are on disk, %v", n, err)
	}
}

// A view that was given up knows nothing.
func TestHolesOfAnAbandonedView(t *testing.T) {
	fx := mounted(t, func(o *Options) { o.ScratchLimit.Bytes = 1 })
	f := openWrite(t, in(fx.mnt, "f"), nil)
	_, err := f.WriteAt([]byte("data"), 1<<20)
	must(t, err)
	must(t, f.Sync())
	cutOnce(t, fx, func(v *View) {
		file, err := v.Open("f")
		must(t, err)
		defer file.Close()
		if got := tree.NextData(file, 0, 1<<20+4); got < 1<<19 || got > 1<<20 {
			t.Errorf("data begins at %d", got)
		}
		_, err = f.WriteAt([]byte("more"), 1<<20)
		must(t, err)
		must(t, f.Sync())
		eventually(t, "the view is given up", func() bool { return v.err() != nil })
		if got := tree.NextData(file, 0, 1<<20+4); got != 0 {
			t.Errorf("an abandoned view says that data begins at %d", got)
		}
		if _, err := tree.HashPart(file, 0, 1<<19); err == nil {
			t.Error("a part of it was hashed")
		}
	})
	must(t, f.Close())
	must(t, os.Remove(in(fx.mnt, "f")))
}
