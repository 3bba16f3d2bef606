package uploader

import (
	"context"
	"errors"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/tree"
)

const part = tree.MinPartSize

// sparse returns content of n parts, zeros but for the ones that are named.
func sparse(n int, data ...int) []byte {
	b := make([]byte, n*part-100)
	for _, i := range data {
		b[i*part+5] = byte(i + 1)
	}
	return b
}

// S4: of what is nothing but zeros one part goes over the wire, the rest is copied
// inside the store; a store that cannot gets all of it. Either way the folder holds
// whole files and nothing else.
func TestZerosAreNotSent(t *testing.T) {
	for name, c := range map[string]struct {
		fail  func(op memstore.Op) error
		sent  int64 // of a file of three parts with data in the last, which is short
		grown int64 // after it grew by two parts of zeros
	}{
		"copied": {nil, 2*part - 100, 2*part - 100},
		"a store without part copy": {func(op memstore.Op) error {
			if op.Kind == "copy-part" {
				return objstore.ErrUnsupported
			}
			return nil
		}, 4*part - 100, 5*part - 100}, // one to find that out
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t).open().takeover()
			w.u.o.Parallel = 1 // how much is sent before a store says that it cannot copy
			w.store.Fail = c.fail
			w.write("seg/link_lists.bin", sparse(3, 2))
			if r := w.snapshot(); r.BytesUploaded != c.sent {
				t.Errorf("sent %d bytes, want %d", r.BytesUploaded, c.sent)
			}
			w.write("seg/link_lists.bin", sparse(5, 2))
			if r := w.snapshot(); r.BytesUploaded != c.grown {
				t.Errorf("grown: sent %d bytes, want %d", r.BytesUploaded, c.grown)
			}
			if got := w.published(); !maps.Equal(got, contents(w.files)) {
				t.Error("the snapshot is not what is there")
			}
			w.checkTidy()
		})
	}
}

// One part of zeros is sent: an object to copy it from would cost the same.
func TestOnePartOfZerosIsSent(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.store.Fail = func(op memstore.Op) error {
		if strings.Contains(op.Key, "zeros") || op.Kind == "copy-part" {
			return errInjected
		}
		return nil
	}
	w.write("a", sparse(2, 1))
	if r := w.snapshot(); r.BytesUploaded != 2*part-100 {
		t.Errorf("sent %d bytes", r.BytesUploaded)
	}
	w.checkTidy()
}

// Whatever fails of it, nothing is published, and the next attempt leaves no litter.
func TestEveryStepOfZerosMayFail(t *testing.T) {
	for kind, after := range map[string]bool{"put": false, "copy-part": true, "delete": false} {
		w := newWorld(t).open().takeover()
		w.write("a", sparse(3, 2))
		hit := false
		w.store.Fail = func(op memstore.Op) error {
			if op.Kind == kind && op.After == after && (kind == "copy-part" || strings.Contains(op.Key, "zeros")) {
				hit = true
				return errInjected
			}
			return nil
		}
		w.u.o.Parallel = 1
		if _, err := w.u.Snapshot(t.Context()); !hit || !errors.Is(err, errInjected) {
			t.Fatalf("%s after=%v: hit %v, %v", kind, after, hit, err)
		}
		w.store.Fail = nil
		w.snapshot()
		if got, _ := w.get(history.CurrentKey("a")); got != string(w.files["a"].data) {
			t.Errorf("%s: the snapshot is not what is there", kind)
		}
		w.checkTidy()
	}
}

// A key that may not delete: snapshots go on, and the old ones pile up as before.
func TestZerosThatMayNotBeDeleted(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.store.Fail = func(op memstore.Op) error {
		if op.Kind == "delete" {
			return objstore.ErrRefused
		}
		return nil
	}
	w.write("a", sparse(3, 2))
	r := w.snapshot()
	if got := w.published(); !maps.Equal(got, contents(w.files)) {
		t.Error("the snapshot is not what is there")
	}
	if _, ok := w.get(history.ZerosKey(r.ID, part)); !ok || w.log.count("stays in the snapshot's folder") != 1 {
		t.Error("not logged")
	}
}

