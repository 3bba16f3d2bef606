package history

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/file"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/tree"
)

const seg = "3f2504e0-4f89-11d3-9a0c-0305e82c3301/"

func oldTree() files {
	return files{
		"chroma.sqlite3": content(1, 4*testPart), "chroma.sqlite3-journal": "hot", seg + "data_level0.bin": content(2, 3*testPart+17),
		seg + "length.bin": content(3, 100), "gone/deep/x": "y", "turns": "into a folder", "was/a": "folder", "link": "-> old",
	}
}

func newTree() files {
	f := oldTree()
	delete(f, "chroma.sqlite3-journal")
	delete(f, "gone/deep/x")
	delete(f, "turns")
	delete(f, "was/a")
	b := []byte(f["chroma.sqlite3"])
	b[2*testPart+5] ^= 1
	f["chroma.sqlite3"] = string(b)
	maps.Copy(f, files{seg + "data_level0.bin": content(2, 3*testPart+17)[:2*testPart+5], "turns/x": "z", "was": "now a file", "link": "-> new",
		"empty": "", "nothing/in/here/": "", "raw\xff\n": "raw", "manifest.json": "{}", "history/x": "mine", "out": "-> ../../../etc/passwd",
		"big-sparse": content(4, 12*holeBlock), "new": content(5, 5*testPart)})
	return f
}

func (w *world) options(d *datadir.Dir, m *Manifest) RestoreOptions {
	return RestoreOptions{Dir: d, Manifest: m, ManifestSHA256: w.sha, KeepLocal: true, Backups: 1, LocalClean: true,
		Now: func() time.Time { return w.now }, Log: quiet()}
}

// restore restores and finishes, as a mount does.
func (w *world) restore(o RestoreOptions) RestoreResult {
	w.t.Helper()
	res, err := Restore(w.t.Context(), w.c, o)
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := Unfinished(o.Dir)
	if err != nil || p == nil || p.Stage != StageInstalled || p.ID != o.Manifest.ID || p.ManifestSHA256 != o.ManifestSHA256 {
		w.t.Fatalf("before FinishRestore: %+v, %v", p, err)
	}
	w.finish(o.Dir)
	return res
}

func (w *world) finish(d *datadir.Dir) {
	w.t.Helper()
	if err := FinishRestore(d); err != nil {
		w.t.Fatal(err)
	}
	if p, err := Unfinished(d); err != nil || p != nil {
		w.t.Fatalf("after FinishRestore: %+v, %v", p, err)
	}
	if names, err := readNames(d.Scratch()); err != nil || len(names) > 0 {
		w.t.Fatalf("left in scratch: %v, %v", names, err)
	}
}

// backups returns what backups/ holds, by name.
func backups(t *testing.T, d *datadir.Dir) map[string]files {
	t.Helper()
	names, err := readNames(d.Backups())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]files{}
	for _, name := range names {
		all[name] = readTree(t, filepath.Join(d.Path(), datadir.StateName, datadir.BackupsName, name))
	}
	return all
}

// sameMeta checks modes, times, owners and sizes against the manifest.
func sameMeta(t *testing.T, entries []tree.Entry, m *Manifest) {
	t.Helper()
	if len(entries) != len(m.Entries) {
		t.Errorf("%d entries on disk, %d in the manifest", len(entries), len(m.Entries))
		return
	}
	for i, e := range entries {
		w := m.Entries[i]
		if e.Path != w.Path || e.Type != w.Type || e.Mode != w.Mode && e.Type != tree.Symlink || e.ModTime != w.ModTime ||
			e.UID != w.UID || e.GID != w.GID || e.Size != w.Size || e.Target != w.Target {
			t.Errorf("on disk %+v\nmanifest %+v", e, w.Entry)
		}
	}
}

// TestRestore brings a snapshot to an empty disk: bytes, names, modes, times,
// owners, links, folders and holes.
func TestRestore(t *testing.T) {
	w := newWorld(t)
	w.publish(oldTree())
	m, _ := w.upload(newTree())
	if os.Geteuid() == 0 {
		m.Entries[0].UID, m.Entries[0].GID = 1234, 5678
		m.Entries[0].Mode = 0o4755
	}
	d := openDir(t, filepath.Join(t.TempDir(), "dir"))
	res := w.restore(w.options(d, m))
	sameTree(t, "DIR", readTree(t, d.Path()), withFolders(newTree()))
	sameMeta(t, res.Entries, m)
	files, size := m.Files()
	if res.Files != files || res.Bytes != size || res.Fetched != size || res.Backup != "" || res.InPlace {
		t.Errorf("result: %d files, %d bytes, %d fetched, %q, %v; want %d files, %d bytes", res.Files, res.Bytes, res.Fetched, res.Backup, res.InPlace, files, size)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(d.Path(), "big-sparse"), &st); err != nil || st.Blocks*512 >= 12*holeBlock {
		t.Errorf("zeros take %d bytes on disk, %v", st.Blocks*512, err)
	}
	if len(backups(t, d)) > 0 {
		t.Error("a backup of nothing")
	}
}

