package fusefs

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/tree"
)

// stream is what one goroutine does to the mount: random steps on names of its own
// in folders that all share, so that the result does not depend on the others.
type stream struct {
	id    int
	model model
	steps []streamStep
	world *world
}

// streamStep is a step with the instants before and after it, on a clock that all
// streams share, and with what it saw.
type streamStep struct {
	step
	began, ended int64
	said         string
}

// sharedFolders are there from the beginning.
var sharedFolders = []string{"s", "t", "s/u"}

func newStream(id int, seed uint64) *stream {
	m := newModel(seed + uint64(id))
	own := fmt.Sprintf("w%d-", id)
	m.paths = nil
	for _, dir := range []string{"s/", "t/", "s/u/"} {
		m.paths = append(m.paths, dir+own+"a", dir+own+"b", "s/"+own+"d", "s/"+own+"d/x")
	}
	// No write takes set-uid bits off first, which would be two changes in one step.
	m.modes = []int{0o644, 0o755, 0o600}
	m.sizes = []int64{1, 100, 4095, 4096, 4097, 12_000}
	m.offs = []int64{0, 1, 100, 4096, 5000, 65_536}
	m.groups = []func(model) step{model.namespace, model.namespace, model.descriptor, model.writing, model.writing, model.writing, model.attributes, model.look}
	return &stream{id: id, model: m}
}

// owns reports whether a path is one of the stream's.
func (s *stream) owns(path string) bool {
	return strings.Contains("/"+path, fmt.Sprintf("/w%d-", s.id))
}

// work does steps until stop, with pauses, as applications have them.
func (s *stream) work(root string, clock *atomic.Int64, stop *atomic.Bool) {
	s.world = newWorld(root, nil)
	defer s.world.close()
	for !stop.Load() {
		for range 1 + s.model.rnd.IntN(12) {
			next := s.model.step()
			for next[0] == "mtime" { // cannot be told from what the kernel writes back
				next = s.model.step()
			}
			done := streamStep{step: next, began: clock.Add(1)}
			done.said = done.run(s.world)
			done.ended = clock.Add(1)
			s.steps = append(s.steps, done)
		}
		time.Sleep(time.Duration(s.model.rnd.IntN(3000)) * time.Microsecond)
	}
}

// seen is a cut: what its view showed, and the instants between which it was made.
type seen struct {
	number         uint64
	asked, given   int64
	texts          map[string]string
	data           map[string][]byte
	fits           [][]span // per stream, when that stream was as the view shows it
	wants          []int    // per stream, how many paths of it are in the view
	first, nearest []string // per stream, how it differed at the beginning, and least
}

// span is a time between two instants of the clock.
type span struct{ from, to int64 }

// look reads a view after a while.
func look(t *testing.T, v *View, wait func()) (s seen) {
	s = seen{number: v.Number(), texts: map[string]string{}, data: map[string][]byte{}}
	entries := v.Entries()
	wait()
	rand.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	for _, e := range entries {
		s.texts[e.Path] = entryText(e)
		if e.Type == tree.File {
			s.data[e.Path] = readEntry(t, v, e)
		}
	}
	return s
}

// replay does the stream's steps again to a plain directory, in parts that a cut may
// fall between, and notes when it was as each of the cuts shows it.
func (s *stream) replay(t *testing.T, root string, cuts []seen) {
	t.Helper()
	w := newWorld(root, nil)
	defer w.close()
	var before int64 // when the last part began
	compare := func(after int64) {
		for i := range cuts {
			c := &cuts[i]
			if after < c.asked || before > c.given {
				continue
			}
			diff := c.differs(t, s, root)
			if diff == "" {
				c.fits[s.id] = append(c.fits[s.id], span{max(before, c.asked), min(after, c.given)})
			} else if c.first[s.id] == "" || len(diff) < len(c.nearest[s.id]) {
				if c.first[s.id] == "" {
					c.first[s.id] = diff
				}
				c.nearest[s.id] = fmt.Sprintf("before %q: %s", s.at(after), diff)
			}
		}
	}
	for _, done := range s.steps {
		said := parts(w, done.step, func() {
			compare(done.ended)
			before = done.began
		})
		if said != done.said {
			t.Fatalf("stream %d: %.200s: on the mount %.200q, on the plain directory %.200q", s.id, done.step, done.said, said)
		}
	}
	compare(1 << 62)
}

