package history

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// TestHeadOfAnEmptyStore: R4, what proves that there is no backup.
func TestHeadOfAnEmptyStore(t *testing.T) {
	w := newWorld(t)
	for _, step := range []struct {
		name string
		do   func()
		etag bool
	}{
		{"nothing at all", func() {}, false},
		{"a lease", func() { w.put(LeaseKey, "{}") }, false},
		{"what a killed probe left", func() { w.put(objstore.ProbePrefix+"0123/source", "x") }, false},
		{"a head without a snapshot", func() {
			etag, err := w.c.SwapHead(t.Context(), w.head, "")
			if err != nil {
				t.Fatal(err)
			}
			w.etag = etag
		}, true},
	} {
		step.do()
		h, etag, err := w.c.Head(t.Context())
		var empty *NoBackupError
		if !errors.Is(err, ErrNoBackup) || !errors.As(err, &empty) || empty.Unpublished != "" {
			t.Fatalf("%s: %v", step.name, err)
		}
		if step.etag && (etag != w.etag || h.Lineage != w.head.Lineage) || !step.etag && etag != "" {
			t.Fatalf("%s: ETag %q, head %+v", step.name, etag, h)
		}
	}
}

// TestHeadRefuses: R4, nothing else is taken for "there is no backup".
func TestHeadRefuses(t *testing.T) {
	const id = "20261122T201530.123Z-4f2a"
	for name, c := range map[string]struct {
		keys map[string]string
		want error
		code int
		says string
	}{
		"foreign object":              {map[string]string{"photos/cat.jpg": "x"}, ErrForeign, exitcode.Store, "photos/cat.jpg"},
		"current without the rest":    {map[string]string{"chroma.sqlite3": "x", LeaseKey: "{}"}, ErrForeign, exitcode.Store, "chroma.sqlite3"},
		"like a probe's":              {map[string]string{".chromafs-probes/x": "x"}, ErrForeign, exitcode.Store, ".chromafs-probes/x"},
		"another's history":           {map[string]string{"history/2024/x": "x"}, ErrForeign, exitcode.Store, "history/2024/x"},
		"head missing, half snapshot": {map[string]string{"history/" + id + "/x": "x"}, ErrHeadLost, exitcode.Integrity, "none of them is whole"},
		"head damaged, no history":    {map[string]string{HeadKey: "garbage"}, ErrHeadLost, exitcode.Integrity, "cannot be read"},
		"head damaged, half snapshot": {map[string]string{HeadKey: "", "history/" + id + "/x": "x"}, ErrHeadLost, exitcode.Integrity, "cannot be read"},
		"newer head":                  {map[string]string{HeadKey: `{"format":2}`}, ErrNewerFormat, exitcode.Failed, "format 2"},
		"newer head, half snapshot":   {map[string]string{HeadKey: `{"format":2}`, "history/" + id + "/x": "x"}, ErrNewerFormat, exitcode.Failed, "format 2"},
		"head lost, newer snapshot":   {map[string]string{"history/" + id + "/manifest.json": `{"format":2}`}, ErrNewerFormat, exitcode.Failed, id},
	} {
		w := newWorld(t)
		for key, data := range c.keys {
			w.put(key, data)
		}
		_, _, err := w.c.Head(t.Context())
		if !errors.Is(err, c.want) || errors.Is(err, ErrNoBackup) || exitcode.Of(err) != c.code || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: exit code %d, %v", name, exitcode.Of(err), err)
		}
		if exitcode.Hint(err) == "" {
			t.Errorf("%s: no hint: %v", name, err)
		}
	}
}

// TestHeadOfAFailingStore: R4, a store that fails is not an empty one.
func TestHeadOfAFailingStore(t *testing.T) {
	for _, kind := range []error{objstore.ErrRefused, objstore.ErrUnavailable} {
		for n := range 2 { // the get, the listing
			w := newWorld(t)
			w.fail(func(op memstore.Op) error {
				if op.N == n {
					return kind
				}
				return nil
			})
			if _, _, err := w.c.Head(t.Context()); !errors.Is(err, kind) || errors.Is(err, ErrNoBackup) {
				t.Errorf("operation %d fails with %v: %v", n, kind, err)
			}
		}
	}
}

