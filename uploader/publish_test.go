package uploader

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/tree"
)

func TestFirstSnapshot(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("chroma.sqlite3", []byte("database"))
	w.write("seg/data_level0.bin", big("1"))
	w.write("seg/empty", nil)
	r := w.snapshot()
	if r.Files != 3 || r.Bytes != tree.MinPartSize+9 || r.BytesUploaded != r.Bytes || r.Sequence != 1 || !r.Published || r.Changed != 4 {
		t.Errorf("result %+v", r)
	}
	if got := w.published(); !maps.Equal(got, contents(w.files)) {
		t.Errorf("published %v", slices.Sorted(maps.Keys(got)))
	}
	w.checkTidy()
	if !w.j.Dirty().Empty() {
		t.Errorf("still dirty: %v", w.j.Dirty().Marks)
	}
	if w.log.count("snapshot published") != 1 {
		t.Error("not logged")
	}
}

// S4: what the store has is not sent again.
func TestOnlyDifferingPartsAreSent(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world)
		sent   int64
		copies int // whole and parts, but those to current
	}{
		"a part of a big file": {func(w *world) { w.write("big", big("22")) }, 2, 3},
		"a small file":         {func(w *world) { w.write("a", []byte("AA")) }, 2, 1},
		"a new file":           {func(w *world) { w.write("new", []byte("new")) }, 3, 2},
		"a removed file":       {func(w *world) { w.remove("a") }, 0, 1},
		"a mode":               {func(w *world) { w.chmod("a", 0o600) }, 0, 2},
		"an owner":             {func(w *world) { w.chown("a", 1000) }, 0, 2},
		"touched and changed": {func(w *world) {
			w.write("b", []byte("b"))
			w.write("a", []byte("A"))
		}, 1, 1},
		"everything marked": {func(w *world) {
			w.write("a", []byte("A"))
			if err := w.j.Mark(w.cut, "."); err != nil {
				w.t.Fatal(err)
			}
		}, 1, 1},
		"grown over a part": {func(w *world) { w.write("a", big("")) }, tree.MinPartSize, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t).open().takeover()
			w.write("a", []byte("a"))
			w.write("b", []byte("b"))
			if strings.Contains(name, "big") {
				w.write("big", big("1"))
			}
			w.snapshot()
			c.change(w)
			copies := 0
			w.store.Fail = func(op memstore.Op) error {
				if !op.After && (op.Kind == "copy" || op.Kind == "copy-part") && strings.HasPrefix(op.Key, "history/") {
					copies++
				}
				return nil
			}
			w.u.o.Parallel = 1 // copies is not locked
			r := w.snapshot()
			if r.BytesUploaded != c.sent || copies != c.copies {
				t.Errorf("sent %d bytes with %d copies, want %d with %d", r.BytesUploaded, copies, c.sent, c.copies)
			}
			if got := w.published(); !maps.Equal(got, contents(w.files)) {
				t.Error("the snapshot is not what is there")
			}
			w.checkTidy()
		})
	}
}

// S4: nothing dirty, or nothing that differs: nothing is stored.
func TestNothingToPublish(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("a"))
	w.write("dir/b", []byte("b"))
	first := w.snapshot()
	var ops []string
	w.store.Fail = func(op memstore.Op) error {
		if !op.After {
			ops = append(ops, op.Kind+" "+op.Key)
		}
		return nil
	}
	check := func(what string) {
		t.Helper()
		r := w.snapshot()
		if r.ID != first.ID || r.BytesUploaded != 0 || r.Published || r.Files != 2 || r.Bytes != 2 || r.Sequence != 1 {
			t.Errorf("%s: %+v", what, r)
		}
		if want := []string{"get " + history.HeadKey}; !slices.Equal(ops, want) {
			t.Errorf("%s: asked %v, want %v", what, ops, want)
		}
		if !w.j.Dirty().Empty() {
			t.Errorf("%s: still dirty", what)
		}
		ops = nil
	}
	check("nothing dirty")
	w.write("a", []byte("a"))
	w.write("new", []byte("gone at once"))
	w.remove("new")
	check("touched")
}

func TestEmptyStoreAndNothingToSave(t *testing.T) {
	w := newWorld(t).open().takeover()
	if r := w.snapshot(); r.ID != "" || r.Published {
		t.Errorf("%+v", r)
	}
}

// S2, S4: a source that is gone, changed or cannot be copied is replaced by the bytes.
func TestBytesAreSentWhereTheyCannotBeCopied(t *testing.T) {
	for name, spoil := range map[string]func(w *world, id history.ID){
		"gone": func(w *world, id history.ID) {
			if err := w.store.Delete(w.t.Context(), []string{history.ObjectKey(id, "a"), history.ObjectKey(id, "big")}); err != nil {
				w.t.Fatal(err)
			}
		},
		"another": func(w *world, id history.ID) {
			for _, path := range []string{"a", "big"} {
				if _, err := w.store.Put(w.t.Context(), history.ObjectKey(id, path), strings.NewReader("evil"), 4, objstore.PutOptions{}); err != nil {
					w.t.Fatal(err)
				}
			}
		},
		"unsupported": func(w *world, _ history.ID) {
			w.store.Fail = func(op memstore.Op) error {
				if strings.HasPrefix(op.Kind, "copy") && strings.HasPrefix(op.Key, "history/") {
					return objstore.ErrUnsupported
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t).open().takeover()
			w.keep = 1
			w.u = w.uploader(w.j)
			w.takeover()
			w.write("a", []byte("a"))
			w.write("big", big("1"))
			first := w.snapshot()
			spoil(w, first.ID)
			w.write("big", big("22"))
			r := w.snapshot()
			if want := int64(1 + tree.MinPartSize + 2); r.BytesUploaded != want {
				t.Errorf("sent %d bytes, want %d", r.BytesUploaded, want)
			}
			if got := w.published(); !maps.Equal(got, contents(w.files)) {
				t.Error("the snapshot is not what is there")
			}
			w.checkTidy()
			if w.log.count("cannot copy inside the store") == 0 {
				t.Error("not logged")
			}
		})
	}
}