// hollow is a file of a view of any size, with one byte of data and so much on disk.
type hollow struct {
	size, allocated int64
	read            *int
}

func (h hollow) ReadAt(p []byte, off int64) (int, error) {
	*h.read++
	clear(p)
	return len(p), nil
}
func (h hollow) NextData(off, end int64) int64 { return end }
func (h hollow) Allocated() (int64, error)     { return h.allocated, nil }
func (h hollow) Close() error                  { return nil }

// hollowView is a memView with one file replaced.
type hollowView struct {
	*memView
	hollow
}

func (v hollowView) Close() error { return nil }
func (v hollowView) Entries() []tree.Entry {
	return []tree.Entry{{Path: "seg", Type: tree.Dir, Mode: 0o755, Nlink: 2}, {Path: "seg/link_lists.bin", Type: tree.File, Mode: 0o644, Size: v.size, Inode: 1, Nlink: 1}}
}

func (v hollowView) Open(path string) (tree.Reader, error) {
	if path != "seg/link_lists.bin" {
		return nil, os.ErrNotExist
	}
	return v.hollow, nil
}

// A file above the limit that is mostly holes is refused, with all that a person needs,
// before anything is read or asked of the store; one that is dense is not.
func TestAHollowFileIsRefused(t *testing.T) {
	const tib = 1 << 40
	for name, c := range map[string]struct {
		size, allocated, limit int64
		refused                bool
	}{
		"chroma 7510":      {2111062325330, 231 << 30, 64 << 30, true},
		"below the limit":  {2 * part, 0, 2 * part, false},
		"above it":         {2*part + 1, 0, 2 * part, true},
		"dense":            {tib, tib / 2, 64 << 30, false},
		"just not dense":   {tib, tib/2 - 1, 64 << 30, true},
		"without a limit":  {tib, 0, 0, false},
		"a smaller limit":  {3 * part, part, part, true},
		"dense above that": {3 * part, 2 * part, part, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t).open().takeover()
			read := 0
			w.u.o.MaxSparse = c.limit
			w.u.o.Cut = func(ctx context.Context) (View, error) {
				v, err := w.takeCut(ctx)
				return hollowView{v.(*memView), hollow{c.size, c.allocated, &read}}, err
			}
			if err := w.j.Mark(w.cut, "seg"); err != nil {
				t.Fatal(err)
			}
			stop := errors.New("it was not refused")
			var asked []string
			w.store.Fail = func(op memstore.Op) error {
				if op.Kind == "get" || op.Kind == "list" { // whether we are still the writer
					return nil
				}
				asked = append(asked, op.Kind+" "+op.Key)
				return stop
			}
			_, err := w.u.Snapshot(t.Context())
			if !c.refused {
				if !errors.Is(err, stop) {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			var e *SparseError
			if !errors.As(err, &e) || !errors.Is(err, ErrSparse) || e.Path != "seg/link_lists.bin" || e.Size != c.size || e.Allocated != c.allocated {
				t.Fatalf("not refused: %v", err)
			}
			if read > 0 || len(asked) > 0 {
				t.Errorf("it cost %d reads and %q", read, asked)
			}
			status := w.u.Status().LastError
			for _, say := range []string{"seg/link_lists.bin", sizeText(c.size), sizeText(c.allocated), "--max-file-size " + sizeText(ceil(c.size)), "collection"} {
				if !strings.Contains(status, say) {
					t.Errorf("status says nothing of %q: %s", say, status)
				}
			}
			if exitcode.Hint(err) == "" || exitcode.Of(err) != exitcode.Failed {
				t.Errorf("exit code %d, hint %q", exitcode.Of(err), exitcode.Hint(err))
			}
		})
	}
}

func TestSizeText(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1KiB", 64 << 30: "64GiB", 2111062325330: "1.92TiB", 1 << 62: "4EiB"} {
		if got := sizeText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for n, want := range map[int64]string{1: "1B", 2111062325330: "2TiB", 1<<40 + 1: "2TiB", 1 << 40: "1TiB", 1025: "2KiB"} {
		if got := sizeText(ceil(n)); got != want {
			t.Errorf("%d rounded up: %s, want %s", n, got, want)
		}
	}
}