func TestHeadLostNamesTheNewestWhole(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	whole := w.publish(files{"a": "2"})
	for _, damage := range []func(key string){func(key string) { w.delete(key) }, func(key string) { w.put(key, "longer") }} {
		damage(ObjectKey(w.publish(files{"a": "3", "b": "x"}).ID, "b"))
	}
	branch := w.manifestOf(files{})
	branch.ID, branch.Sequence = branch.ID+"-branch-1", 99
	if _, err := w.c.PutManifest(t.Context(), branch); err != nil {
		t.Fatal(err)
	}
	for _, damage := range []func(){func() { w.put(HeadKey, "{") }, func() { w.delete(HeadKey) }} {
		damage()
		_, _, err := w.c.Head(t.Context())
		var lost *HeadLostError
		if !errors.As(err, &lost) || lost.Newest != whole.ID || exitcode.Of(err) != exitcode.Integrity {
			t.Fatalf("head lost: %v", err)
		}
		if hint := exitcode.Hint(err); !strings.Contains(hint, "chromafs history adopt") || !strings.Contains(hint, string(whole.ID)) {
			t.Fatalf("hint: %q", hint)
		}
	}
}

// A crash between the very first manifest and its publication is no lost head, but
// whoever has nothing else must not start empty.
func TestUnpublishedFirstSnapshot(t *testing.T) {
	w := newWorld(t)
	etag, err := w.c.SwapHead(t.Context(), w.head, "")
	if err != nil {
		t.Fatal(err)
	}
	m, _ := w.upload(files{"a": "1"})
	var empty *NoBackupError
	if _, got, err := w.c.Head(t.Context()); !errors.As(err, &empty) || empty.Unpublished != m.ID || got != etag {
		t.Fatalf("Head: %q, %v", got, err)
	}
	if report, err := w.c.Prune(t.Context(), w.now.Add(1000*time.Hour), time.Hour); err != nil || !slices.Equal(report.Spared, []ID{m.ID}) {
		t.Fatalf("Prune: %+v, %v", report, err)
	}
	h, err := w.c.Adopt(t.Context(), "")
	if err != nil || h.Newest.ID != m.ID || h.Epoch != 2 {
		t.Fatalf("Adopt: %+v, %v", h, err)
	}
	w.delete(ObjectKey(m.ID, "a"), HeadKey)
	if _, err := w.c.SwapHead(t.Context(), w.head, ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.c.Head(t.Context()); !errors.As(err, &empty) || empty.Unpublished != "" {
		t.Fatalf("Head with half a snapshot: %v", err)
	}
}

func TestManifest(t *testing.T) {
	w := newWorld(t)
	m := w.publish(files{"a": "1"})
	if got, err := w.c.Manifest(t.Context(), m.ID, w.sha); err != nil || got.ID != m.ID {
		t.Fatalf("Manifest: %v", err)
	}
	check := func(what string, id ID, sha string, want error) {
		t.Helper()
		if _, err := w.c.Manifest(t.Context(), id, sha); !errors.Is(err, want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("another sum", m.ID, strings.Repeat("00", 32), ErrIntegrity)
	other := w.manifestOf(files{})
	check("an unlisted one", other.ID, "", ErrGone)
	data, err := EncodeManifest(other)
	if err != nil {
		t.Fatal(err)
	}
	w.put(ManifestKey(m.ID), string(data))
	check("another's manifest", m.ID, "", ErrIntegrity)
	w.put(ManifestKey(m.ID), "{}")
	check("a damaged one", m.ID, "", ErrIntegrity)
	w.put(ManifestKey(m.ID), `{"format":2}`)
	check("a newer one", m.ID, "", ErrNewerFormat)
	w.delete(ManifestKey(m.ID))
	check("a listed one that is missing", m.ID, "", ErrIntegrity)
	w.fail(func(op memstore.Op) error {
		if op.Key == HeadKey {
			return objstore.ErrUnavailable
		}
		return nil
	})
	check("not knowing whether it is listed", m.ID, "", objstore.ErrUnavailable)
}

// TestPutManifestOnce: H1.
func TestPutManifestOnce(t *testing.T) {
	w := newWorld(t)
	m, sha := w.upload(files{"a": "1"})
	again, err := w.c.PutManifest(t.Context(), m)
	if err != nil || again != sha {
		t.Fatalf("its own bytes again: %q, %v", again, err)
	}
	before := w.objects(ManifestKey(m.ID))
	m.Nonce = nonce(t)
	if _, err := w.c.PutManifest(t.Context(), m); !errors.Is(err, objstore.ErrPrecondition) {
		t.Fatalf("other bytes: %v", err)
	}
	sameTree(t, "the manifest", w.objects(ManifestKey(m.ID)), before)
	w.fail(func(op memstore.Op) error {
		if op.Kind == "put" && op.After {
			return objstore.ErrUnavailable
		}
		return nil
	})
	m2 := w.manifestOf(files{})
	if _, err := w.c.PutManifest(t.Context(), m2); !errors.Is(err, objstore.ErrUnavailable) {
		t.Fatalf("lost answer: %v", err)
	}
	if _, err := w.c.PutManifest(t.Context(), m2); err != nil {
		t.Fatalf("after a lost answer: %v", err)
	}
}

func TestListAndResolve(t *testing.T) {
	w := newWorld(t)
	if _, err := w.c.List(t.Context()); !errors.Is(err, ErrNoBackup) {
		t.Fatalf("List of nothing: %v", err)
	}
	a := w.publish(files{"a": "1"})
	b := w.publish(files{"a": "22", "b/c": "333"})
	w.put(ManifestKey(a.ID), "{}")
	all, err := w.c.List(t.Context())
	if err != nil || len(all) != 2 {
		t.Fatalf("List: %+v, %v", all, err)
	}
	if all[0].ID != a.ID || !errors.Is(all[0].Err, ErrIntegrity) {
		t.Errorf("a damaged one: %+v", all[0])
	}
	if l := all[1]; l.ID != b.ID || l.Err != nil || l.Files != 2 || l.Bytes != 5 || l.Sequence != 2 || l.Consistency != Quiescent ||
		l.ManifestSHA256 != w.sha || !l.Created.Equal(w.now) {
		t.Errorf("the newest: %+v", l)
	}
	if got, err := w.c.Resolve(t.Context(), "latest", w.now); err != nil || got.ID != b.ID {
		t.Errorf("Resolve: %+v, %v", got, err)
	}
	w.delete(ManifestKey(a.ID))
	w.fail(func(op memstore.Op) error { // rotated away between the head and the manifest
		if op.Kind == "get" && op.Key == ManifestKey(a.ID) && !op.After {
			h := w.head
			h.History = []ID{b.ID}
			data, _ := EncodeHead(h)
			_, err := w.store.Put(context.Background(), HeadKey, bytes.NewReader(data), int64(len(data)), objstore.PutOptions{})
			return err
		}
		return nil
	})
	if all, err := w.c.List(t.Context()); err != nil || len(all) != 1 || all[0].ID != b.ID {
		t.Errorf("List during a rotation: %+v, %v", all, err)
	}
}

// flipped is a store of whose answer to the next get of a key one bit is flipped.
type flipped struct {
	objstore.Store
	key string
	bit int
}

func (f *flipped) Get(ctx context.Context, key string, o objstore.GetOptions) (io.ReadCloser, objstore.Object, error) {
	body, obj, err := f.Store.Get(ctx, key, o)
	if err != nil || key != f.key {
		return body, obj, err
	}
	f.key = ""
	data, err := io.ReadAll(body)
	data[f.bit/8] ^= 1 << (f.bit % 8)
	return io.NopCloser(bytes.NewReader(data)), obj, errors.Join(err, body.Close())
}

// What was damaged on its way is read again.
func TestDamageOnTheWay(t *testing.T) {
	w := newWorld(t)
	m := w.publish(files{"a": "b"})
	f := &flipped{Store: w.store}
	c := NewCatalog(f, quiet())
	for _, bit := range []int{100, 800, 3000} {
		f.key, f.bit = HeadKey, bit
		if h, _, err := c.Head(t.Context()); err != nil || h.Newest.ID != m.ID || f.key != "" {
			t.Errorf("head: %+v, %v", h, err)
		}
		f.key = ManifestKey(m.ID)
		if got, err := c.Manifest(t.Context(), m.ID, w.sha); err != nil || got.Nonce != m.Nonce || f.key != "" {
			t.Errorf("manifest: %+v, %v", got, err)
		}
	}
}

func TestVerify(t *testing.T) {
	w := newWorld(t)
	f := files{"a": content(1, 3*testPart+5), "b/c": content(2, 10), "empty": "", "d/": "", "l": "-> a"}
	m := w.publish(f)
	report, err := w.c.Verify(t.Context(), m.ID)
	if err != nil || report.Files != 3 || report.Bytes != 3*testPart+15 || len(report.Damaged) != 0 {
		t.Fatalf("Verify: %+v, %v", report, err)
	}
	flipped := []byte(f["a"])
	flipped[2*testPart+1] ^= 1
	w.put(ObjectKey(m.ID, "a"), string(flipped))
	w.put(ObjectKey(m.ID, "b/c"), "short")
	w.delete(ObjectKey(m.ID, "empty"))
	report, err = w.c.Verify(t.Context(), m.ID)
	if !errors.Is(err, ErrIntegrity) || exitcode.Of(err) != exitcode.Integrity {
		t.Fatalf("Verify of damage: %v", err)
	}
	found := map[string]int{}
	for _, d := range report.Damaged {
		found[d.Path] = d.Part
	}
	if len(found) != 3 || found["a"] != 2 || found["b/c"] != -1 || found["empty"] != -1 {
		t.Fatalf("damage found: %v", report.Damaged)
	}
	w.put(ManifestKey(m.ID), string(hostileJSON(w.manifestOf(f))))
	if _, err := w.c.Verify(t.Context(), m.ID); !errors.Is(err, ErrIntegrity) {
		t.Fatalf("Verify with another manifest: %v", err)
	}
}

func TestAdopt(t *testing.T) {
	w := newWorld(t)
	a := w.publish(files{"a": "1"})
	b := w.publish(files{"a": "2"})
	c := w.publish(files{"a": "3"})
	if _, err := w.c.Adopt(t.Context(), a.ID); exitcode.Of(err) != exitcode.Usage {
		t.Fatalf("adopt beside a good head: %v", err)
	}
	if _, err := w.c.ResolveAdoptable(t.Context(), string(a.ID), w.now); exitcode.Of(err) != exitcode.Usage || errors.Is(err, ErrUnknownID) {
		t.Fatalf("choose what to adopt beside a good head: %v", err)
	}
	w.delete(ObjectKey(c.ID, "a"))
	for _, step := range []struct {
		damage  func()
		id      ID
		want    ID
		history []ID
	}{
		{func() { w.delete(HeadKey) }, "", b.ID, []ID{a.ID, b.ID}},
		{func() { w.put(HeadKey, "?") }, a.ID, a.ID, []ID{a.ID}},
		{func() { w.delete(HeadKey) }, b.ID, b.ID, []ID{a.ID, b.ID}},
	} {
		step.damage()
		// What is not whole (c) cannot be chosen, by time either.
		for text, want := range map[string]ID{"": b.ID, "0s": b.ID, string(a.ID): a.ID, a.ID.Time().Format(time.RFC3339Nano): a.ID} {
			if got, err := w.c.ResolveAdoptable(t.Context(), text, w.now); err != nil || got.ID != want {
				t.Fatalf("ResolveAdoptable(%q): %+v, %v", text, got, err)
			}
		}
		h, err := w.c.Adopt(t.Context(), step.id)
		if err != nil || h.Newest.ID != step.want || !slices.Equal(h.History, step.history) || h.Epoch != 2 || h.Lineage != w.head.Lineage {
			t.Fatalf("Adopt(%q): %+v, %v", step.id, h, err)
		}
		now, _, err := w.c.Head(t.Context())
		if err != nil || now.Nonce != h.Nonce {
			t.Fatalf("after Adopt(%q): %+v, %v", step.id, now, err)
		}
		if _, err := w.c.Manifest(t.Context(), now.Newest.ID, now.Newest.ManifestSHA256); err != nil {
			t.Fatal(err)
		}
		m, sha := w.upload(files{"a": "4"}) // the writer from before is fenced
		if _, err := w.c.SwapHead(t.Context(), w.headFor(m, sha), w.etag); !errors.Is(err, ErrFenced) {
			t.Fatalf("publish after an adoption: %v", err)
		}
		w.delete(ManifestKey(m.ID), ObjectKey(m.ID, "a"))
	}
	w.delete(HeadKey)
	if _, err := w.c.Adopt(t.Context(), c.ID); !errors.Is(err, ErrUnknownID) {
		t.Fatalf("adopt half a snapshot: %v", err)
	}
	if _, err := newWorld(t).c.Adopt(t.Context(), ""); err == nil {
		t.Fatal("adopt from an empty store: no error")
	}
}

func TestReadIsBounded(t *testing.T) {
	w := newWorld(t)
	w.put(HeadKey, strings.Repeat(" ", maxHeadBytes+1))
	if _, _, err := w.c.Head(t.Context()); !errors.Is(err, ErrHeadLost) {
		t.Fatalf("a huge head: %v", err)
	}
	w.c.rand = io.LimitReader(rand.Reader, 0)
	if _, err := NewNonce(w.c.rand); err == nil {
		t.Fatal("a nonce without randomness")
	}
}