// TestRestoreOverAnOlderCopy: R2. Only parts that differ are fetched, the old copy
// is kept, and of the kept ones the newest.
func TestRestoreOverAnOlderCopy(t *testing.T) {
	w := newWorld(t)
	w.publish(oldTree())
	m := w.publish(newTree())
	d := openDir(t, t.TempDir())
	writeTree(t, d.Path(), oldTree())
	res := w.restore(w.options(d, m))
	sameTree(t, "DIR", readTree(t, d.Path()), withFolders(newTree()))
	sameMeta(t, res.Entries, m)
	first := filepath.Base(res.Backup)
	sameTree(t, "the backup", backups(t, d)[first], withFolders(oldTree()))
	if _, size := m.Files(); res.Fetched >= size || res.Fetched < 6*testPart {
		t.Errorf("%d of %d bytes fetched", res.Fetched, size)
	}

	w.now = w.now.Add(-time.Hour) // a clock that stepped back makes no backup the oldest
	older := w.upload
	m2, _ := older(files{"a": "1"})
	o := w.options(d, m2)
	res = w.restore(o)
	if got := backups(t, d); len(got) != 1 || filepath.Base(res.Backup) == first {
		t.Fatalf("backups: %v", slices.Collect(maps.Keys(got)))
	}
	sameTree(t, "the backup", backups(t, d)[filepath.Base(res.Backup)], withFolders(newTree()))

	o.LocalClean = false // R3: what the store does not have is never pruned
	writeTree(t, d.Path(), files{"local": "only here"})
	kept := filepath.Base(w.restore(o).Backup)
	if !strings.HasSuffix(kept, unsaved) {
		t.Errorf("a backup with unsaved changes is named %q", kept)
	}
	o.LocalClean = true
	again := w.restore(o) // in the same millisecond
	w.now = w.now.Add(time.Hour)
	o.Backups = 0
	last := w.restore(o)
	got := backups(t, d)
	if len(got) != 1 || got[kept] == nil || last.Backup != "" || again.Backup == "" {
		t.Fatalf("backups: %v, last %q", slices.Collect(maps.Keys(got)), last.Backup)
	}
	sameTree(t, "the unsaved backup", got[kept], files{"a": "1", "local": "only here"})
}

func TestRestoreWithoutLocalBackup(t *testing.T) {
	w := newWorld(t)
	m := w.publish(newTree())
	d := openDir(t, t.TempDir())
	writeTree(t, d.Path(), oldTree())
	o := w.options(d, m)
	o.KeepLocal = false
	if res := w.restore(o); res.Backup != "" || len(backups(t, d)) > 0 {
		t.Fatalf("backup: %q", res.Backup)
	}
	sameTree(t, "DIR", readTree(t, d.Path()), withFolders(newTree()))
}

// TestRestoreTriesTheOtherCopy: R1.
func TestRestoreTriesTheOtherCopy(t *testing.T) {
	for name, damage := range map[string]func(w *world, key string, data []byte){
		"flipped bit": func(w *world, key string, data []byte) { data[testPart+7] ^= 1; w.put(key, string(data)) },
		"cut short":   func(w *world, key string, data []byte) { w.put(key, string(data[:testPart])) },
		"made longer": func(w *world, key string, data []byte) { w.put(key, string(data)+"x") },
		"emptied":     func(w *world, key string, data []byte) { w.put(key, "") },
		"missing":     func(w *world, key string, data []byte) { w.delete(key) },
	} {
		w := newWorld(t)
		m := w.publish(newTree())
		data := newTree()["new"]
		d := openDir(t, t.TempDir())
		writeTree(t, d.Path(), files{"new": content(9, 2*testPart)})
		damage(w, ObjectKey(m.ID, "new"), []byte(data))
		o := w.options(d, m)
		o.Backups = 9
		w.restore(o)
		sameTree(t, name+": DIR", readTree(t, d.Path()), withFolders(newTree()))

		damage(w, CurrentKey("new"), []byte(data))
		writeTree(t, d.Path(), files{"new": content(9, 2*testPart), "local": "x"})
		before := readTree(t, d.Path())
		_, err := Restore(t.Context(), w.c, o)
		if !errors.Is(err, ErrIntegrity) || exitcode.Of(err) != exitcode.Integrity || !strings.Contains(err.Error(), `"new", part`) {
			t.Errorf("%s, both copies: %v", name, err)
		}
		sameTree(t, name+": the old copy", readTree(t, d.Path()), before)
		if p, err := Unfinished(d); p != nil || err != nil {
			t.Errorf("%s: unfinished %+v, %v", name, p, err)
		}
	}
}

