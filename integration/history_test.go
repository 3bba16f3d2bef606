package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// H2, H3: 27 snapshots keep 24, in the list and in objects, the newest by sequence
// although the clock is stepped back in the middle.
func TestTwentySevenSnapshotsKeepTwentyFour(t *testing.T) {
	harness.EachStore(t, func(t *testing.T, store *harness.Store) {
		w := newWorld(t, store)
		w.seed()
		clock := filepath.Join(t.TempDir(), "clock")
		writeFile(t, clock, "0s")
		o := w.options()
		o.Clock = clock
		m := harness.Start(t, o)
		var ids []string
		for i := range 27 {
			if i == 13 {
				writeFile(t, clock, "-48h")
			}
			writeFile(t, filepath.Join(w.point, "counter"), fmt.Sprint(i))
			ids = append(ids, m.Snapshot().ID)
		}
		if ids[13] > ids[12] {
			t.Fatalf("the clock was not stepped back: %s after %s", ids[13], ids[12])
		}
		if got := store.Head().History; !slices.Equal(got, ids[3:]) {
			t.Errorf("manifest.json lists\n%v, want\n%v", got, ids[3:])
		}
		store.CheckWhole()
		m.Unmount()
		w.lose()
		m = w.mount()
		if got := readFile(t, filepath.Join(w.point, "counter")); got != "26" {
			t.Errorf("the restored snapshot is the one after change %s, want 26", got)
		}
		harness.Verify(t, w.point, seedDocuments())
		m.Unmount()
	})
}

// Rule 2: a change is backed up by itself once the interval has passed and the
// writing has stopped; without a change there is no snapshot.
func TestSnapshotsByThemselves(t *testing.T) {
	harness.EachStore(t, func(t *testing.T, store *harness.Store) {
		w := newWorld(t, store)
		m := w.mount("--interval", "2s", "--settle", "200ms")
		harness.Add(t, w.point, "docs", 0, 250)
		harness.Eventually(t, time.Minute, "a snapshot that holds what was added", func() bool {
			return harness.Exists(t, filepath.Join(store.Folder, "manifest.json")) && len(store.Head().History) > 0 &&
				harness.Chromafs(t, nil, "status", "--check", w.point).Code == 0 && !m.Dirty()
		})
		newest := store.Newest()
		harness.Verify(t, store.Restored(newest), harness.Documents{"docs": 250})
		time.Sleep(5 * time.Second) // two intervals in which nothing may happen
		if got := store.Newest(); got != newest {
			t.Errorf("nothing changed, but %s came after %s", got, newest)
		}
		writeFile(t, filepath.Join(w.point, "note"), "new")
		harness.Eventually(t, time.Minute, "a snapshot of the note", func() bool { return store.Newest() != newest })
		m.Unmount()
	})
}

