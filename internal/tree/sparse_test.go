package tree

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// holey makes a file of size bytes with data at some places, and returns what it holds.
func holey(t *testing.T, r *rand.Rand, size int) (*os.File, []byte) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	for range r.IntN(6) {
		off := r.IntN(size)
		p := bytes.Repeat([]byte{byte(1 + r.IntN(255))}, min(size-off, 1+r.IntN(300_000)))
		copy(want[off:], p)
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return f, want
}

// Whatever is a hole, the hash is that of the bytes; and so it is of any range.
func TestHashPartOfHoles(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 60 {
		size := 1 + r.IntN(2<<20)
		f, want := holey(t, r, size)
		for range 10 {
			off := r.IntN(size)
			length := r.IntN(size - off + 1)
			got, err := HashPart(f, int64(off), int64(length))
			if err != nil || got != sha256.Sum256(want[off:off+length]) {
				t.Fatalf("[%d, %d) of %d: %v, %v", off, off+length, size, got, err)
			}
		}
		if _, err := HashPart(f, int64(size)-1, 2); err == nil {
			t.Fatalf("a byte more than a file of %d bytes has was hashed", size)
		}
	}
	f, _ := holey(t, r, 1000)
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := HashPart(f, 0, 1); err == nil {
		t.Fatal("nothing was taken for a hole")
	}
}

// counted counts what is read.
type counted struct {
	*os.File
	read int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.read += int64(len(p))
	return c.File.ReadAt(p, off)
}
func (c *counted) NextData(off, end int64) int64 { return NextData(c.File, off, end) }
func (c *counted) Allocated() (int64, error)     { return AllocatedFile(int(c.Fd())) }

// Holes are not read: a TiB with two blocks in it takes no time.
func TestHolesAreNotRead(t *testing.T) {
	f, _ := holey(t, rand.New(rand.NewPCG(1, 1)), 1)
	const size = 1 << 40
	for _, off := range []int64{0, 1 << 39} {
		if _, err := f.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	c := &counted{File: f}
	sums, err := HashParts(t.Context(), c, size, PartSize(size))
	if err != nil {
		t.Fatal(err)
	}
	if c.read > 4*hashChunk {
		t.Errorf("%d bytes were read of two blocks", c.read)
	}
	rec := Record{Entry: Entry{Size: size}, PartSize: PartSize(size), Parts: sums}
	for i := range sums {
		if rec.IsZeroPart(i) != (i != 0 && i != len(sums)/2) {
			t.Fatalf("part %d of %d is zeros: %v", i, len(sums), rec.IsZeroPart(i))
		}
	}
	if n, ok, err := Allocated(c); !ok || err != nil || n == 0 || n > 1<<20 {
		t.Errorf("%d bytes are allocated, %v, %v", n, ok, err)
	}
	if _, ok, _ := Allocated(io.NewSectionReader(f, 0, 1)); ok {
		t.Error("what knows nothing of a disk said what it takes there")
	}
}

func TestMakeZeros(t *testing.T) {
	for name, zero := range map[string]func(f *os.File, off, length int64) error{"punched": MakeZeros, "overwritten": overwrite} {
		f, _ := holey(t, rand.New(rand.NewPCG(1, 1)), 1)
		want := bytes.Repeat([]byte{7}, 500_000)
		if _, err := f.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		for _, r := range [][2]int64{{77, 200_000}, {400_000, 200_000}, {600_000, 5}, {3, 0}} {
			if err := zero(f, r[0], r[1]); err != nil {
				t.Fatalf("%s %v: %v", name, r, err)
			}
			if r[0] < int64(len(want)) {
				clear(want[r[0]:min(r[0]+r[1], int64(len(want)))])
			}
		}
		got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the file is wrong (%d bytes, %v)", name, len(got), err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || name == "punched" && st.Blocks*512 > 300_000 {
			t.Errorf("%s: %d bytes on disk, %v", name, st.Blocks*512, err)
		}
	}
}

func TestZeroHash(t *testing.T) {
	for _, n := range []int64{0, 1, 100_000, MinPartSize, 2 * MinPartSize, MinPartSize} {
		if got, want := ZeroHash(n), Hash(sha256.Sum256(make([]byte, n))); got != want {
			t.Errorf("%d zeros: %s, want %s", n, got, want)
		}
	}
}