func (s *stream) at(ended int64) string {
	for _, done := range s.steps {
		if done.ended == ended {
			return done.String()
		}
	}
	return "the end"
}

// within lists the steps between two instants.
func (s *stream) within(from, to int64) string {
	var text strings.Builder
	for _, done := range s.steps {
		if done.ended >= from && done.began <= to {
			fmt.Fprintf(&text, "  %d–%d %s: %.60s\n", done.began, done.ended, done.step, done.said)
		}
	}
	return text.String()
}

// parts does a step in those parts that a cut may fall between, which are the pages
// of a write, and calls before ahead of each.
func parts(w *world, s step, before func()) string {
	if s[0] != "write" && s[0] != "pwrite" {
		before()
		return s.run(w)
	}
	fd, data := w.files[s.num(1)], s.data(2)
	var st unix.Stat_t
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		before()
		return s.run(w)
	}
	off, _ := unix.Seek(fd, 0, unix.SEEK_CUR)
	if s[0] == "pwrite" {
		off = s.num(4)
	}
	if flags&unix.O_APPEND != 0 {
		off = st.Size // pwrite appends too
	}
	written := 0
	for len(data) > 0 {
		n := min(int64(len(data)), 4096-off%4096)
		before()
		if s[0] == "write" {
			_, err = unix.Write(fd, data[:n])
		} else {
			_, err = unix.Pwrite(fd, data[:n], off)
		}
		if err != nil {
			return count(-1, err)
		}
		data, off, written = data[n:], off+n, written+int(n)
	}
	return count(written, nil)
}

// differs says how a stream's names in a directory differ from those in the view.
func (c *seen) differs(t *testing.T, s *stream, root string) string {
	left := c.wants[s.id]
	diff := ""
	must(t, walk(root, func(rel, p string, _ fs.DirEntry) error {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil || !s.owns(rel) {
			return err
		}
		e, ok := tree.FromStat(rel, &st)
		if !ok {
			return nil
		}
		left--
		if e.Type == tree.Symlink {
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			e.Target = target
		}
		if text := entryText(e); text != c.texts[rel] {
			diff += fmt.Sprintf("%s is %q, in the view %q; ", rel, text, c.texts[rel])
			return nil
		}
		if e.Type != tree.File || diff != "" {
			return nil
		}
		data, err := os.ReadFile(p)
		if !bytes.Equal(data, c.data[rel]) {
			diff += fmt.Sprintf("%s has other bytes; ", rel)
		}
		return err
	}))
	if left != 0 && diff == "" {
		diff = fmt.Sprintf("%d more paths are in the view; ", left)
	}
	return diff
}

// instant returns a time at which all streams were as the view shows them.
func (c *seen) instant() (int64, bool) {
	for _, spans := range c.fits {
		for _, s := range spans { // the latest begin of those that fit together is one of these
			at, all := s.from, true
			for _, others := range c.fits {
				fits := false
				for _, o := range others {
					fits = fits || o.from <= at && at <= o.to
				}
				all = all && fits
			}
			if all {
				return at, true
			}
		}
	}
	return 0, false
}

