package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/integration/harness"
)

// overwrite changes a file in place.
func overwrite(t *testing.T, name string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// S5: a disk that damages ChromaDB's database under the mount takes no good snapshot
// away; every command says so, and the ways out that it names are ways out.
func TestADamagedDatabaseIsNotPublished(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewS3Store(t))
	w.seed()
	m := w.mount("--keep", "1")
	good := m.Snapshot().ID
	database := filepath.Join(w.dir, "chroma.sqlite3")
	wiped := make([]byte, 4096)
	overwrite(t, database, 4096, wiped)
	// A write of the application: the same byte, but from here on the file is dirty.
	overwrite(t, filepath.Join(w.point, "chroma.sqlite3"), 0, []byte("S"))

	for range 2 {
		r := m.TrySnapshot()
		if r.Code != 5 {
			t.Fatalf("snapshot exited with %d, want 5: %s", r.Code, r.Output())
		}
		harness.Explain(t, r, "chroma.sqlite3", "restore --at "+good, "--verify none")
	}
	onlyGood := func(when string) {
		t.Helper()
		if got := w.store.Head().History; !slices.Equal(got, []string{good}) {
			t.Fatalf("%s history is %v, want %s alone", when, got, good)
		}
	}
	onlyGood("after the failures")
	r := harness.Must(t, 1, nil, "status", "--check", w.point)
	harness.Explain(t, r, "chroma.sqlite3", "restore --at "+good)
	if code := m.Stop(); code != 5 {
		t.Fatalf("the mount exited with %d, want 5: %s", code, m.Log())
	}
	harness.Explain(t, harness.Must(t, 5, w.store, "snapshot", w.dir), "chroma.sqlite3", "--verify none")
	onlyGood("after an offline snapshot")

	// The first way out: back to what the message names.
	harness.Must(t, 0, w.store, "restore", "--at", good, w.dir)
	w.oneBackup()
	m = w.mount()
	harness.Verify(t, w.point, seedDocuments())
	m.Unmount()

	// The second: as it is.
	m = w.mount("--verify", "none")
	overwrite(t, database, 4096, wiped)
	overwrite(t, filepath.Join(w.point, "chroma.sqlite3"), 0, []byte("S"))
	published := m.Snapshot().ID
	if got := readFile(t, filepath.Join(w.store.Snapshot(published), "chroma.sqlite3"))[4096:8192]; got != string(wiped) {
		t.Error("--verify none did not publish the database as it is")
	}
	m.Unmount()
}

// states copies a ChromaDB after each step that its vector index can take.
const states = `
import os, shutil, sys
import chromadb, random
from chromadb.config import Settings
live, copies = sys.argv[1], sys.argv[2]
settings = Settings(anonymized_telemetry=False)
client = chromadb.PersistentClient(live, settings=settings)
def collection(name, threshold, batch, dimensions):
    c = client.get_or_create_collection(name, configuration={"hnsw": {"sync_threshold": threshold, "batch_size": batch}}, embedding_function=None)
    return lambda first, count: c.add(ids=[str(i) for i in range(first, first + count)],
        embeddings=[[random.random() for _ in range(dimensions)] for _ in range(count)]), c
def keep(name):
    shutil.copytree(live, os.path.join(copies, name))
keep("0 empty")
small, s = collection("small", 2, 2, 3)
small(0, 1); keep("1 one vector")
small(1, 1); keep("2 two vectors")
small(2, 5); keep("3 a few")
s.delete(ids=[str(i) for i in range(7)]); keep("4 all of them deleted")
big, b = collection("big", 200, 100, 8)
big(0, 150); keep("5 before the first persist")
big(150, 100); keep("6 after it")
b.delete(ids=[str(i) for i in range(0, 240)]); keep("7 deleted")
big(250, 750); keep("8 as many as there was room for")
big(1000, 1500); keep("9 more than that")
b.update(ids=[str(i) for i in range(1000, 1300)], embeddings=[[0.5] * 8 for _ in range(300)]); keep("10 updated")
client.delete_collection("small"); keep("11 one collection deleted")
`

// No index that ChromaDB makes is called damaged, and a torn one is.
func TestWholeIndexesAreNeverCalledDamaged(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	copies := filepath.Join(folder, "copies")
	if err := os.Mkdir(copies, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), harness.Python(t), "-c", states, filepath.Join(folder, "live"), copies).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	names := harness.Entries(t, copies)
	if len(names) != 12 {
		t.Fatalf("%v", names)
	}
	segments, unused := 0, 0
	for _, name := range names {
		dir := filepath.Join(copies, name)
		pickles, err := filepath.Glob(filepath.Join(dir, "*", "index_metadata.pickle"))
		if err != nil {
			t.Fatal(err)
		}
		segments += len(pickles)
		store := harness.NewFileStore(t)
		for _, pickle := range pickles {
			if !tornSegment(t, store, dir, filepath.Dir(pickle)) {
				unused++
			}
		}
		r := harness.Chromafs(t, store, "snapshot", "--verify", "full", dir)
		if r.Code != 0 {
			t.Errorf("%s: snapshot exited with %d: %s", name, r.Code, r.Output())
		}
	}
	if segments < 16 || unused != 1 {
		t.Errorf("%d segments were looked at, %d of them of a deleted collection", segments, unused)
	}
}

// tornSegment cuts the last vector's length off, as a persist does that was killed. It
// returns whether that held the snapshot back: where ChromaDB still uses the segment.
func tornSegment(t *testing.T, store *harness.Store, dir, segment string) bool {
	t.Helper()
	length := filepath.Join(segment, "length.bin")
	whole := readFile(t, length)
	if err := os.Truncate(length, int64(len(whole)-4)); err != nil {
		t.Fatal(err)
	}
	r := harness.Chromafs(t, store, "snapshot", dir)
	writeFile(t, length, whole)
	if r.Code == 0 {
		if !strings.Contains(r.Output(), filepath.Base(segment)) || !strings.Contains(r.Output(), "not in use") {
			t.Errorf("nothing is said of %s: %s", segment, r.Output())
		}
		return false
	}
	if r.Code != 5 {
		t.Fatalf("snapshot exited with %d: %s", r.Code, r.Output())
	}
	harness.Explain(t, r, filepath.Base(segment), "length.bin", "delete its collection")
	return true
}
