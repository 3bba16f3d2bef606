package history

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
)

func TestHole(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 5*holeBlock + 100
	want := bytes.Repeat([]byte{7}, size)
	if _, err := f.Write(want); err != nil {
		t.Fatal(err)
	}
	h := &hole{f: f, off: 50, length: 4 * holeBlock, dirty: true}
	part := make([]byte, h.length)
	part[holeBlock] = 1
	for range 2 { // the second write begins anew
		if err := h.write(part[:holeBlock+77], 50); err != nil {
			t.Fatal(err)
		}
		if err := h.write(part[holeBlock+77:], 50+holeBlock+77); err != nil {
			t.Fatal(err)
		}
		copy(want[50:], part)
		got := make([]byte, size)
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("the file is wrong (%v)", err)
		}
		rand.Read(part)
	}
	clear(part)
	if err := h.reset(); err != nil {
		t.Fatal(err)
	}
	copy(want[50:], part)
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("reset: the file is wrong (%v)", err)
	}
}
