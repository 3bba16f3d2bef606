package history

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// beginInPlace leaves DIR as a restore in place leaves it that is killed before its
// first change.
func beginInPlace(t *testing.T, w *world, o RestoreOptions) {
	t.Helper()
	r := &restorer{c: w.c, o: o, m: o.Manifest, dir: o.Dir}
	if err := errors.Join(r.saveManifest(), r.newIntent(StageInPlace).write(r)); err != nil {
		t.Fatal(err)
	}
}

var errKilled = errors.New("killed here")

// TestCrashSweep: R2. A restore is killed at every step; then the old copy is whole,
// or a pending restore says that DIR is not to be served; the next restore makes
// DIR exactly the snapshot, the old copy exactly the backup. From the first intent
// on that needs no store, except in place.
func TestCrashSweep(t *testing.T) {
	for _, c := range []struct {
		name          string
		keep, inPlace bool
	}{{"keep the old copy", true, false}, {"remove the old copy", false, false}, {"in place", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			steps := map[string]int{}
			disk := fastDisk(t)
			for n := 0; ; n++ {
				w := newWorld(t)
				w.publish(oldTree())
				m := w.publish(newTree())
				d := openDir(t, disk(n))
				writeTree(t, d.Path(), oldTree())
				o := w.options(d, m)
				o.KeepLocal, o.Parallel = c.keep, 1
				if c.inPlace {
					beginInPlace(t, w, o)
				}
				if !killAt(t, w, o, n, steps) {
					break
				}
				afterKill(t, w, o, n)
			}
			for _, name := range map[bool][]string{
				false: {"file", "fetch", "staged", "manifest", "intent-retire", "retire", "retire-entry", "intent-install", "install", "install-entry", "intent-installed", "installed"},
				true:  {"intent-in-place", "in-place", "clear-entry", "file", "intent-installed", "installed"},
			}[c.inPlace] {
				if steps[name] == 0 {
					t.Errorf("never killed at %q: %v", name, steps)
				}
			}
		})
	}
}

// killAt runs a restore until its step n; false where there are fewer.
func killAt(t *testing.T, w *world, o RestoreOptions, n int, steps map[string]int) bool {
	t.Helper()
	var count atomic.Int32
	var at string
	o.step = func(name string) error {
		switch now := int(count.Add(1)) - 1; {
		case now == n:
			at = name
			return fmt.Errorf("%w: %s", errKilled, name)
		case now > n:
			t.Errorf("step %q after the kill", name)
		}
		return nil
	}
	_, err := Restore(t.Context(), w.c, o)
	steps[at]++
	if int(count.Load()) <= n && err == nil {
		return false
	}
	if !errors.Is(err, errKilled) {
		t.Fatalf("step %d: %v", n, err)
	}
	return true
}

func afterKill(t *testing.T, w *world, o RestoreOptions, n int) {
	t.Helper()
	p, err := Unfinished(o.Dir)
	switch {
	case err != nil:
		t.Fatal(err)
	case p == nil:
		sameTree(t, fmt.Sprintf("step %d: the old copy", n), readTree(t, o.Dir.Path()), withFolders(oldTree()))
	case p.Stage == StageInstalled:
		sameTree(t, fmt.Sprintf("step %d: the new copy", n), readTree(t, o.Dir.Path()), withFolders(newTree()))
		fallthrough
	default:
		if o.Manifest, err = p.Manifest(o.Dir); err != nil {
			t.Fatal(err)
		}
		if p.Stage != StageInPlace {
			w.fail(func(memstore.Op) error { return objstore.ErrRefused })
		}
	}
	res := w.restore(o)
	sameTree(t, fmt.Sprintf("step %d: DIR", n), readTree(t, o.Dir.Path()), withFolders(newTree()))
	sameMeta(t, res.Entries, o.Manifest)
	if got := backups(t, o.Dir); o.KeepLocal {
		sameTree(t, fmt.Sprintf("step %d: the backup", n), got[filepath.Base(res.Backup)], withFolders(oldTree()))
	} else if len(got) > 0 {
		t.Fatalf("step %d: backups %v", n, got)
	}
}

