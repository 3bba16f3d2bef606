package history

import (
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// branch stores a branch of a writer.
func (w *world) branch(writer string, f files) *Manifest {
	w.t.Helper()
	m := w.manifestOf(f)
	var err error
	if m.ID, err = NewBranchID(w.now, writer, rand.Reader); err != nil {
		w.t.Fatal(err)
	}
	for i := range m.Entries {
		if r := &m.Entries[i]; len(r.Parts) > 0 {
			w.put(ObjectKey(m.ID, r.Path), f[r.Path])
		}
	}
	if _, err := w.c.PutManifest(w.t.Context(), m); err != nil {
		w.t.Fatal(err)
	}
	return m
}

func TestBranchID(t *testing.T) {
	id, err := NewBranchID(testTime, "8c51", rand.Reader)
	if err != nil || !id.IsBranch() || id.BranchOf() != "8c51" || !id.Time().Equal(testTime) {
		t.Errorf("%s, %v", id, err)
	}
	if id, err := NewBranchID(testTime, "../x", rand.Reader); err == nil {
		t.Errorf("made %s", id)
	}
}

// W2: a branch is listed apart, verified, found by its id or the beginning of that,
// and never the newest, "latest" or part of the list.
func TestBranchesAreFound(t *testing.T) {
	w := newWorld(t)
	newest := w.publish(files{"a": "1"})
	w.now = w.now.Add(time.Hour)
	tree := files{"a": "22", "dir/b": content(3, 2*testPart)}
	b := w.branch("w1", tree)
	w.now = w.now.Add(time.Hour)
	c := w.branch("w2", files{"a": "3"})
	w.put(ObjectKey(b.ID+"x", "half"), "of one")

	all, err := w.c.Branches(t.Context())
	if err != nil || len(all) != 2 || all[0].ID != b.ID || all[1].ID != c.ID || all[0].Err != nil || all[0].Files != 2 {
		t.Fatalf("Branches: %+v, %v", all, err)
	}
	if listed, err := w.c.List(t.Context()); err != nil || len(listed) != 1 {
		t.Errorf("List: %+v, %v", listed, err)
	}
	for text, want := range map[string]ID{"": newest.ID, "latest": newest.ID, string(b.ID): b.ID, string(b.ID)[:11]: b.ID,
		string(b.ID)[:30]: b.ID, string(c.ID)[:11]: c.ID, string(newest.ID)[:11]: newest.ID} {
		if got, err := w.c.Resolve(t.Context(), text, w.now); got.ID != want || err != nil {
			t.Errorf("Resolve(%q): %s, %v, want %s", text, got.ID, err, want)
		}
	}
	for _, text := range []string{string(b.ID) + "x", "2030", string(c.ID) + "0"} {
		if got, err := w.c.Resolve(t.Context(), text, w.now); !errors.Is(err, ErrUnknownID) {
			t.Errorf("Resolve(%q): %s, %v", text, got.ID, err)
		}
	}
	if r, err := w.c.Verify(t.Context(), b.ID); err != nil || r.Files != 2 || r.Bytes != 2*testPart+2 {
		t.Errorf("Verify: %+v, %v", r, err)
	}
	if there, err := w.c.HasBranch(t.Context(), b); err != nil || !there {
		t.Errorf("HasBranch: %v, %v", there, err)
	}

	// A missing object of a complete branch is damage, not rotation.
	w.delete(ObjectKey(b.ID, "a"))
	if _, err := w.c.Verify(t.Context(), b.ID); !errors.Is(err, ErrIntegrity) || errors.Is(err, ErrGone) {
		t.Errorf("Verify without an object: %v", err)
	}
	dir := openDir(t, t.TempDir())
	_, err = Restore(t.Context(), w.c, RestoreOptions{Dir: dir, Manifest: b, KeepLocal: true, Backups: 1, Now: time.Now, Log: quiet()})
	if !errors.Is(err, ErrIntegrity) || errors.Is(err, ErrGone) {
		t.Errorf("Restore without an object: %v", err)
	}
	if there, err := w.c.HasBranch(t.Context(), b); err != nil || there {
		t.Errorf("HasBranch without an object: %v, %v", there, err)
	}
	w.delete(ManifestKey(b.ID))
	if _, err := w.c.Verify(t.Context(), b.ID); !errors.Is(err, ErrGone) {
		t.Errorf("Verify without a manifest: %v", err)
	}
	if m, err := w.c.Branch(t.Context(), b.ID); m != nil || err != nil {
		t.Errorf("Branch without a manifest: %v, %v", m, err)
	}
	if m, err := w.c.Branch(t.Context(), c.ID); err != nil || m.ID != c.ID {
		t.Errorf("Branch: %v, %v", m, err)
	}
}

// A branch stops being complete before any other object of it goes, whatever order a
// store deletes a batch in.
func TestRemoveABranch(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	before := w.objects("")
	b := w.branch("w1", files{"a": "2", "b": "3"})
	objects := w.objects(SnapshotPrefix(b.ID))
	delete(objects, ManifestKey(b.ID))
	died := false
	w.fail(func(op memstore.Op) error {
		if op.Kind == "delete" && op.After {
			died = true
		}
		if died {
			return errors.New("killed")
		}
		return nil
	})
	if err := w.c.Remove(t.Context(), b.ID); err == nil {
		t.Fatal("Remove said nothing")
	}
	w.fail(nil)
	sameTree(t, "what the first request left", w.objects(SnapshotPrefix(b.ID)), objects)
	if err := w.c.Remove(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	sameTree(t, "the store", w.objects(""), before)
}

// Rotation takes a branch only where it is not one of its writer's newest, and both
// its id and the store's clock say that it is older than a day.
func TestOldBranches(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	var one, two []ID
	for range 4 {
		w.now = w.now.Add(time.Minute)
		one = append(one, w.branch("one", files{"a": "2"}).ID)
		two = append(two, w.branch("two", files{"a": "3"}).ID)
	}
	want := func(what string, now time.Time, writer string, keep int, want ...ID) {
		t.Helper()
		slices.Sort(want)
		if got, err := w.c.OldBranches(t.Context(), now, writer, keep); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", what, got, err, want)
		}
	}
	day := BranchAge + time.Hour
	want("young", w.now, "", 1)
	want("our clock is a day ahead", w.now.Add(day), "", 1)
	made := w.now
	w.now = w.now.Add(day)
	w.publish(files{"a": "4"}) // the store's clock has come so far
	want("our clock is a day behind", made, "", 1)
	want("old", w.now, "", 1, slices.Concat(one[:3], two[:3])...)
	want("of one writer", w.now, "one", 1, one[:3]...)
	want("the newest stay", w.now, "", 3, one[0], two[0])
	want("all of them are the newest", w.now, "", 4)
	want("keep none keeps one", w.now, "two", 0, two[:3]...)

	// The newest of a writer whose clock was set back is the one that was stored last.
	last := w.branch("one", files{"a": "5"})
	back := ID(strings.Replace(string(last.ID), string(last.ID)[:8], "20200101", 1))
	for key, data := range w.objects(SnapshotPrefix(last.ID)) {
		w.put(strings.Replace(key, string(last.ID), string(back), 1), data)
		w.delete(key)
	}
	w.now = w.now.Add(day)
	w.publish(files{"a": "6"})
	want("a clock was set back", w.now, "one", 1, one...)

	w.delete(ManifestKey(one[0]))
	want("half of one is not rotated", w.now, "one", 1, one[1:]...)
}
