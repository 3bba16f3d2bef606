package journal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/tree"
)

func scanned(t *testing.T, j *Journal, root *os.File) ScanReport {
	t.Helper()
	r, err := j.Scan(context.Background(), root)
	must(t, err)
	checked(t, j)
	return r
}

// rewrite writes the same content again.
func rewrite(name string) func(dir string) error {
	return func(dir string) error {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), b, 0o644)
	}
}

// overwrite changes one byte in place.
func overwrite(name string, off int64) func(dir string) error {
	return func(dir string) error {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte("#"), off)
		return errors.Join(err, f.Close())
	}
}

// J4: what changed while nobody was watching is found, by content.
func TestJ4Scan(t *testing.T) {
	const entries = 9
	later := time.Now().Add(time.Hour)
	for _, test := range []struct {
		name   string
		change func(dir string) error
		want   ScanReport
		marks  map[string]uint64
	}{
		{"nothing", func(string) error { return nil }, ScanReport{entries, 0, 0}, nil},
		{"same content written again", rewrite("chroma.sqlite3"), ScanReport{entries, 1, 0}, nil},
		{"touched", func(d string) error { return os.Chtimes(filepath.Join(d, "big"), later, later) }, ScanReport{entries, 1, 0}, nil},
		{"replaced by its equal", func(d string) error {
			b, err := os.ReadFile(filepath.Join(d, "seg/data.bin"))
			return errors.Join(err, os.WriteFile(filepath.Join(d, ".chromafs/tmp"), b, 0o644), os.Rename(filepath.Join(d, ".chromafs/tmp"), filepath.Join(d, "seg/data.bin")))
		}, ScanReport{entries, 1, 0}, nil},
		{"a byte of the first part", overwrite("big", 0), ScanReport{entries, 1, 1}, map[string]uint64{"big": 1}},
		{"a byte of the last part", overwrite("big", tree.MinPartSize), ScanReport{entries, 1, 1}, map[string]uint64{"big": 1}},
		{"changed, its mtime put back", func(d string) error {
			info, err := os.Stat(filepath.Join(d, "chroma.sqlite3"))
			if err != nil {
				return err
			}
			return errors.Join(overwrite("chroma.sqlite3", 3)(d), os.Chtimes(filepath.Join(d, "chroma.sqlite3"), info.ModTime(), info.ModTime()))
		}, ScanReport{entries, 1, 1}, map[string]uint64{"chroma.sqlite3": 1}},
		{"grown", func(d string) error { return os.Truncate(filepath.Join(d, "seg/data.bin"), 100) }, ScanReport{entries, 0, 1}, map[string]uint64{"seg/data.bin": 1}},
		{"emptied", func(d string) error { return os.Truncate(filepath.Join(d, "seg/data.bin"), 0) }, ScanReport{entries, 0, 1}, map[string]uint64{"seg/data.bin": 1}},
		{"chmod", func(d string) error { return os.Chmod(filepath.Join(d, "empty"), 0o600) }, ScanReport{entries, 0, 1}, map[string]uint64{"empty": 1}},
		{"removed", func(d string) error { return os.Remove(filepath.Join(d, "empty")) }, ScanReport{entries - 1, 0, 1}, map[string]uint64{"empty": 1}},
		{"folder removed", func(d string) error { return os.RemoveAll(filepath.Join(d, "seg")) }, ScanReport{entries - 5, 0, 5}, map[string]uint64{"seg": 1}},
		{"new folder", func(d string) error {
			return errors.Join(os.Mkdir(filepath.Join(d, "n"), 0o755), os.WriteFile(filepath.Join(d, "n/f"), nil, 0o644))
		}, ScanReport{entries + 2, 0, 2}, map[string]uint64{"n": 1}},
		{"new file", func(d string) error { return os.WriteFile(filepath.Join(d, "seg/new"), nil, 0o644) }, ScanReport{entries + 1, 0, 1}, map[string]uint64{"seg/new": 1}},
		{"link turned", func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "link")), os.Symlink("elsewhere", filepath.Join(d, "link")))
		}, ScanReport{entries, 0, 1}, map[string]uint64{"link": 1}},
		{"file became a folder", func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "empty")), os.Mkdir(filepath.Join(d, "empty"), 0o755))
		}, ScanReport{entries, 0, 1}, map[string]uint64{"empty": 1}},
		{"inside .chromafs", func(d string) error { return os.WriteFile(filepath.Join(d, ".chromafs/x"), nil, 0o644) }, ScanReport{entries, 0, 0}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			root, state, j := plainDir(t)
			must(t, j.Stop(walk(t, root)))
			must(t, j.Close())
			must(t, test.change(root.Name()))
			j = open(t, state)
			if got := scanned(t, j, root); got != test.want {
				t.Errorf("report %+v, want %+v", got, test.want)
			}
			wantMarks(t, j, test.marks)
			// Once more, as after a crash: what was hashed is known now, what is
			// dirty stays so.
			j = reopen(t, j, state)
			if got := scanned(t, j, root); got.Hashed != 0 || len(test.marks) == 0 && got.Changed != 0 {
				t.Errorf("scanned again: %+v", got)
			}
			wantMarks(t, j, test.marks)
		})
	}
}

