package history

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// TestRotate: H2.
func TestRotate(t *testing.T) {
	ids := []ID{"a", "b", "c"}
	for keep, want := range map[int]int{-1: 1, 0: 1, 1: 1, 2: 2, 3: 3, 24: 3} {
		kept, removed := Rotate(ids, keep)
		if len(kept) != want || !slices.Equal(slices.Concat(removed, kept), ids) {
			t.Errorf("Rotate(%d): %v, %v", keep, kept, removed)
		}
	}
	kept, removed := Rotate(nil, 3)
	if len(kept) != 0 || len(removed) != 0 {
		t.Errorf("Rotate of nothing: %v, %v", kept, removed)
	}
}

// TestRotationIgnoresClocks: H2, 27 publications with the clock stepped back in the
// middle keep the last 24 by sequence.
func TestRotationIgnoresClocks(t *testing.T) {
	w := newWorld(t)
	var all []ID
	for i := range 27 {
		if i == 13 {
			w.now = w.now.Add(-1000 * time.Hour)
		}
		m := w.publish(files{"a": strings.Repeat("x", i)})
		all = append(all, m.ID)
		kept, removed := Rotate(w.head.History, 24)
		w.head.History, w.head.Nonce = kept, nonce(t)
		etag, _, err := w.c.swap(t.Context(), w.head, w.etag)
		if err != nil {
			t.Fatal(err)
		}
		w.etag = etag
		for _, id := range removed {
			if err := w.c.Remove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	h, _, err := w.c.Head(t.Context())
	if err != nil || !slices.Equal(h.History, all[3:]) {
		t.Fatalf("listed: %v, %v", h.History, err)
	}
	found, err := w.c.scan(t.Context(), HistoryPrefix)
	if err != nil || len(found.folders) != 24 {
		t.Fatalf("%d stored, %v", len(found.folders), err)
	}
	for _, id := range all[3:] {
		if _, err := w.c.Verify(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// TestRemoveRefusesTheList: H3, and the newest is never removed (H2).
func TestRemoveRefusesTheList(t *testing.T) {
	w := newWorld(t)
	a := w.publish(files{"a": "1"})
	w.publish(files{"a": "2"})
	before := w.objects("")
	for _, id := range w.head.History {
		if err := w.c.Remove(t.Context(), id); err == nil {
			t.Errorf("a listed snapshot was removed")
		}
	}
	w.delete(HeadKey)
	if err := w.c.Remove(t.Context(), a.ID); !errors.Is(err, ErrHeadLost) {
		t.Errorf("Remove without a head: %v", err)
	}
	delete(before, HeadKey)
	sameTree(t, "the store", w.objects(""), before)
}

func TestRemove(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	before := w.objects("")
	gone, _ := w.upload(files{"a": "2", "b/c": "3"})
	near, _ := w.upload(files{"a": "4"})
	for _, key := range []string{ObjectKey(gone.ID, "big"), ObjectKey(near.ID, "big")} {
		if _, err := w.store.NewUpload(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // idempotent
		if err := w.c.Remove(t.Context(), gone.ID); err != nil {
			t.Fatal(err)
		}
	}
	uploads, err := w.store.Uploads(t.Context(), "")
	if err != nil || len(uploads) != 1 || uploads[0].Key != ObjectKey(near.ID, "big") {
		t.Fatalf("uploads: %+v, %v", uploads, err)
	}
	if err := w.c.Remove(t.Context(), near.ID); err != nil {
		t.Fatal(err)
	}
	sameTree(t, "the store", w.objects(""), before)
}

func TestClear(t *testing.T) {
	w := newWorld(t)
	if _, err := w.c.Clear(t.Context()); !errors.Is(err, ErrNoBackup) {
		t.Fatalf("Clear of nothing: %v", err)
	}
	for i := range 5 {
		w.publish(files{"a": strings.Repeat("x", i)})
	}
	n, err := w.c.Clear(t.Context())
	if err != nil || n != 4 {
		t.Fatalf("Clear: %d, %v", n, err)
	}
	h, _, err := w.c.Head(t.Context())
	if err != nil || !slices.Equal(h.History, []ID{w.last.ID}) || h.Epoch != w.head.Epoch || h.Writer != w.head.Writer {
		t.Fatalf("head: %+v, %v", h, err)
	}
	if _, err := w.c.Verify(t.Context(), w.last.ID); err != nil {
		t.Fatal(err)
	}
	found, err := w.c.scan(t.Context(), HistoryPrefix)
	if err != nil || len(found.folders) != 1 {
		t.Fatalf("%d snapshots stored, %v", len(found.folders), err)
	}
	if n, err := w.c.Clear(t.Context()); err != nil || n != 0 {
		t.Fatalf("Clear again: %d, %v", n, err)
	}
}

// A publication between Clear's look and its swap is merged, not lost.
func TestClearDuringAPublication(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	w.publish(files{"a": "2"})
	done := false
	w.fail(func(op memstore.Op) error {
		if op.Kind == "put" && op.Key == HeadKey && !op.After && !done {
			done = true
			w.publish(files{"a": "3"})
		}
		return nil
	})
	n, err := w.c.Clear(t.Context())
	if err != nil || n != 2 {
		t.Fatalf("Clear: %d, %v", n, err)
	}
	if h, _, err := w.c.Head(t.Context()); err != nil || !slices.Equal(h.History, []ID{w.last.ID}) {
		t.Fatalf("head: %+v, %v", h, err)
	}
}

// TestPrune: H3, what a crash leaves is collected; nothing else is.
func TestPrune(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	w.publish(files{"a": "2"})
	litter, _ := w.upload(files{"a": "3", "b": "4567"})
	half := w.manifestOf(files{})
	w.put(ObjectKey(half.ID, "x"), "8")
	branch, torn := litter.ID+"-branch-1", litter.ID+"-branch-2"
	w.put(ObjectKey(branch, "x"), "9")
	w.put(ManifestKey(branch), "what makes it complete")
	w.put(ObjectKey(torn, "x"), "9")
	w.put("history/notes/readme", "mine")
	w.put("elsewhere", "mine too")
	for _, key := range []string{ObjectKey(w.last.ID, "big"), ObjectKey(torn, "big"), "big"} {
		if _, err := w.store.NewUpload(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	w.now = w.now.Add(DefaultPruneAge)
	fresh, _ := w.upload(files{"a": "5"})
	late := w.manifestOf(files{}) // an old id, still being written
	late.ID = ID("20200101T000000.000Z-0000")
	w.put(ObjectKey(late.ID, "x"), "y")
	want := w.objects("")
	for key := range want {
		if strings.HasPrefix(key, SnapshotPrefix(litter.ID)) || strings.HasPrefix(key, SnapshotPrefix(half.ID)) || strings.HasPrefix(key, SnapshotPrefix(torn)) {
			delete(want, key)
		}
	}

	if report, err := w.c.Prune(t.Context(), w.now.Add(-time.Hour), DefaultPruneAge); err != nil || len(report.Removed) > 0 || report.Uploads > 0 {
		t.Fatalf("Prune before the age: %+v, %v", report, err)
	}
	report, err := w.c.Prune(t.Context(), w.now, DefaultPruneAge)
	if err != nil {
		t.Fatal(err)
	}
	same := func(what string, got, want []ID) {
		t.Helper()
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	same("removed", report.Removed, []ID{litter.ID, torn, half.ID})
	same("spared", report.Spared, []ID{fresh.ID, late.ID})
	same("branches", report.Branches, []ID{branch})
	if !slices.Equal(report.Unknown, []string{"notes"}) || report.Uploads != 2 || report.Bytes < 6 {
		t.Errorf("report: %+v", report)
	}
	sameTree(t, "the store", w.objects(""), want)
	if uploads, err := w.store.Uploads(t.Context(), ""); err != nil || len(uploads) > 0 {
		t.Errorf("uploads: %+v, %v", uploads, err)
	}
	w.delete(HeadKey)
	if _, err := w.c.Prune(t.Context(), w.now.Add(1000*time.Hour), 0); !errors.Is(err, ErrHeadLost) {
		t.Errorf("Prune without a head: %v", err)
	}
}

// TestCurrent: current follows the newest snapshot, and touches nothing else.
func TestCurrent(t *testing.T) {
	w := newWorld(t)
	w.put("stranger", "stays")
	var copies atomic.Int32
	w.fail(func(op memstore.Op) error {
		if op.Kind == "copy" && !op.After {
			copies.Add(1)
		}
		return nil
	})
	for i, step := range []struct {
		tree   files
		copies int
	}{
		{files{"a": "1", "b/c": "2", "manifest.json": "3", "x": "file"}, 4},
		{files{"a": "1", "b/c": "22", "manifest.json": "3", "x/y": "in a folder"}, 2},
		{files{"a": "1", "x": "file again", "l": "-> a", "d/": ""}, 1},
		{files{"a": "1", "x": "file again"}, 0},
	} {
		copies.Store(0)
		w.publish(step.tree)
		want := files{"stranger": "stays"}
		for path, data := range step.tree {
			if !strings.HasSuffix(path, "/") && !strings.HasPrefix(data, "-> ") {
				want[CurrentKey(path)] = data
			}
		}
		sameTree(t, "current", w.current(), want)
		if got := int(copies.Load()); got != step.copies {
			t.Errorf("step %d: %d copies, want %d", i, got, step.copies)
		}
	}
}

// A file that becomes a folder, or the other way, never meets itself in stores that
// cannot hold x and x/y together.
func TestCurrentNeverHoldsFileAndFolder(t *testing.T) {
	w := newWorld(t)
	w.fail(func(op memstore.Op) error {
		if op.Kind != "copy" || op.After {
			return nil
		}
		for key := range w.current() {
			if strings.HasPrefix(key, op.Key+"/") || strings.HasPrefix(op.Key, key+"/") {
				t.Errorf("%s beside %s", op.Key, key)
			}
		}
		return nil
	})
	w.publish(files{"x": "file"})
	w.publish(files{"x/y": "in a folder"})
	w.publish(files{"x": "file"})
}

func TestRepairCurrent(t *testing.T) {
	w := newWorld(t)
	prev := w.publish(files{"a": "1", "b": "2", "c": "3", "old": "4"})
	w.put("stranger", "stays")
	want := files{"a": "1", "b": "22", "c": "x", "new": "5", "stranger": "stays"}
	next, _ := w.upload(files{"a": "1", "b": "22", "c": "x", "new": "5"})
	w.put("c", "y")
	if copied, err := w.c.RepairCurrent(t.Context(), w.head, prev, next); err != nil || copied != 3 {
		t.Fatalf("RepairCurrent: %d, %v", copied, err)
	}
	sameTree(t, "current", w.current(), want)
	if copied, err := w.c.RepairCurrent(t.Context(), w.head, nil, next); err != nil || copied != 0 {
		t.Fatalf("RepairCurrent again: %d, %v", copied, err)
	}
}

// TestCurrentIsPinned: S2, a copy whose source is another by now is refused.
func TestCurrentIsPinned(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"x": "1"})
	m, _ := w.upload(files{"a": "1"})
	w.put(ObjectKey(m.ID, "a"), "2")
	if err := w.c.RefreshCurrent(t.Context(), w.head, nil, m); !errors.Is(err, objstore.ErrPrecondition) {
		t.Fatalf("RefreshCurrent from a changed object: %v", err)
	}
	if got := w.current(); got["a"] != "" {
		t.Fatalf("current: %v", got)
	}
}

// TestFailNth fails every operation of every change in turn, before its effect and
// as a lost answer. The error surfaces, every listed snapshot is whole all the time,
// and the same call again succeeds.
func TestFailNth(t *testing.T) {
	for name, call := range map[string]func(w *world) error{
		"SwapHead": func(w *world) error {
			m, sha := w.last, w.sha
			h := w.headFor(m, sha)
			h.History = []ID{m.ID}
			_, err := w.c.SwapHead(w.t.Context(), h, w.etag)
			return err
		},
		"Remove": func(w *world) error { return w.c.Remove(w.t.Context(), w.last.ID) },
		"RefreshCurrent": func(w *world) error {
			prev, err := w.c.Manifest(w.t.Context(), w.head.Newest.ID, w.head.Newest.ManifestSHA256)
			if err != nil {
				return err
			}
			return w.c.RefreshCurrent(w.t.Context(), w.head, prev, w.last)
		},
		"Clear": func(w *world) error {
			_, err := w.c.Clear(w.t.Context())
			return err
		},
		"Prune": func(w *world) error {
			_, err := w.c.Prune(w.t.Context(), w.now.Add(48*time.Hour), DefaultPruneAge)
			return err
		},
		"Adopt": func(w *world) error {
			w.quietly(func() {
				if !strings.Contains(w.objects(HeadKey)[HeadKey], `"epoch": 2`) {
					w.delete(HeadKey)
				}
			})
			_, err := w.c.Adopt(w.t.Context(), "")
			if err != nil && strings.Contains(err.Error(), "is fine") {
				return nil
			}
			return err
		},
	} {
		for _, after := range []bool{false, true} {
			for n := 0; failNth(t, name, call, n, after); n++ {
			}
		}
	}
}

// failNth fails the nth operation of a call, before or after its effect, and calls
// again. It returns false where the call has no such operation.
func failNth(t *testing.T, name string, call func(w *world) error, n int, after bool) bool {
	t.Helper()
	injected := errors.New("injected")
	w := newWorld(t)
	w.publish(files{"a": "1", "b": "2"})
	w.publish(files{"a": "11", "c": "2"})
	published := slices.Clone(w.head.History)
	w.now = w.now.Add(time.Second)
	w.last, w.sha = w.upload(files{"a": "111", "d": "2"})
	var count atomic.Int32
	w.fail(func(op memstore.Op) error {
		if op.After != after {
			return nil
		}
		if int(count.Add(1))-1 == n {
			return injected
		}
		return nil
	})
	err := call(w)
	w.fail(nil)
	if int(count.Load()) <= n {
		if err != nil {
			t.Fatalf("%s, nothing injected: %v", name, err)
		}
		return false
	}
	// A swap whose answer was lost finds itself by reading back.
	if err != nil && !errors.Is(err, injected) {
		t.Fatalf("%s, operation %d, after %v: %v", name, n, after, err)
	}
	if err == nil && !(after && (name == "SwapHead" || name == "Clear" || name == "Adopt")) {
		t.Fatalf("%s, operation %d, after %v: the error was swallowed", name, n, after)
	}
	listedAreWhole(t, w, published[len(published)-1])
	if err := call(w); err != nil {
		t.Fatalf("%s again after operation %d, after %v: %v", name, n, after, err)
	}
	listedAreWhole(t, w, published[len(published)-1])
	return true
}

func listedAreWhole(t *testing.T, w *world, newest ID) {
	t.Helper()
	h, _, err := w.c.Head(t.Context())
	if errors.Is(err, ErrHeadLost) { // before Adopt
		h.History = []ID{newest}
	} else if err != nil {
		t.Fatal(err)
	}
	for _, id := range h.History {
		m, err := w.c.Manifest(t.Context(), id, "")
		if err != nil {
			t.Fatal(err)
		}
		found, err := w.c.scan(t.Context(), SnapshotPrefix(id))
		if err != nil || found.folders[id] == nil || !found.folders[id].holdsAll(m) {
			t.Fatalf("snapshot %s is listed and not whole (%v)", id, err)
		}
	}
}