// S1: while several goroutines work, each view is one instant of all of them: there
// is a time, not before the cut was asked for, at which every step that had ended is
// in the view, and no step that had not begun. And what they did comes to the same
// as on a plain directory.
func TestCutsOfConcurrentStreams(t *testing.T) {
	seed := modelSeed(t)
	t.Logf("seed %d (CHROMAFS_MODEL_SEED)", seed)
	fx := mounted(t)
	plain := t.TempDir()
	must(t, os.Chmod(plain, 0o755))
	for _, dir := range sharedFolders {
		must(t, os.Mkdir(in(fx.mnt, dir), 0o755))
		must(t, os.Mkdir(in(plain, dir), 0o755))
	}
	const workers, wanted = 4, 40
	var clock atomic.Int64
	var stop atomic.Bool
	var wg sync.WaitGroup
	streams := make([]*stream, workers)
	for i := range streams {
		streams[i] = newStream(i, seed)
		wg.Go(func() { streams[i].work(fx.mnt, &clock, &stop) })
	}
	var cuts []seen
	crash := 0
	for len(cuts) < wanted && !t.Failed() && crash < wanted {
		someSteps := func() {
			next := clock.Load() + 2*20
			eventually(t, "the streams work", func() bool { return clock.Load() > next })
		}
		someSteps()
		asked := clock.Load()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		v, err := fx.fs.Cut(ctx)
		cancel()
		if err != nil {
			t.Error(err)
			break
		}
		given := clock.Load()
		c := look(t, v, someSteps)
		c.asked, c.given = asked, given
		if v.Consistency() == quiescent {
			cuts = append(cuts, c)
		} else {
			crash++ // no order is promised
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	wg.Wait()
	if crash > wanted/8 {
		t.Errorf("%d cuts were not quiescent", crash)
	}
	judge(t, streams, cuts, plain)
	sameTree(t, "mount", ownPaths(snapshot(t, fx.mnt)), ownPaths(snapshot(t, plain)))
	fx.unmount(t)
	steps := 0
	for _, s := range streams {
		steps += len(s.steps)
	}
	t.Logf("%d steps, %d quiescent cuts and %d others; %+v", steps, len(cuts), crash, fx.fs.CutStats())
}

// judge replays the streams and says which cuts are not one instant.
func judge(t *testing.T, streams []*stream, cuts []seen, plain string) {
	t.Helper()
	for i := range cuts {
		c := &cuts[i]
		c.fits, c.wants = make([][]span, len(streams)), make([]int, len(streams))
		c.first, c.nearest = make([]string, len(streams)), make([]string, len(streams))
		for path := range c.texts {
			for _, s := range streams {
				if s.owns(path) {
					c.wants[s.id]++
				}
			}
		}
	}
	for _, s := range streams {
		s.replay(t, plain, cuts)
	}
	for _, c := range cuts {
		if _, ok := c.instant(); ok {
			continue
		}
		t.Errorf("cut %d, between %d and %d, shows no instant", c.number, c.asked, c.given)
		for _, s := range streams {
			if len(c.fits[s.id]) == 0 {
				t.Errorf("stream %d was never as it shows; nearest %s\nits steps:\n%s", s.id, c.nearest[s.id], s.within(c.asked, c.given))
				s.alone(t, c)
				return
			}
			t.Logf("stream %d was so within %v; its steps:\n%s", s.id, c.fits[s.id], s.within(c.asked, c.given))
		}
	}
}

// alone does a stream's steps again in one goroutine with a cut where the view was
// cut: if that fails too, it is cut down and printed.
func (s *stream) alone(t *testing.T, c seen) {
	t.Helper()
	var list []step
	for _, dir := range sharedFolders {
		list = append(list, newStep("mkdir", dir, "0755"))
	}
	cut := false
	for _, done := range s.steps {
		if done.ended > c.asked && !cut {
			list, cut = append(list, newStep("cut")), true
		}
		if done.began > c.given {
			break
		}
		list = append(list, done.step)
	}
	runModel(t, append(list, newStep("check")))
}

// ownPaths leaves the shared folders out: their times are the last step's.
func ownPaths(all map[string]string) map[string]string {
	all = maps.Clone(all)
	for _, dir := range append(sharedFolders, ".") {
		delete(all, filepath.Clean(dir))
	}
	return all
}