// J4: without a base everything is dirty, and an empty DIR is not.
func TestJ4ScanWithoutABase(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, datadir.StateName)
	must(t, os.Mkdir(state, 0o700))
	root := folder(t, dir)
	j := open(t, state)
	if got := scanned(t, j, root); got != (ScanReport{}) || !j.Dirty().Empty() {
		t.Errorf("an empty folder: %+v, %+v", got, j.Dirty())
	}
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	if got := scanned(t, j, root); got != (ScanReport{1, 0, 1}) || !j.Dirty().All {
		t.Errorf("one file: %+v, %+v", got, j.Dirty())
	}
	if !reopen(t, j, state).Dirty().All {
		t.Error("the mark did not last")
	}
}

// J2, J4: finishing a publication that was cut before the crash does not clear
// what Scan found.
func TestJ4ScanMarksOutliveAnEarlierCut(t *testing.T) {
	root, _, j := plainDir(t)
	must(t, j.Mark(4, "big"))
	all := records(t, root)
	must(t, j.SetIntent(Intent{ID: "id-2", Nonce: "n", Cut: 5, Sequence: 2}))
	must(t, os.WriteFile(filepath.Join(root.Name(), "empty"), []byte("no more"), 0o644))
	scanned(t, j, root)
	must(t, j.Acknowledge(published(2, 5, all...)))
	wantMarks(t, j, map[string]uint64{"empty": 5})
}

// J4: a change behind the mount's back while it was up is not hidden by a clean
// stop, and one to a dirty file after it is reported.
func TestJ4ScanAfterACleanStop(t *testing.T) {
	root, state, j := plainDir(t)
	must(t, j.Mark(2, "seg/length.bin", "seg/later"))
	must(t, os.WriteFile(filepath.Join(root.Name(), "seg/later"), []byte("new"), 0o644))
	must(t, os.WriteFile(filepath.Join(root.Name(), "chroma.sqlite3"), []byte("A DATABASE"), 0o644))
	must(t, j.Stop(walk(t, root)))
	j = reopen(t, j, state)
	must(t, os.WriteFile(filepath.Join(root.Name(), "seg/later"), []byte("newer"), 0o644))
	if got := scanned(t, j, root); got != (ScanReport{10, 1, 2}) {
		t.Errorf("report %+v", got)
	}
	wantMarks(t, j, map[string]uint64{"chroma.sqlite3": 2, "seg/length.bin": 2, "seg/later": 2})
}

// A publication finished from its manifest, which knows no inodes, costs the hash
// of what it changed only.
func TestAcknowledgeWithoutStats(t *testing.T) {
	root, _, j := plainDir(t)
	must(t, j.Mark(1, "seg/data.bin"))
	must(t, os.WriteFile(filepath.Join(root.Name(), "seg/data.bin"), []byte("other vectors"), 0o644))
	all := records(t, root)
	for i := range all {
		all[i].Inode, all[i].ChangeTime = 0, 0
	}
	must(t, j.Acknowledge(published(2, 2, all...)))
	if got := scanned(t, j, root); got != (ScanReport{9, 1, 0}) {
		t.Errorf("report %+v", got)
	}
	if got := scanned(t, j, root); got != (ScanReport{9, 0, 0}) || !j.Dirty().Empty() {
		t.Errorf("report %+v, dirty %+v", got, j.Dirty())
	}
}

func TestScanEnds(t *testing.T) {
	root, _, j := plainDir(t)
	later := time.Now().Add(time.Hour)
	must(t, os.Chtimes(filepath.Join(root.Name(), "big"), later, later))
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("enough")
	cancel(why)
	if _, err := j.Scan(ctx, root); !errors.Is(err, why) {
		t.Errorf("a cancelled scan: %v", err)
	}
	if !j.Dirty().Empty() {
		t.Error("a cancelled scan marked something")
	}
}
