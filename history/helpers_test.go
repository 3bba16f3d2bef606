package history

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"maps"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/objstore/retry"
	"github.com/chromafs/chromafs/internal/tree"
)

const testPart = 45_000 // no multiple of anything

var testTime = time.Date(2026, 11, 22, 20, 15, 30, 123e6, time.UTC)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// world is a store with a catalog, and the writer of its snapshots.
type world struct {
	t     *testing.T
	store *memstore.Store
	c     *Catalog
	head  Head
	etag  string
	last  *Manifest
	sha   string
	now   time.Time

	hook  atomic.Pointer[func(memstore.Op) error]
	muted atomic.Int32 // while above 0, hook is not asked
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, store: memstore.New(), now: testTime}
	w.store.Fail = func(op memstore.Op) error {
		if hook := w.hook.Load(); hook != nil && w.muted.Load() == 0 {
			return (*hook)(op)
		}
		return nil
	}
	w.store.Now = func() time.Time { return w.now }
	w.c = NewCatalog(w.store, quiet())
	w.head = Head{Format: Format, Lineage: "lineage", Epoch: 1, Writer: "writer", Nonce: nonce(t)}
	return w
}

// patient is w's catalog over a store that is asked again where it fails.
func (w *world) patient() *Catalog {
	return NewCatalog(retry.New(retry.Options{
		Policy: retry.Policy{Time: time.Minute, Attempts: 5, First: time.Second, Most: time.Second},
		Wait:   func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
	}).Over(w.store), quiet())
}

// fail sets what is asked before and after each operation of the store. It must be
// safe for concurrent use.
func (w *world) fail(hook func(memstore.Op) error) {
	if hook == nil {
		w.hook.Store(nil)
		return
	}
	w.hook.Store(&hook)
}

// quietly does something without asking the hook.
func (w *world) quietly(do func()) {
	w.muted.Add(1)
	defer w.muted.Add(-1)
	do()
}

