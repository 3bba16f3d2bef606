package history

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// smallDisk mounts a tmpfs.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("mounting a tmpfs needs root: run scripts/test as root")
	}
	dir := t.TempDir()
	if err := unix.Mount("chromafs-test", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fastDisk returns what gives a fresh folder for each round of a sweep, where a sync
// costs nothing if that can be had.
func fastDisk(t *testing.T) func(n int) string {
	t.Helper()
	top := t.TempDir()
	if os.Geteuid() == 0 {
		top = smallDisk(t, "size=256m")
	}
	return func(n int) string {
		names, err := filepath.Glob(filepath.Join(top, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if err := os.RemoveAll(name); err != nil {
				t.Fatal(err)
			}
		}
		return filepath.Join(top, strconv.Itoa(n))
	}
}

// noise is content without holes.
func noise(seed byte, n int) string { return content(seed, 3*n)[:n] }

const mib = 1 << 20

// TestNoSpace: R2, R3 and exit code 6 on a disk of 8 MiB.
func TestNoSpace(t *testing.T) {
	for name, c := range map[string]struct {
		old, new          int // MiB
		clean, keep       bool
		refused           bool
		inPlace, noLookup bool
	}{
		"room for both":                 {old: 2, new: 3, keep: true},
		"no room for both, clean":       {old: 5, new: 5, clean: true, keep: true, inPlace: true},
		"no room for both, not kept":    {old: 5, new: 5, clean: true, inPlace: true},
		"no room for both, not clean":   {old: 5, new: 5, keep: true, refused: true},
		"no room for the new one alone": {old: 2, new: 9, clean: true, refused: true},
		"no room, nothing there":        {new: 9, clean: true, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			f := files{"a": noise(1, c.new*mib), "b/c": "new"}
			m := w.publish(f)
			old := files{}
			if c.old > 0 {
				old = files{"a": noise(2, c.old*mib), "old": "x"}
			}
			d := openDir(t, smallDisk(t, "size=8m"))
			writeTree(t, d.Path(), old)
			o := w.options(d, m)
			o.LocalClean, o.KeepLocal = c.clean, c.keep
			var asked atomic.Bool
			w.fail(func(memstore.Op) error { asked.Store(true); return nil })
			if c.refused {
				_, err := Restore(t.Context(), w.c, o)
				if !errors.Is(err, ErrNoSpace) || exitcode.Of(err) != exitcode.NoSpace || exitcode.Hint(err) == "" {
					t.Fatalf("%v", err)
				}
				if asked.Load() {
					t.Error("something was fetched")
				}
				if unsaved := !c.clean && c.old > 0; strings.Contains(exitcode.Hint(err), "changes that are not in the store") != unsaved {
					t.Errorf("hint: %s", exitcode.Hint(err))
				}
				sameTree(t, "the old copy", readTree(t, d.Path()), old)
				if p, err := Unfinished(d); p != nil || err != nil {
					t.Errorf("unfinished: %+v, %v", p, err)
				}
				return
			}
			w.fail(nil)
			res := w.restore(o)
			sameTree(t, "DIR", readTree(t, d.Path()), withFolders(f))
			sameMeta(t, res.Entries, m)
			if res.InPlace != c.inPlace || (res.Backup != "") != (c.keep && !c.inPlace) {
				t.Errorf("in place %v, backup %q", res.InPlace, res.Backup)
			}
		})
	}
}

// TestFullWhileStaging: ENOSPC although there seemed to be room, as with a quota.
// Here inodes run out.
func TestFullWhileStaging(t *testing.T) {
	old, want := files{}, files{}
	for i := range 30 {
		name := "f" + string(rune('a'+i))
		old[name], want[name] = "old", "new"
	}
	for _, clean := range []bool{true, false} {
		w := newWorld(t)
		m := w.publish(want)
		d := openDir(t, smallDisk(t, "size=8m,nr_inodes=60"))
		big := noise(3, 4*mib) // so that what is freed is enough
		old["big"] = big
		writeTree(t, d.Path(), old)
		o := w.options(d, m)
		o.LocalClean = clean
		if clean {
			if res := w.restore(o); !res.InPlace || res.Backup != "" {
				t.Fatalf("result: %+v", res)
			}
			sameTree(t, "DIR", readTree(t, d.Path()), want)
			continue
		}
		_, err := Restore(t.Context(), w.c, o)
		if !errors.Is(err, ErrNoSpace) || !errors.Is(err, unix.ENOSPC) || exitcode.Of(err) != exitcode.NoSpace {
			t.Fatalf("%v", err)
		}
		sameTree(t, "the old copy", readTree(t, d.Path()), old)
		if names, err := readNames(d.Scratch()); err != nil || len(names) > 0 {
			t.Fatalf("left in scratch: %v, %v", names, err)
		}
	}
}

// TestFullWhileStagingAndNoMore: what could be staged and what the old copy takes is
// all that is known to fit, whatever statfs says is free; less than the new copy
// needs means that the old one is not touched, though the store has it.
func TestFullWhileStagingAndNoMore(t *testing.T) {
	w := newWorld(t)
	old, want := files{}, files{}
	for i := range 30 {
		name := "f" + strconv.Itoa(i)
		old[name], want[name] = "old", noise(byte(i), 100_000)
	}
	m := w.publish(want)
	d := openDir(t, smallDisk(t, "size=16m,nr_inodes=60"))
	writeTree(t, d.Path(), old)
	if _, err := Restore(t.Context(), w.c, w.options(d, m)); !errors.Is(err, ErrNoSpace) || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("%v", err)
	}
	sameTree(t, "the old copy", readTree(t, d.Path()), old)
	if p, err := Unfinished(d); p != nil || err != nil {
		t.Fatalf("unfinished: %+v, %v", p, err)
	}
}

