package integration

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/chromafs/chromafs/integration/harness"
)

// world is one machine: a disk that can be lost, a mount point, and a store.
type world struct {
	t     *testing.T
	dir   string
	point string
	store *harness.Store
}

func newWorld(t *testing.T, store *harness.Store) *world {
	t.Helper()
	folder := t.TempDir()
	return &world{t, filepath.Join(folder, "disk"), filepath.Join(folder, "mount"), store}
}

// another is a second machine on the same store.
func (w *world) another() *world { return newWorld(w.t, w.store) }

func (w *world) options(flags ...string) harness.Options {
	return harness.Options{Dir: w.dir, Point: w.point, Store: w.store, Flags: flags}
}

func (w *world) mount(flags ...string) *harness.Mount {
	w.t.Helper()
	return harness.Start(w.t, w.options(flags...))
}

// mountOnce mounts and unmounts: what is not yet published is.
func (w *world) mountOnce(flags ...string) {
	w.t.Helper()
	w.mount(flags...).Unmount()
}

// refused mounts, which must end with an exit code and leave the disk's files as
// they are.
func (w *world) refused(code int, flags ...string) harness.Result {
	w.t.Helper()
	before := w.listing()
	r := harness.RunToEnd(w.t, w.options(flags...), code)
	if after := w.listing(); !slices.Equal(before, after) {
		w.t.Fatalf("a refused mount changed the disk from %v to %v", before, after)
	}
	return r
}

// listing names every file of the disk with size and time, without .chromafs.
func (w *world) listing() []string {
	w.t.Helper()
	var all []string
	walk(w.t, w.dir, func(path string, info os.FileInfo) {
		if info.IsDir() {
			all = append(all, path)
			return
		}
		all = append(all, path+" "+info.ModTime().String()+" "+info.Mode().String())
	})
	return all
}

func walk(t testing.TB, root string, visit func(path string, info os.FileInfo)) {
	t.Helper()
	err := filepath.Walk(root, func(name string, info os.FileInfo, err error) error {
		if os.IsNotExist(err) && name == root {
			return nil
		}
		if err != nil {
			return err
		}
		if info.Name() == ".chromafs" {
			return filepath.SkipDir
		}
		if name != root {
			visit(name[len(root)+1:], info)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// lose is what a redeployment does to the disk.
func (w *world) lose() {
	w.t.Helper()
	if err := os.RemoveAll(w.dir); err != nil {
		w.t.Fatal(err)
	}
}

// backups lists the local copies that restores have put aside.
func (w *world) backups() []string {
	w.t.Helper()
	var paths []string
	folder := filepath.Join(w.dir, ".chromafs", "backups")
	for _, name := range harness.Entries(w.t, folder) {
		paths = append(paths, filepath.Join(folder, name))
	}
	return paths
}

// oneBackup is the path of the only local copy put aside.
func (w *world) oneBackup() string {
	w.t.Helper()
	all := w.backups()
	if len(all) != 1 {
		w.t.Fatalf("local backups: %v, want one", all)
	}
	return all[0]
}

// oneBranch is what the only branch in the store holds, as plain files.
func (w *world) oneBranch() string {
	w.t.Helper()
	all := w.store.Branches()
	if len(all) != 1 {
		w.t.Fatalf("branches: %v, want one", all)
	}
	return w.store.Restored(all[0])
}

// fixtures are databases of ChromaDB that are made once: the first with 250
// documents, of which 200 are in the vector index on disk and 50 wait in SQLite,
// and the second with ten more.
type fixtures struct {
	once         sync.Once
	first, ahead string
}

const fixtureCount = 250

var databases fixtures

func (f *fixtures) get(t testing.TB) *fixtures {
	t.Helper()
	f.once.Do(func() {
		dir, err := os.MkdirTemp("", "chromafs-fixture")
		if err != nil {
			t.Fatal(err)
		}
		first, ahead := filepath.Join(dir, "first"), filepath.Join(dir, "ahead")
		harness.Add(t, first, "docs", 0, fixtureCount)
		harness.CopyTree(t, first, ahead)
		harness.Add(t, ahead, "docs", fixtureCount, 10)
		f.first, f.ahead = first, ahead
	})
	if f.ahead == "" {
		t.Fatal("the fixtures could not be made")
	}
	return f
}

func TestMain(m *testing.M) {
	code := m.Run()
	if databases.first != "" {
		if err := os.RemoveAll(filepath.Dir(databases.first)); err != nil && code == 0 {
			code = 1
		}
	}
	os.Exit(code)
}

// seed makes the disk the first fixture, as if a ChromaDB had worked there before
// anyone thought of chromafs.
func (w *world) seed() {
	w.t.Helper()
	first := databases.get(w.t).first
	w.lose()
	harness.CopyTree(w.t, first, w.dir)
}

// advance makes the seeded disk the second fixture, with no mount: behind the
// journal's back.
func (w *world) advance() {
	w.t.Helper()
	harness.CopyTree(w.t, databases.get(w.t).ahead+"/.", w.dir)
}

func seedDocuments() harness.Documents   { return harness.Documents{"docs": fixtureCount} }
func newestDocuments() harness.Documents { return harness.Documents{"docs": fixtureCount + 10} }

// publish takes a snapshot of the disk without a mount.
func (w *world) publish() harness.Snapshot {
	w.t.Helper()
	return harness.SnapshotOffline(w.t, w.store, w.dir)
}

// add adds documents on the disk itself, with no mount: behind the journal's back.
func (w *world) add(collection string, first, count int) {
	w.t.Helper()
	harness.Add(w.t, w.dir, collection, first, count)
}
