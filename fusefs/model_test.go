package fusefs

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/tree"
)

// snapshot describes a whole directory, with content.
func snapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, walk(root, func(rel, p string, e fs.DirEntry) error {
		text := describe(p)
		if e.Type().IsRegular() {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += " content " + digest(b)
		}
		if e.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			text += " -> " + target
		}
		all[rel] = text
		return nil
	}))
	return all
}

// walk calls f for everything below root, and root, but the hidden folder.
func walk(root string, f func(rel, p string, e fs.DirEntry) error) error {
	return filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if rel == ".chromafs" {
			return fs.SkipDir
		}
		return f(rel, p, e)
	})
}

func sameTree(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for _, diff := range differences(got, want) {
		t.Errorf("%s: %s", what, diff)
	}
}

func differences(got, want map[string]string) (diffs []string) {
	paths := maps.Clone(got)
	maps.Copy(paths, want)
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		if got[p] != want[p] {
			diffs = append(diffs, fmt.Sprintf("%.40s:\n got  %q\n want %q", p, got[p], want[p]))
		}
	}
	return diffs
}

// shot is a directory at one instant, as far as a view can show it.
type shot struct {
	texts map[string]string // of every path but "."
	data  map[string][]byte // of files
}

// shotOf copies a directory.
func shotOf(root string) (s shot, err error) {
	s = shot{map[string]string{}, map[string][]byte{}}
	return s, walk(root, func(rel, p string, _ fs.DirEntry) error {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		e, ok := tree.FromStat(rel, &st)
		if !ok || rel == "." {
			return nil // a FIFO is in no view
		}
		switch e.Type {
		case tree.Symlink:
			if e.Target, err = os.Readlink(p); err != nil {
				return err
			}
		case tree.File:
			if s.data[rel], err = os.ReadFile(p); err != nil {
				return err
			}
		}
		s.texts[rel] = entryText(e)
		return nil
	})
}

// entryText is what a view and a copy must agree about.
func entryText(e tree.Entry) string {
	text := fmt.Sprintf("%s mode %o owner %d:%d size %d -> %s", e.Type, e.Mode, e.UID, e.GID, e.Size, e.Target)
	if e.Type != tree.Dir {
		text += fmt.Sprintf(" nlink %d", e.Nlink)
	}
	if e.ModTime < stepTimesEnd*int64(time.Second) {
		text += fmt.Sprintf(" mtime %d", e.ModTime)
	}
	return text
}

// sameFile compares a file of a view with its copy.
func sameFile(v *View, path string, want []byte) error {
	r, err := v.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	got := make([]byte, len(want))
	if n, err := r.ReadAt(got, 0); n < len(got) {
		return fmt.Errorf("%d of %d bytes: %w", n, len(got), err)
	}
	if bytes.Equal(got, want) {
		return nil
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("%.40s: byte %d of %d is %q, in the copy %q", path, i, len(want), got[i], want[i])
		}
	}
	return nil
}

// sameView compares a view with a copy made at its cut.
func sameView(v *View, want shot) error {
	got := map[string]string{}
	for _, e := range v.Entries() {
		got[e.Path] = entryText(e)
	}
	if diffs := differences(got, want.texts); len(diffs) > 0 {
		return fmt.Errorf("cut %d: %s", v.Number(), strings.Join(diffs, "\n"))
	}
	for path, data := range want.data {
		if err := sameFile(v, path, data); err != nil {
			return fmt.Errorf("cut %d: %w", v.Number(), err)
		}
	}
	return nil
}

// pair is a mount and a plain directory to which the same is done, and at times a
// view of the one with a copy of the other.
type pair struct {
	fx       *fixture
	mnt, ref *world
	view     *View
	copied   shot
	cuts     int
}

func newPair(t *testing.T, m *mapper) *pair {
	// A segment that is busy for long is cut through: nobody else is at work here.
	fx := mounted(t, func(o *Options) { o.QuiesceTimeout = 4 * time.Millisecond })
	plain := t.TempDir()
	must(t, os.Chmod(plain, 0o755))
	p := &pair{fx: fx, mnt: newWorld(fx.mnt, m), ref: newWorld(plain, m)}
	p.ref.plain = true
	return p
}

// do carries out a step on both and says how they differ.
func (p *pair) do(s step) error {
	switch s[0] {
	case "cut":
		return p.cut()
	case "check":
		return p.check()
	case "peek":
		if path := longName(s[1]); p.view != nil && p.copied.data[path] != nil {
			return sameFile(p.view, path, p.copied.data[path])
		}
		return nil
	}
	if got, want := s.run(p.mnt), s.run(p.ref); got != want {
		return fmt.Errorf("\n got  %.300s\n want %.300s", got, want)
	}
	return nil
}