func nonce(t *testing.T) string {
	n, err := NewNonce(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// files is a tree as a test writes it down: path to content; a path that ends in
// "/" is a folder, content that begins with "-> " a symbolic link.
type files map[string]string

// content returns n bytes that differ by seed, with a long run of zeros inside.
func content(seed byte, n int) string {
	b := make([]byte, n)
	r := mrand.NewChaCha8([32]byte{byte(seed)})
	r.Read(b[:n/3])
	r.Read(b[n*2/3:])
	return string(b)
}

// manifestOf makes a manifest of a tree, with all parent folders.
func (w *world) manifestOf(f files) *Manifest {
	w.t.Helper()
	id, err := NewID(w.now, rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	all := map[string]tree.Record{}
	for path, data := range f {
		r := tree.Record{Entry: tree.Entry{Path: strings.TrimSuffix(path, "/"), Mode: 0o640,
			UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), ModTime: w.now.UnixNano() + int64(len(path))}}
		target, link := strings.CutPrefix(data, "-> ")
		switch {
		case strings.HasSuffix(path, "/"):
			r.Type, r.Mode = tree.Dir, 0o750
		case link:
			r.Type, r.Target, r.Mode = tree.Symlink, target, 0o777
		default:
			r.Type, r.Size, r.PartSize = tree.File, int64(len(data)), testPart
			if strings.HasPrefix(path, "big") { // parts of several chunks
				r.PartSize = 3*chunk + 5
			}
			if r.Parts, err = tree.HashParts(w.t.Context(), strings.NewReader(data), r.Size, r.PartSize); err != nil {
				w.t.Fatal(err)
			}
		}
		all[r.Path] = r
		for p := parentOf(r.Path); p != ""; p = parentOf(p) {
			if _, ok := all[p]; !ok {
				all[p] = tree.Record{Entry: tree.Entry{Path: p, Type: tree.Dir, Mode: 0o755, UID: uint32(os.Getuid()),
					GID: uint32(os.Getgid()), ModTime: w.now.UnixNano()}}
			}
		}
	}
	m := &Manifest{Format: Format, Lineage: w.head.Lineage, Sequence: w.head.Sequence + 1, Epoch: w.head.Epoch,
		Writer: w.head.Writer, Nonce: nonce(w.t), ID: id, Created: w.now, Consistency: Quiescent}
	for _, path := range slices.Sorted(maps.Keys(all)) {
		m.Entries = append(m.Entries, all[path])
	}
	return m
}

// upload stores a snapshot without publishing it.
func (w *world) upload(f files) (*Manifest, string) {
	w.t.Helper()
	m := w.manifestOf(f)
	for i := range m.Entries {
		if r := &m.Entries[i]; r.Type == tree.File {
			data := f[r.Path]
			obj, err := w.c.store.Put(w.t.Context(), ObjectKey(m.ID, r.Path), strings.NewReader(data), r.Size, objstore.PutOptions{})
			if err != nil {
				w.t.Fatal(err)
			}
			r.ETag = obj.ETag
		}
	}
	sha, err := w.c.PutManifest(w.t.Context(), m)
	if err != nil {
		w.t.Fatal(err)
	}
	return m, sha
}

// headFor returns the head that publishes m, keeping all snapshots.
func (w *world) headFor(m *Manifest, sha string) Head {
	h := w.head
	h.Sequence, h.Nonce, h.Newest = m.Sequence, m.Nonce, m.Summary(sha)
	h.History = append(slices.Clone(h.History), m.ID)
	return h
}

// publish stores and publishes a snapshot.
func (w *world) publish(f files) *Manifest {
	w.t.Helper()
	w.now = w.now.Add(time.Second)
	m, sha := w.upload(f)
	h := w.headFor(m, sha)
	etag, err := w.c.SwapHead(w.t.Context(), h, w.etag)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.c.RefreshCurrent(w.t.Context(), h, w.last, m); err != nil {
		w.t.Fatal(err)
	}
	w.head, w.etag, w.last, w.sha = h, etag, m, sha
	return m
}

func (w *world) put(key, data string) {
	w.t.Helper()
	if _, err := w.store.Put(w.t.Context(), key, strings.NewReader(data), int64(len(data)), objstore.PutOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) delete(keys ...string) {
	w.t.Helper()
	if err := w.store.Delete(w.t.Context(), keys); err != nil {
		w.t.Fatal(err)
	}
}

// objects returns all that is stored below a prefix.
func (w *world) objects(prefix string) files {
	w.t.Helper()
	w.muted.Add(1)
	defer w.muted.Add(-1)
	all := files{}
	for obj, err := range w.store.List(w.t.Context(), prefix) {
		if err != nil {
			w.t.Fatal(err)
		}
		body, _, err := w.store.Get(w.t.Context(), obj.Key, objstore.GetOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
		data, err := io.ReadAll(body)
		if err != nil {
			w.t.Fatal(err)
		}
		all[obj.Key] = string(data)
	}
	return all
}

// current returns what "current" holds, by key.
func (w *world) current() files {
	all := w.objects("")
	for key := range all {
		if strings.HasPrefix(key, HistoryPrefix) || key == HeadKey || key == LeaseKey {
			delete(all, key)
		}
	}
	return all
}

func openDir(t *testing.T, path string) *datadir.Dir {
	t.Helper()
	d, err := datadir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// writeTree makes a tree below root.
func writeTree(t *testing.T, root string, f files) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(f)) {
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		target, link := strings.CutPrefix(f[path], "-> ")
		var err error
		switch {
		case strings.HasSuffix(path, "/"):
			err = os.MkdirAll(full, 0o755)
		case link:
			err = os.Symlink(target, full)
		default:
			err = os.WriteFile(full, []byte(f[path]), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// readTree reads a tree below root, .chromafs left out. Folders are named too.
func readTree(t *testing.T, root string) files {
	t.Helper()
	f := files{}
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		switch {
		case rel == datadir.StateName:
			return filepath.SkipDir
		case e.IsDir():
			f[rel+"/"] = ""
		case e.Type() == os.ModeSymlink:
			target, err := os.Readlink(path)
			f[rel] = "-> " + target
			return err
		default:
			data, err := os.ReadFile(path)
			f[rel] = string(data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// withFolders adds the folders that a tree's paths imply.
func withFolders(f files) files {
	all := maps.Clone(f)
	for path := range f {
		for p := parentOf(strings.TrimSuffix(path, "/")); p != ""; p = parentOf(p) {
			all[p+"/"] = ""
		}
	}
	return all
}

func sameTree(t *testing.T, what string, got, want files) {
	t.Helper()
	if maps.Equal(got, want) {
		return
	}
	var b bytes.Buffer
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if g, ok := got[k]; !ok {
			fmt.Fprintf(&b, "  missing %q\n", k)
		} else if g != want[k] {
			fmt.Fprintf(&b, "  differs %q (%d bytes, want %d)\n", k, len(g), len(want[k]))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[k]; !ok {
			fmt.Fprintf(&b, "  unwanted %q\n", k)
		}
	}
	t.Fatalf("%s is wrong:\n%s", what, b.String())
}
