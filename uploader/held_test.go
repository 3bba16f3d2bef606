package uploader

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// What the store does not have is read once: to be hashed, sent and noted in the
// manifest all from memory.
func TestNewFilesAreReadOnce(t *testing.T) {
	k := newKnowing(t)
	files := map[string][]byte{"big": parts("abc", 10), "part": parts("a", whole), "small": []byte("x"), "empty": nil}
	var want int64
	for name, content := range files {
		k.write(name, content)
		want += int64(len(content))
	}
	k.snapshot()
	if read, _, _ := k.take(); read != want {
		t.Errorf("%d bytes were read, want %d", read, want)
	}
	for name, content := range files {
		k.expect(name, content)
	}
}

// A file that a failed snapshot began to send is hashed anew by the next one.
func TestNewFilesAreHashedByEachAttempt(t *testing.T) {
	k := newKnowing(t)
	k.write("big", parts("abc", 10))
	k.store.Fail = func(op memstore.Op) error {
		if op.Kind == "complete" {
			return errInjected
		}
		return nil
	}
	if _, err := k.u.Snapshot(t.Context()); !errors.Is(err, errInjected) {
		t.Fatalf("the snapshot ended with %v", err)
	}
	k.store.Fail = nil
	k.write("big", parts("aXc", 10))
	k.snapshot()
	k.expect("big", parts("aXc", 10))
}

// What is held reads as the file does, within its range.
func TestHeldReads(t *testing.T) {
	h := &held{b: []byte("hello"), off: 100}
	b, err := io.ReadAll(io.NewSectionReader(h, 101, 3))
	if err != nil || string(b) != "ell" {
		t.Errorf("%q, %v", b, err)
	}
	if n, err := h.ReadAt(make([]byte, 9), 102); n != 3 || err != io.EOF {
		t.Errorf("a read past the end: %d, %v", n, err)
	}
	for _, off := range []int64{0, 99, 106} {
		if _, err := h.ReadAt(make([]byte, 1), off); err == nil || err == io.EOF {
			t.Errorf("a read at %d: %v", off, err)
		}
	}
	h.sum, _ = tree.HashPart(bytes.NewReader(h.b), 0, 5)
	if sum, known := h.SHA256(100, 5); !known || sum != [32]byte(h.sum) {
		t.Errorf("the sum is %x, %v", sum, known)
	}
	if _, known := h.SHA256(100, 4); known {
		t.Error("the sum of a part of it is claimed to be known")
	}
}
