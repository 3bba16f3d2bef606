package file

import (
	"bytes"
	"io"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// hollow is a body of zeros with data at some places.
type hollow map[int64]byte

func (h hollow) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at, b := range h {
		if at >= off && at < off+int64(len(p)) {
			p[at-off] = b
		}
	}
	return len(p), nil
}

func (h hollow) NextData(off, end int64) int64 {
	for at := range h {
		if at >= off && at < end {
			end = at
		}
	}
	return end
}

func (h hollow) Allocated() (int64, error) { return 0, nil }

// TestHolesStayHoles: a sparse body takes next to nothing in the store, however it
// comes there, and reads as what it is. 1 TiB is not written in a second.
func TestHolesStayHoles(t *testing.T) {
	s := newStore(t)
	const size, grid = 1 << 40, 1 << 38
	data := hollow{0: 1, 5 << 30: 2, grid: 3, 3*grid + 7: 4, size - 1: 5}
	check := func(key string, data hollow, size int64) {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(s.dir, key), &st); err != nil || st.Size != size || st.Blocks*512 > 8*look {
			t.Fatalf("%s: %d bytes, %d on disk, %v", key, st.Size, st.Blocks*512, err)
		}
		for at, b := range data {
			body, _, err := s.Get(t.Context(), key, objstore.GetOptions{Offset: at, Length: 1})
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			body.Close()
			if err != nil || !bytes.Equal(got, []byte{b}) {
				t.Errorf("%s: %v at %d, want %d (%v)", key, got, at, b, err)
			}
		}
	}
	whole, err := s.Put(t.Context(), "whole", data, size, objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	check("whole", data, size)
	if _, err := s.Copy(t.Context(), "copy", whole, objstore.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	check("copy", data, size)

	up, err := s.NewUpload(t.Context(), "parts")
	if err != nil {
		t.Fatal(err)
	}
	full := bytes.NewReader(bytes.Repeat([]byte{9}, 1<<20))
	for _, do := range []func() error{
		func() error { return up.CopyPart(t.Context(), 4, whole, 3*grid, grid) }, // before the grid is known
		func() error { return up.PutPart(t.Context(), 1, data, 0, grid) },
		func() error { return up.PutPart(t.Context(), 3, tree.Zeros{}, 0, grid) },
		func() error { return up.PutPart(t.Context(), 2, full, 0, 1<<20) }, // a try that ended early
		func() error { return up.CopyPart(t.Context(), 2, whole, grid, grid) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := up.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := hollow{grid + 1: 0, grid + 1<<20 - 1: 0} // of what was there first nothing is left
	for at, b := range data {
		after[at] = b
	}
	check("parts", after, size)

	for off, want := range map[int64]bool{2 * grid: true, 3 * grid: false} {
		body, _, err := s.Get(t.Context(), "parts", objstore.GetOptions{Offset: off, Length: grid})
		if err != nil {
			t.Fatal(err)
		}
		if got := body.(objstore.Sparse).Zeros(); got != want {
			t.Errorf("zeros from %d on: %v", off, got)
		}
		body.Close()
	}
}
