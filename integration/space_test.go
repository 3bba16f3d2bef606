package integration

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/integration/harness"
)

const mib = 1 << 20

// onSmallDisk puts the world's disk on a file system of its own.
func (w *world) onSmallDisk(size string) {
	w.t.Helper()
	if os.Geteuid() != 0 {
		w.t.Fatal("this test mounts a tmpfs: run scripts/test as root, or through sudo")
	}
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", w.dir, "tmpfs", 0, "size="+size); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := unix.Unmount(w.dir, unix.MNT_DETACH); err != nil {
			w.t.Error(err)
		}
	})
}

// fill writes to a file until there is no room, and returns the error that said so.
func fill(t testing.TB, path string) error {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	block := make([]byte, mib)
	for range 1 << 10 {
		if _, err = f.Write(block); err != nil {
			break
		}
		// The kernel caches writes: fsync is where a full disk must show (F1, F3).
		if err = f.Sync(); err != nil {
			break
		}
	}
	return errors.Join(err, f.Close())
}

// A full disk answers ENOSPC, not worse; deleting works on it; afterwards all is as
// before and the next snapshot is whole.
func TestAFullDiskIsNoMoreThanThat(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	w.onSmallDisk("24m")
	m := w.mount()
	harness.Add(t, w.point, "docs", 0, 250)
	m.Snapshot()
	filler := filepath.Join(w.point, "filler")
	if err := fill(t, filler); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk ended with %v, want ENOSPC", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatalf("a full disk cannot be emptied: %v", err)
	}
	harness.Add(t, w.point, "docs", 250, 50)
	m.Snapshot()
	m.Unmount()
	w.store.CheckWhole()
	harness.Verify(t, w.store.Restored(w.store.Newest()), harness.Documents{"docs": 300})
}

// bulk makes the world's database 10 MiB bigger.
func (w *world) bulk(value byte) {
	w.t.Helper()
	content := make([]byte, 10*mib)
	for i := range content {
		content[i] = byte(i/4096) + value
	}
	writeFile(w.t, filepath.Join(w.dir, "bulk"), string(content))
}

// publishedBulk is a store with a database of 10 MiB, then one with other bytes.
func publishedBulk(t *testing.T, between func(store *harness.Store)) *harness.Store {
	t.Helper()
	w := newWorld(t, harness.NewFileStore(t))
	w.seed()
	w.bulk(1)
	w.publish()
	between(w.store)
	w.bulk(2)
	w.advance()
	w.publish()
	return w.store
}

// No room for two copies: where the store has the old one, it gives way, and the
// restore recovers by itself.
func TestRestoreWithoutRoomForTwoCopies(t *testing.T) {
	t.Parallel()
	var w *world
	publishedBulk(t, func(store *harness.Store) {
		w = newWorld(t, store)
		w.onSmallDisk("19m")
		w.mountOnce()
	})
	m := w.mount()
	harness.Verify(t, w.point, newestDocuments())
	m.Unmount()
	harness.Explain(t, harness.Result{Stderr: m.Log()}, "no room for two copies")
}

// Where the old copy holds what the store has not, it stays: exit 6, nothing lost.
func TestRestoreWithoutRoomKeepsLocalChanges(t *testing.T) {
	t.Parallel()
	var w *world
	publishedBulk(t, func(store *harness.Store) {
		w = newWorld(t, store)
		w.onSmallDisk("19m")
		w.mountOnce()
	})
	w.add("mine", 0, 20)
	r := w.refused(6)
	harness.Explain(t, r, w.dir)
	harness.Verify(t, w.dir, harness.Documents{"docs": fixtureCount, "mine": 20})
}

// A disk that cannot even hold the new copy is refused before a byte is fetched.
func TestRestoreToADiskThatIsTooSmall(t *testing.T) {
	t.Parallel()
	store := publishedBulk(t, func(*harness.Store) {})
	w := newWorld(t, store)
	w.onSmallDisk("6m")
	r := w.refused(6)
	harness.Explain(t, r, w.dir)
}