// The commands that look after history.
func TestHistoryCommands(t *testing.T) {
	harness.EachStore(t, func(t *testing.T, store *harness.Store) {
		w := newWorld(t, store)
		w.seed()
		m := w.mount()
		var ids []string
		for i := range 4 {
			writeFile(t, filepath.Join(w.point, "counter"), fmt.Sprint(i))
			ids = append(ids, m.Snapshot().ID)
		}
		list := harness.Must(t, 0, store, "history", "list")
		for _, id := range ids {
			harness.Explain(t, list, id)
		}
		harness.Must(t, 0, store, "history", "list", "--json")
		harness.Must(t, 0, store, "history", "verify", ids[1])
		harness.Explain(t, harness.Must(t, 0, store, "history", "verify", "0s"), ids[3])
		harness.Explain(t, harness.Must(t, 0, store, "history", "verify", "--all"), ids...)

		// clear, beside a running mount, keeps the newest; the mount goes on.
		harness.Must(t, 0, store, "history", "clear", "--yes")
		if got := store.Stored(); !slices.Equal(got, ids[3:]) {
			t.Errorf("after clear the store has %v, want %v", got, ids[3:])
		}
		writeFile(t, filepath.Join(w.point, "counter"), "4")
		ids = append(ids, m.Snapshot().ID)
		store.CheckWhole()
		m.Unmount()

		// restore --at: an older state, which the next snapshot publishes (R3 for
		// the newer one: it stays in history).
		made, err := time.Parse("20060102T150405.000Z", ids[3][:len("20060102T150405.000Z")])
		if err != nil {
			t.Fatal(err)
		}
		r := harness.Must(t, 0, store, "restore", "--at", made.Format(time.RFC3339Nano), w.dir)
		harness.Explain(t, r, "The newest snapshot not after", ids[3])
		if got := readFile(t, filepath.Join(w.dir, "counter")); got != "3" {
			t.Errorf("restored the state after change %s, want 3", got)
		}
		m = w.mount()
		if got := readFile(t, filepath.Join(w.point, "counter")); got != "3" {
			t.Errorf("mount replaced the chosen state with the one after change %s", got)
		}
		harness.Verify(t, w.point, seedDocuments())
		m.Snapshot()
		m.Unmount()
		if got := readFile(t, filepath.Join(store.Snapshot(store.Newest()), "counter")); got != "3" {
			t.Errorf("the newest snapshot holds the state after change %s, want 3", got)
		}

		// prune collects what no list names.
		litter := filepath.Join(store.Folder, "history", strings.Replace(ids[0], ids[0][len(ids[0])-4:], "0000", 1))
		if err := os.MkdirAll(litter, 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(litter, "half"), "a snapshot")
		// Young litter may be what a writer is uploading right now.
		harness.Must(t, 0, store, "history", "prune")
		if stored := store.Stored(); !slices.Contains(stored, filepath.Base(litter)) {
			t.Errorf("prune took young litter: %v", stored)
		}
		clock := filepath.Join(t.TempDir(), "clock")
		writeFile(t, clock, "48h")
		if r := harness.ChromafsAt(t, clock, store, "history", "prune"); r.Code != 0 {
			t.Errorf("prune exited with %d: %s", r.Code, r.Output())
		}
		store.CheckWhole()
	})
}

// R1: a byte that is not what the manifest says is never restored. The copy under
// history is the one that counts; `current` helps out where it is the same.
func TestDamagedBytesAreFound(t *testing.T) {
	t.Parallel()
	damage := func(t *testing.T, files ...string) {
		t.Helper()
		for _, file := range files {
			content := []byte(readFile(t, file))
			content[len(content)/2] ^= 1
			// In place, so that what the server knows of the object stays.
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(content, 0); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("verify", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, harness.NewS3Store(t))
		w.seed()
		id := w.publish().ID
		damage(t, filepath.Join(w.store.Snapshot(id), "chroma.sqlite3"))
		writeFile(t, filepath.Join(w.dir, "note"), "so that there is another")
		next := w.publish().ID
		damage(t, filepath.Join(w.store.Snapshot(next), "note"))
		r := harness.Must(t, 5, w.store, "history", "verify", id)
		harness.Explain(t, r, "chroma.sqlite3", id)
		harness.Explain(t, harness.Must(t, 5, w.store, "history", "verify", "--all"), "chroma.sqlite3", id, "note", next)
	})
	t.Run("mount with both copies damaged", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, harness.NewS3Store(t))
		w.seed()
		older := w.publish().ID
		w.advance()
		id := w.publish().ID
		damage(t, filepath.Join(w.store.Snapshot(id), "chroma.sqlite3"), filepath.Join(w.store.Folder, "chroma.sqlite3"))
		w.lose()
		if err := os.Mkdir(w.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		says := []string{"chroma.sqlite3", "part 1", "restore --at " + older, "were not read"}
		harness.Explain(t, w.refused(5), says...)
		harness.Explain(t, harness.Must(t, 5, w.store, "sync", w.dir), says...)
		harness.Explain(t, harness.Must(t, 5, w.store, "restore", w.dir), says...)
		harness.Must(t, 0, w.store, "restore", "--at", older, w.dir) // what is offered is a way out
		m := w.mount()
		harness.Verify(t, w.point, seedDocuments())
		m.Unmount()
		harness.Must(t, 0, w.store, "history", "verify")
	})
	t.Run("mount with one copy damaged", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, harness.NewS3Store(t))
		w.seed()
		id := w.publish().ID
		damage(t, filepath.Join(w.store.Snapshot(id), "chroma.sqlite3"))
		w.lose()
		m := w.mount()
		harness.Verify(t, w.point, seedDocuments())
		m.Unmount()
	})
}