func (p *pair) cut() (err error) {
	if err := p.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if p.view, err = p.fx.fs.Cut(ctx); err != nil {
		return err
	}
	p.cuts++
	p.copied, err = shotOf(p.ref.root)
	return err
}

// check compares the view with the copy and ends it.
func (p *pair) check() error {
	if p.view == nil {
		return nil
	}
	err := sameView(p.view, p.copied)
	if cerr := p.view.Close(); err == nil {
		err = cerr
	}
	p.view = nil
	return err
}

// end compares all there is, at last the backing directory, and unmounts.
func (p *pair) end(t *testing.T) error {
	err := p.check()
	if diffs := differences(snapshot(t, p.mnt.root), snapshot(t, p.ref.root)); err == nil && len(diffs) > 0 {
		err = fmt.Errorf("mount: %s", strings.Join(diffs, "\n"))
	}
	p.mnt.close()
	p.ref.close()
	// Of a file whose last use was a map, the pusher's descriptor goes a moment later.
	eventually(t, "nothing keeps the mount busy", func() bool { return p.fx.fs.Unmount(false) == nil })
	backing, want := snapshot(t, p.fx.dir), snapshot(t, p.ref.root)
	delete(backing, ".") // its link count knows of the hidden folder
	delete(want, ".")
	if diffs := differences(backing, want); err == nil && len(diffs) > 0 {
		err = fmt.Errorf("backing directory: %s", strings.Join(diffs, "\n"))
	}
	return err
}

// runSteps does steps to a new pair. at is the step that differed.
func runSteps(t *testing.T, m *mapper, steps []step) (at, cuts int, err error) {
	t.Helper()
	p := newPair(t, m)
	for i, s := range steps {
		if err = p.do(s); err != nil {
			err = fmt.Errorf("step %d: %.300s: %w", i, s, err)
			at = i + 1
			break
		}
	}
	if err != nil {
		_ = p.end(t) // to unmount; it will differ further
		return at, p.cuts, err
	}
	if got := p.fx.rec.take(); slices.Contains(got, ".chromafs") {
		return len(steps), p.cuts, fmt.Errorf("marks: %v", got)
	}
	return len(steps), p.cuts, p.end(t)
}

// A failing sequence is cut down for at most so long, and so many runs.
const (
	shrinkTime = 30 * time.Second
	shrinkRuns = 150
)

// shrink leaves steps out while the sequence still fails: halves first, then less
// and less.
func shrink(t *testing.T, steps []step, fails func([]step) bool) []step {
	runs, until := 0, time.Now().Add(shrinkTime)
	for size := (len(steps) + 1) / 2; size > 0; size /= 2 {
		for at := 0; at < len(steps); {
			if runs++; runs > shrinkRuns || time.Now().After(until) {
				t.Logf("not cut down any further after %d runs", runs)
				return steps
			}
			less := slices.Concat(steps[:at], steps[min(at+size, len(steps)):])
			if fails(less) {
				steps = less
			} else {
				at += size
			}
		}
	}
	return steps
}

// runModel does steps, and cuts them down where they fail.
func runModel(t *testing.T, steps []step) {
	t.Helper()
	m := startMapper(t)
	at, cuts, err := runSteps(t, m, steps)
	if err == nil {
		t.Logf("%d steps, %d cuts", len(steps), cuts)
		return
	}
	t.Error(err)
	short := shrink(t, steps[:at], func(s []step) bool { _, _, err := runSteps(t, m, s); return err != nil })
	_, _, err = runSteps(t, m, short)
	var text bytes.Buffer
	for _, s := range short {
		fmt.Fprintln(&text, s)
	}
	t.Errorf("%d steps suffice (keep them in testdata/model): %v\n%s", len(short), err, text.String())
}

// modelSeed is a new one, or that of a run that failed.
func modelSeed(t *testing.T) uint64 {
	t.Helper()
	if text := os.Getenv("CHROMAFS_MODEL_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		must(t, err)
		return seed
	}
	return uint64(time.Now().UnixNano())
}

// F1, S1: random operations do the same on the mount as on a plain directory; views
// that are cut in between, and read while the operations go on, equal copies of the
// plain directory; and the backing directory holds the same at the end.
func TestModel(t *testing.T) {
	steps := 3000
	if testing.Short() {
		steps = 500
	}
	for range 4 {
		seed := modelSeed(t)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			m := newModel(seed)
			list := make([]step, steps)
			for i := range list {
				list[i] = m.step()
			}
			runModel(t, list)
		})
	}
}

// The same for sequences that failed once, or are about one thing.
func TestModelCases(t *testing.T) {
	files, err := filepath.Glob("testdata/model/*")
	must(t, err)
	if len(files) == 0 {
		t.Fatal("no cases in testdata/model")
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			text, err := os.ReadFile(name)
			must(t, err)
			runModel(t, readSteps(string(text)))
		})
	}
}