// TestFullInPlace: a restore in place that runs out of space is marked, never whole
// by accident, and goes on when there is space.
func TestFullInPlace(t *testing.T) {
	w := newWorld(t)
	f := files{"a": noise(1, 5*mib), "b": noise(2, mib)}
	m := w.publish(f)
	disk := smallDisk(t, "size=8m")
	d := openDir(t, filepath.Join(disk, "dir"))
	writeTree(t, d.Path(), files{"a": noise(3, 4*mib)})
	filler := filepath.Join(disk, "filler")
	o := w.options(d, m)
	o.step = func(name string) error {
		if name == "in-place" {
			return os.WriteFile(filler, []byte(noise(4, 2*mib)), 0o600)
		}
		return nil
	}
	_, err := Restore(t.Context(), w.c, o)
	if !errors.Is(err, ErrNoSpace) || exitcode.Of(err) != exitcode.NoSpace || !strings.Contains(exitcode.Hint(err), "goes on") {
		t.Fatalf("%v", err)
	}
	if p, err := Unfinished(d); err != nil || p == nil || p.Stage != StageInPlace {
		t.Fatalf("unfinished: %+v, %v", p, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	o.step = nil
	if res := w.restore(o); !res.InPlace {
		t.Error("not in place")
	}
	sameTree(t, "DIR", readTree(t, d.Path()), f)
}

// The emptiness of a sparse file is neither counted nor fetched.
func TestSparseFilesFit(t *testing.T) {
	w := newWorld(t)
	m := w.manifestOf(files{"small": "x"})
	const size = 40 * tree.MinPartSize
	sums, err := tree.HashParts(t.Context(), tree.Zeros{}, size, tree.MinPartSize)
	if err != nil {
		t.Fatal(err)
	}
	m.Entries = append(m.Entries, tree.Record{Entry: tree.Entry{Path: "zeros", Type: tree.File, Mode: 0o600, Size: size},
		PartSize: tree.MinPartSize, Parts: sums})
	w.put(ObjectKey(m.ID, "small"), "x")
	d := openDir(t, smallDisk(t, "size=8m"))
	res := w.restore(w.options(d, m))
	if res.Fetched != 1 {
		t.Errorf("%d bytes fetched", res.Fetched)
	}
	info, err := os.Stat(filepath.Join(d.Path(), "zeros"))
	if err != nil || info.Size() != size {
		t.Errorf("%v, %v", info, err)
	}
}

// An ordinary user can move and remove folders that are not writable.
func TestFoldersWithoutPermissions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("becoming another user needs root: run scripts/test as root")
	}
	const nobody = 65534
	top := t.TempDir()
	for path := top; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeTree(t, top, files{"from/r/x": "1", "from/n/y/z": "2", "to/": ""})
	for path, mode := range map[string]os.FileMode{"from/n/y/z": 0o600, "from/n/y": 0, "from/n": 0, "from/r": 0o500, "from": 0o700, "to": 0o700} {
		if err := errors.Join(os.Chmod(filepath.Join(top, path), mode), os.Lchown(filepath.Join(top, path), nobody, nobody)); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends as nobody
		if _, err := unix.SetfsuidRetUid(nobody); err != nil {
			done <- err
			return
		}
		done <- func() error {
			from, err := os.Open(filepath.Join(top, "from"))
			if err != nil {
				return err
			}
			defer from.Close()
			to, err := os.Open(filepath.Join(top, "to"))
			if err != nil {
				return err
			}
			defer to.Close()
			if err := errors.Join(rename(from, "r", to, "r"), rename(from, "n", to, "n")); err != nil {
				return err
			}
			for name, mode := range map[string]uint32{"r": 0o500, "n": 0} {
				if e, _, err := tree.Stat(to, name); err != nil || e.Mode != mode {
					return errors.Join(err, errors.New("the mode of "+name+" has changed"))
				}
			}
			return errors.Join(removeTree(to, "r"), removeTree(to, "n"), removeTree(to, "missing"))
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := readTree(t, top); len(got) != 2 {
		t.Fatalf("left: %v", got)
	}
}