// A kill at every step, then the store has moved on: the newer snapshot comes whole,
// and nothing of the old copy is lost before.
func TestCrashThenANewerSnapshot(t *testing.T) {
	disk := fastDisk(t)
	for n := 0; ; n++ {
		w := newWorld(t)
		m := w.publish(newTree())
		d := openDir(t, disk(n))
		writeTree(t, d.Path(), oldTree())
		o := w.options(d, m)
		o.Parallel, o.Backups = 1, 2
		if !killAt(t, w, o, n, map[string]int{}) {
			break
		}
		newest := files{"a": content(8, testPart), "turns": "a file again"}
		o.Manifest = w.publish(newest)
		o.ManifestSHA256 = w.sha
		w.restore(o)
		sameTree(t, "DIR", readTree(t, d.Path()), newest)
		found := false
		for _, b := range backups(t, d) {
			found = found || maps.Equal(b, withFolders(oldTree()))
		}
		if !found {
			t.Fatalf("step %d: the old copy is in no backup", n)
		}
	}
}

// In place the same: the newer snapshot replaces the one that was being restored.
func TestInPlaceThenANewerSnapshot(t *testing.T) {
	w := newWorld(t)
	m := w.publish(newTree())
	d := openDir(t, t.TempDir())
	writeTree(t, d.Path(), oldTree())
	o := w.options(d, m)
	o.Parallel = 1
	beginInPlace(t, w, o)
	if !killAt(t, w, o, 12, map[string]int{}) {
		t.Fatal("too few steps")
	}
	newest := files{"a": content(8, testPart), "turns": "a file again"}
	o.Manifest, o.LocalClean = w.publish(newest), false
	o.ManifestSHA256 = w.sha
	if res := w.restore(o); !res.InPlace || res.Backup != "" {
		t.Fatalf("result: %+v", res)
	}
	sameTree(t, "DIR", readTree(t, d.Path()), newest)
}

// What somebody writes into DIR between a crash and the next mount is moved away,
// not overwritten (R3).
func TestEntriesThatAppearDuringACrash(t *testing.T) {
	for _, at := range []string{"retire-entry", "install"} {
		w := newWorld(t)
		m := w.publish(newTree())
		d := openDir(t, t.TempDir())
		writeTree(t, d.Path(), oldTree())
		o := w.options(d, m)
		o.step = func(name string) error {
			if name == at {
				return errKilled
			}
			return nil
		}
		if _, err := Restore(t.Context(), w.c, o); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		writeTree(t, d.Path(), files{"chroma.sqlite3": "an application's", "strange": "too"})
		o.step = nil
		res := w.restore(o)
		got := readTree(t, d.Path())
		delete(got, "strange")
		sameTree(t, "DIR", got, withFolders(newTree()))
		found := false
		for _, data := range backups(t, d)[filepath.Base(res.Backup)] {
			found = found || data == "an application's"
		}
		if !found {
			t.Errorf("killed at %s: what appeared is lost", at)
		}
	}
}

// An intent whose staged copy is missing touches nothing.
func TestIntentWithoutACopy(t *testing.T) {
	w := newWorld(t)
	m := w.publish(newTree())
	d := openDir(t, t.TempDir())
	writeTree(t, d.Path(), oldTree())
	r := &restorer{c: w.c, o: w.options(d, m), m: m, dir: d}
	if err := r.newIntent(StageRetire).write(r); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), w.c, r.o); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%v", err)
	}
	sameTree(t, "the old copy", readTree(t, d.Path()), withFolders(oldTree()))
	if err := FinishRestore(d); err == nil {
		t.Fatal("finished in the middle")
	}
	if err := os.WriteFile(filepath.Join(d.Path(), datadir.StateName, intentName), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Unfinished(d); exitcode.Of(err) != exitcode.Integrity || exitcode.Hint(err) == "" {
		t.Fatalf("a damaged intent: %v", err)
	}
}