// A snapshot that is rotated away under a restore is ErrGone; one that cannot be
// looked up is the store's error.
func TestRestoreGone(t *testing.T) {
	w := newWorld(t)
	m := w.publish(files{"a": content(1, 3*testPart)})
	w.publish(files{"a": "2"})
	w.head.History = w.head.History[1:]
	w.head.Nonce = nonce(t)
	if _, _, err := w.c.swap(t.Context(), w.head, w.etag); err != nil {
		t.Fatal(err)
	}
	d := openDir(t, t.TempDir())
	writeTree(t, d.Path(), oldTree())
	w.fail(func(op memstore.Op) error {
		if op.Key == ObjectKey(m.ID, "a") && !op.After {
			return w.c.Remove(context.Background(), m.ID)
		}
		return nil
	})
	if _, err := Restore(t.Context(), w.c, w.options(d, m)); !errors.Is(err, ErrGone) || errors.Is(err, ErrIntegrity) {
		t.Fatalf("rotated away: %v", err)
	}
	sameTree(t, "the old copy", readTree(t, d.Path()), withFolders(oldTree()))
	w.fail(func(op memstore.Op) error {
		if op.Key == HeadKey {
			return objstore.ErrUnavailable
		}
		return nil
	})
	if _, err := Restore(t.Context(), w.c, w.options(d, m)); !errors.Is(err, objstore.ErrUnavailable) {
		t.Fatalf("head unavailable: %v", err)
	}
	w.fail(nil)
	next, err := w.c.Manifest(t.Context(), w.last.ID, w.sha)
	if err != nil {
		t.Fatal(err)
	}
	w.restore(w.options(d, next)) // the caller starts again with the newest
	sameTree(t, "DIR", readTree(t, d.Path()), files{"a": "2"})
}

// TestRestoreFailNth: every request of a restore fails in turn. Where asking again
// may help it is asked again; else the error surfaces with the old copy whole, and
// the next restore goes on.
func TestRestoreFailNth(t *testing.T) {
	disk := fastDisk(t)
	for _, kind := range []error{objstore.ErrUnavailable, objstore.ErrRefused} {
		for n := 0; ; n++ {
			w := newWorld(t)
			m := w.publish(newTree())
			d := openDir(t, disk(n))
			writeTree(t, d.Path(), oldTree())
			o := w.options(d, m)
			o.Parallel = 1
			var requests atomic.Int32
			w.fail(func(op memstore.Op) error {
				if !op.After && int(requests.Add(1))-1 == n {
					return kind
				}
				return nil
			})
			_, err := Restore(t.Context(), w.patient(), o)
			w.fail(nil)
			if int(requests.Load()) <= n {
				if n == 0 || err != nil {
					t.Fatalf("after %d requests: %v", n, err)
				}
				break
			}
			if kind == objstore.ErrRefused {
				if !errors.Is(err, kind) {
					t.Fatalf("request %d refused: %v", n, err)
				}
				sameTree(t, "the old copy", readTree(t, d.Path()), withFolders(oldTree()))
			} else if err != nil {
				t.Fatalf("request %d unavailable once: %v", n, err)
			}
			w.restore(o)
			sameTree(t, "DIR", readTree(t, d.Path()), withFolders(newTree()))
		}
	}
}

// TestRestoreResumesStaging: what an interrupted restore fetched is not fetched
// again, and is checked again (R1).
func TestRestoreResumesStaging(t *testing.T) {
	w := newWorld(t)
	f := files{"a": content(1, 10*testPart), "b": content(2, 5*testPart)}
	m := w.publish(f)
	d := openDir(t, t.TempDir())
	o := w.options(d, m)
	boom := errors.New("boom")
	o.step = func(name string) error {
		if name == "staged" {
			return boom
		}
		return nil
	}
	if _, err := Restore(t.Context(), w.c, o); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	staged := filepath.Join(d.Path(), datadir.StateName, datadir.ScratchName, stageName(m.ID))
	bad := []byte(f["a"])
	bad[5*testPart] ^= 1 // a page that never reached the disk
	if err := os.WriteFile(filepath.Join(staged, "a"), bad, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(staged, "b"), 10); err != nil {
		t.Fatal(err)
	}
	writeTree(t, staged, files{"stray/x": "y"})
	o.step = nil
	res := w.restore(o)
	if res.Fetched != 6*testPart {
		t.Errorf("%d bytes fetched, want %d", res.Fetched, 6*testPart)
	}
	sameTree(t, "DIR", readTree(t, d.Path()), f)
	sameMeta(t, res.Entries, m)
}