// A directory that was wiped behind the journal's back is not published as such;
// one whose files were all removed is.
func TestWipedDirectoryIsNotPublished(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("a"))
	w.write("seg/data", []byte("data"))
	first := w.snapshot()
	w.write("a", []byte("A"))
	clear(w.files)
	if r, err := w.u.Snapshot(t.Context()); !errors.Is(err, ErrWiped) || exitcode.Hint(err) == "" {
		t.Errorf("%+v, %v", r, err)
	}
	if got := w.head().Newest.ID; got != first.ID {
		t.Errorf("the newest is %s, want %s", got, first.ID)
	}
	w.write("seg/data", nil)
	w.remove("seg/data")
	w.write("seg", nil)
	w.remove("seg")
	if r := w.snapshot(); r.ID == first.ID || r.Files != 0 {
		t.Errorf("%+v", r)
	}
}

// What is sent is what the manifest says, even where the journal was wrong.
func TestSilentlyChangedFileIsStoredAsItIs(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("before"))
	w.write("b", []byte("b"))
	first := w.snapshot()
	w.files["a"] = file{data: []byte("behind"), mode: 0o644}
	if err := w.store.Delete(t.Context(), []string{history.ObjectKey(first.ID, "a")}); err != nil {
		t.Fatal(err)
	}
	w.keep = 1
	w.u = w.uploader(w.j)
	w.takeover()
	w.write("b", []byte("B"))
	w.snapshot()
	if got := w.published(); !maps.Equal(got, contents(w.files)) {
		t.Errorf("published %v", got)
	}
	if w.log.count("nothing was known to have written") != 1 {
		t.Error("not logged")
	}
	w.checkTidy()
}

// H2, H3: the newest by sequence stay, also where the clock steps back.
func TestRotation(t *testing.T) {
	w := newWorld(t)
	base, steps := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), 0
	w.now = func() time.Time {
		steps++
		at := base.Add(time.Duration(steps) * time.Minute)
		if steps > 60 {
			at = at.Add(-48 * time.Hour)
		}
		return at
	}
	w.open().takeover()
	var ids []history.ID
	removed := 0
	for i := range 27 {
		w.write("a", fmt.Appendf(nil, "version %d", i))
		r := w.snapshot()
		ids = append(ids, r.ID)
		removed += r.Removed
	}
	if slices.IsSorted(ids) {
		t.Fatal("the clock did not step back")
	}
	h := w.head()
	if !slices.Equal(h.History, ids[3:]) || h.Sequence != 27 || h.Newest.ID != ids[26] || removed != 3 {
		t.Errorf("listed %v of %v, sequence %d, removed %d", h.History, ids, h.Sequence, removed)
	}
	w.published()
	w.checkTidy()
	if n := w.log.count("history rotated"); n != 3 {
		t.Errorf("%d rotations logged", n)
	}
}

// J2: what is written while a snapshot is uploaded is dirty afterwards, and in the next.
func TestWritesDuringAnUpload(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("before"))
	w.write("b", []byte("b"))
	before := contents(w.files)
	w.onCut = func() {
		w.write("a", []byte("after"))
		w.write("new", []byte("new"))
	}
	w.snapshot()
	w.onCut = nil
	if got := w.published(); !maps.Equal(got, before) {
		t.Errorf("published %v, want the instant of the cut, %v (S1)", got, before)
	}
	d := w.j.Dirty()
	if !d.Covers("a") || !d.Covers("new") || d.Covers("b") {
		t.Errorf("dirty %v", d.Marks)
	}
	w.snapshot()
	if got := w.published(); !maps.Equal(got, contents(w.files)) {
		t.Errorf("published %v", got)
	}
	w.checkTidy()
}

// S2: a view that did not hold is not published.
func TestViewThatDidNotHold(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("a"))
	first := w.snapshot()
	w.write("a", []byte("b"))
	broken := errors.New("something wrote to it")
	w.verify = func() error { return broken }
	if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, broken) {
		t.Errorf("snapshot: %v", err)
	}
	if w.head().Newest.ID != first.ID || w.j.Dirty().Empty() {
		t.Error("published all the same")
	}
	w.verify = nil
	w.snapshot()
	w.checkTidy()
}

// The list was shortened by `history clear` meanwhile: its list is taken over.
func TestClearBetweenCutAndPublication(t *testing.T) {
	w := newWorld(t).open().takeover()
	var ids []history.ID
	for i := range 3 {
		w.write("a", fmt.Appendf(nil, "%d", i))
		ids = append(ids, w.snapshot().ID)
	}
	w.onCut = func() {
		if n, err := w.catalog().Clear(t.Context()); err != nil || n != 2 {
			t.Errorf("clear: %d, %v", n, err)
		}
	}
	w.write("a", []byte("last"))
	r := w.snapshot()
	if h := w.head(); !slices.Equal(h.History, []history.ID{ids[2], r.ID}) || h.Sequence != 4 {
		t.Errorf("list %v, sequence %d", h.History, h.Sequence)
	}
	w.checkTidy()
}
