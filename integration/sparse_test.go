package integration

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/integration/harness"
)

// hollow is the link_lists.bin of a damaged index as chroma#7510 reports it: 1.92 TiB
// to look at, next to nothing inside.
const (
	hollowSize = 2111062325330
	hollowName = "3f2504e0-4f89-11d3-9a0c-0305e82c3301/link_lists.bin"
	hollowPart = 256 * mib // what it is cut into
)

// blocks says what lies where in a hollow file.
type blocks map[int64]string

func firstBlocks() blocks {
	return blocks{0: "the first", hollowSize / 2: "the middle one", hollowSize - 9: "the last."}
}

func (b blocks) write(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	for off, text := range b {
		_, werr := f.WriteAt([]byte(text), off)
		err = errors.Join(err, werr)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// check fails the test unless a file holds the blocks, is a hole elsewhere and has the
// size.
func (b blocks) check(t *testing.T, name string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Size != hollowSize || st.Blocks*512 > 16*mib {
		t.Fatalf("%s has %d bytes, %d on disk, %v", name, st.Size, st.Blocks*512, err)
	}
	for off, want := range b {
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, off); err != nil || string(got) != want {
			t.Errorf("%s holds %q at %d, want %q: %v", name, got, off, want, err)
		}
	}
}

// hollow makes a disk with a hollow file.
func hollow(t *testing.T) (w *world, file string) {
	t.Helper()
	w = newWorld(t, harness.NewFileStore(t))
	file = filepath.Join(w.dir, hollowName)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	firstBlocks().write(t, file)
	return w, file
}

// A file of 1.92 TiB that is nearly empty stops snapshots, and says why.
func TestAHugeHollowFileIsRefused(t *testing.T) {
	t.Parallel()
	w, _ := hollow(t)
	says := []string{hollowName, "1.92TiB", "64GiB", "--max-file-size 2TiB", "collection"}

	harness.Explain(t, harness.Must(t, 1, w.store, "snapshot", w.dir), says...)
	m := w.mount()
	r := m.TrySnapshot()
	if r.Code != 1 {
		t.Fatalf("snapshot exited with %d: %s", r.Code, r.Output())
	}
	harness.Explain(t, r, says...)
	harness.Explain(t, harness.Must(t, 1, nil, "status", "--check", w.point), says...)
	if code := m.Stop(); code == 0 {
		t.Fatal("the mount ended as if everything were in the store")
	}
	if got := w.store.Stored(); len(got) > 0 {
		t.Fatalf("the store holds %v", got)
	}
}

// Where it is allowed, everything that is done with it takes seconds: what is a hole is
// not read, hashed, sent, fetched or written.
func TestAHugeHollowFile(t *testing.T) {
	t.Parallel()
	w, file := hollow(t)
	allow := []string{"--max-file-size", "2TiB"}
	start := time.Now()
	lap := func(what string) { t.Logf("%6.1f s: %s", time.Since(start).Seconds(), what) }
	first := parseOffline(t, w, allow...)
	// Three parts, of which the last is short, and the zeros that the others are copied from.
	if want := int64(2*hollowPart + hollowSize%hollowPart + wirePart); first.Bytes != hollowSize || first.BytesUploaded != want {
		t.Errorf("%d of %d bytes were sent, want %d", first.BytesUploaded, first.Bytes, want)
	}
	firstBlocks().check(t, filepath.Join(w.store.Snapshot(first.ID), hollowName))
	lap("first snapshot")
	m := w.mount(allow...)
	changed := blocks{hollowSize / 4: "new"}
	changed.write(t, filepath.Join(w.point, hollowName))
	second := m.Snapshot()
	if second.BytesUploaded != hollowPart {
		t.Errorf("%d bytes were sent for one changed part", second.BytesUploaded)
	}
	m.Unmount()
	lap("second snapshot")
	w.store.CheckWhole()
	lap("verified")
	for _, id := range w.store.Stored() {
		if names := harness.Entries(t, w.store.Snapshot(id)); len(names) != 2 || !slices.Contains(names, "manifest.json") {
			t.Errorf("the folder of a snapshot holds %v", names)
		}
	}

	w.lose()
	harness.Must(t, 0, w.store, "restore", w.dir)
	firstBlocks().check(t, file)
	changed.check(t, file)
	lap("restored")
	harness.Must(t, 0, w.store, "restore", "--at", first.ID, w.dir) // all but one part is there
	blocks{hollowSize / 4: "\x00\x00\x00"}.check(t, file)
	lap("restored the first over the second")
	harness.Must(t, 0, w.store, "restore", w.dir)
	changed.check(t, file)

	now := time.Now()
	if err := os.Chtimes(file, now, now); err != nil { // the journal has to look at it
		t.Fatal(err)
	}
	if s := parseOffline(t, w, allow...); s.ID != second.ID || s.BytesUploaded != 0 {
		t.Errorf("touched: %+v", s)
	}
	lap("scanned")
	if err := os.RemoveAll(filepath.Join(w.dir, ".chromafs")); err != nil { // compared with the store
		t.Fatal(err)
	}
	w.mountOnce(allow...)
	if got := w.store.Newest(); got != second.ID || len(w.backups()) > 0 {
		t.Errorf("an equal copy led to %s, backups %v", got, w.backups())
	}
	lap("compared")
	if took := time.Since(start); took > 3*time.Minute {
		t.Errorf("it took %v", took)
	}
}

func parseOffline(t *testing.T, w *world, flags ...string) harness.Snapshot {
	t.Helper()
	return harness.ParseSnapshot(t, harness.Must(t, 0, w.store, append([]string{"snapshot", "--json", w.dir}, flags...)...))
}

// What is only zeros is copied inside the store, and the folder of the snapshot has the
// whole file all the same, and no other, for any S3 client.
func TestZerosAreCopiedInsideTheStore(t *testing.T) {
	harness.EachStore(t, func(t *testing.T, store *harness.Store) {
		w := newWorld(t, store)
		if err := os.MkdirAll(w.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		const size = 6*wirePart + 100
		name := filepath.Join(w.dir, "sparse")
		blocks{2*wirePart + 7: "data", size - 3: "end"}.write(t, name)
		first := w.publish()
		if most := int64(2*wirePart + 100); first.BytesUploaded != most {
			t.Errorf("%d bytes were sent, want %d: a part, the last one, and one of zeros", first.BytesUploaded, most)
		}
		want := readFile(t, name)
		same := func(dir string) {
			t.Helper()
			if readFile(t, filepath.Join(dir, "sparse")) != want {
				t.Errorf("%s holds something else", dir)
			}
		}
		plain := store.Restored(first.ID)
		same(plain)
		if names := harness.Entries(t, plain); !slices.Equal(names, []string{"manifest.json", "sparse"}) {
			t.Errorf("the folder of the snapshot holds %v", names)
		}
		if err := os.Truncate(name, 9*wirePart); err != nil { // by zeros that the first has
			t.Fatal(err)
		}
		want = readFile(t, name)
		second := w.publish()
		if second.BytesUploaded != wirePart {
			t.Errorf("grown: %d bytes were sent, want the part that was the last one", second.BytesUploaded)
		}
		store.CheckWhole()
		same(store.Restored(second.ID))
		w.lose()
		harness.Must(t, 0, store, "restore", w.dir)
		same(w.dir)
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil || st.Blocks*512 > mib {
			t.Errorf("%d bytes on disk, %v", st.Blocks*512, err)
		}
	})
}