// TestRestoreIsStoppedByItsContext leaves the old copy whole.
func TestRestoreIsStoppedByItsContext(t *testing.T) {
	w := newWorld(t)
	m := w.publish(newTree())
	d := openDir(t, t.TempDir())
	writeTree(t, d.Path(), oldTree())
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	w.fail(func(op memstore.Op) error {
		if op.N%3 == 0 {
			cancel(stop)
		}
		return nil
	})
	if _, err := Restore(ctx, w.c, w.options(d, m)); !errors.Is(err, stop) {
		t.Fatalf("%v", err)
	}
	sameTree(t, "the old copy", readTree(t, d.Path()), withFolders(oldTree()))
	if err := DiscardPartial(d); err != nil {
		t.Fatal(err)
	}
	if names, err := readNames(d.Scratch()); err != nil || len(names) > 0 {
		t.Fatalf("left in scratch: %v, %v", names, err)
	}
}

// Restore does not trust a manifest, not even one that was made in memory.
func TestRestoreOfHostileManifests(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	for name, change := range hostile {
		d := openDir(t, t.TempDir())
		writeTree(t, d.Path(), oldTree())
		m := goldenManifest()
		change(m)
		if _, err := Restore(t.Context(), w.c, w.options(d, m)); !errors.Is(err, ErrIntegrity) {
			t.Errorf("%s: %v", name, err)
		}
		sameTree(t, name+": the old copy", readTree(t, d.Path()), withFolders(oldTree()))
	}
}

// TestRestoreStaysInside: links out of DIR, in the manifest and on the disk, symbolic
// and hard, are never followed nor written through.
func TestRestoreStaysInside(t *testing.T) {
	for _, inPlace := range []bool{false, true} {
		w := newWorld(t)
		want := files{"dir/x": "new", "file": "new", "deep/er/x": "new", "hard": "new", "link": "-> ../outside/kept", "out": "-> ../outside"}
		m := w.publish(want)
		top := t.TempDir()
		outside := files{"kept": "kept", "x": "kept", "er/x": "kept"}
		writeTree(t, filepath.Join(top, "outside"), outside)
		d := openDir(t, filepath.Join(top, "dir"))
		writeTree(t, d.Path(), files{"dir": "-> ../outside", "file": "-> ../outside/kept", "deep": "-> ../outside", "link": "was a file", "out": "-> ../outside"})
		if err := os.Link(filepath.Join(top, "outside", "kept"), filepath.Join(d.Path(), "hard")); err != nil {
			t.Fatal(err)
		}
		o := w.options(d, m)
		if inPlace {
			beginInPlace(t, w, o)
		}
		w.restore(o)
		sameTree(t, "DIR", readTree(t, d.Path()), withFolders(want))
		sameTree(t, "outside", readTree(t, filepath.Join(top, "outside")), withFolders(outside))
	}
}

func TestLostAndFoundStays(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("lost+found belongs to root: run scripts/test as root")
	}
	w := newWorld(t)
	m := w.publish(files{"a": "1", "lost+found/": ""})
	d := openDir(t, t.TempDir())
	writeTree(t, d.Path(), files{"old": "x", "lost+found/#12": "found"})
	if err := os.Chmod(filepath.Join(d.Path(), "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.restore(w.options(d, m))
	sameTree(t, "DIR", readTree(t, d.Path()), files{"a": "1", "lost+found/": "", "lost+found/#12": "found"})
}

// TestOnPlainFolders: every kind of name through a store that keeps objects as
// files, where x and x/y cannot be together and a name has 255 bytes.
func TestOnPlainFolders(t *testing.T) {
	store, err := file.New(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.c.store = store
	trees := []files{
		{"x": "1", "manifest.json": "2", "history/a": "3", "lease.json/b": "4", ".chromafs-store/x": "c", "raw\xff\n%": "5", "dot.": "6", `b\s`: "7",
			strings.Repeat("%", 255): "8", strings.Repeat("é", 127): "9", "...": "a", " ": "b", "e": ""},
		{"x/y": "1", "manifest.json/z": "2", "history": "3", strings.Repeat("%", 100) + "/" + strings.Repeat("\x01", 100): "8"},
	}
	d := openDir(t, filepath.Join(t.TempDir(), "dir"))
	for _, f := range trees {
		m := w.publish(f)
		w.restore(w.options(d, m))
		sameTree(t, "DIR", readTree(t, d.Path()), withFolders(f))
		if _, err := w.c.Verify(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	for path, data := range trees[1] {
		body, _, err := store.Get(t.Context(), CurrentKey(path), objstore.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil || string(got) != data {
			t.Fatalf("current %q: %q, %v", path, got, err)
		}
	}
	if n, err := w.c.Clear(t.Context()); err != nil || n != 1 {
		t.Fatalf("Clear: %d, %v", n, err)
	}
}
