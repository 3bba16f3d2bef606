package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stableCase is something that is done to a folder after a cut.
type stableCase struct {
	name  string
	steps string // as in testdata/model, in a folder with what stableSetup makes
}

// stableSetup is what each case finds: a file of several blocks with a second name,
// one with a hole, a folder with a file, a link.
const stableSetup = `
open 0 f 0x42 0644
pwrite 0 300000 A 0
open 1 sparse 0x42 0600
pwrite 1 100 S 400000
mkdir d 0755
open 2 d/x 0x42 0644
pwrite 2 4097 X 0
link f f2
symlink d/x s
mkdir empty 0755
`

func stableCases() []stableCase {
	return []stableCase{
		{"overwrite", "pwrite 0 70000 B 65536"},
		{"overwrite a byte", "pwrite 0 1 B 299999"},
		{"append", "open 3 f 0x401 0\nwrite 3 70000 B"},
		{"fill the hole", "pwrite 1 70000 B 0"},
		{"shrink", "truncate f 5000"},
		{"to nothing", "truncate f 0"},
		{"grow", "truncate f 1048576"},
		{"shrink, then grow", "ftruncate 0 5000\nftruncate 0 1048576\npwrite 0 100 B 100000"},
		{"open with O_TRUNC", "open 3 f 0x201 0\nwrite 3 3 B"},
		{"create over, with O_TRUNC", "open 3 d/x 0x242 0600\nwrite 3 3 B\nclose 3"},
		{"punch a hole", fmt.Sprintf("fallocate 0 %d 4096 100000", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE)},
		{"zero a range", fmt.Sprintf("fallocate 0 %d 100 400000", unix.FALLOC_FL_ZERO_RANGE)},
		{"allocate beyond the end", "fallocate 0 0 0 1000000"},
		{"copy_file_range", "copy 1 400000 0 0"},
		{"copy within", "copy 0 0 0 200000\npwrite 0 3 B 0"},
		{"write through the other name", "open 3 f2 2 0\npwrite 3 70000 B 0\nclose 3"},
		{"unlink", "unlink d/x"},
		{"unlink, then write through the descriptor", "unlink d/x\npwrite 2 4096 B 0"},
		{"unlink one name, write through the other", "unlink f\npwrite 0 4096 B 0\nfsync 0\nunlink f2"},
		{"unlink and create anew", "unlink d/x\nopen 3 d/x 0x42 0600\nwrite 3 8192 B\nclose 3"},
		{"rename", "rename f d/f 0"},
		{"rename, then overwrite", "rename d/x y 0\npwrite 2 4097 B 0"},
		{"rename over", "rename d/x f 0\nrename sparse f2 0"},
		{"exchange", "rename d/x f 2\npwrite 2 100 B 0"},
		{"rename a folder", "rename d e 0\nopen 3 e/x 2 0\npwrite 3 3 B 0\nclose 3"},
		{"move a folder into another", "rename d empty/d 0\nunlink empty/d/x\nrmdir empty/d"},
		{"rmdir and make anew", "unlink d/x\nrmdir d\nmkdir d 0700\nopen 3 d/x 0x42 0600\nwrite 3 100 B\nclose 3"},
		{"rmdir of an empty one", "rmdir empty"},
		{"a file in a folder's place", "rmdir empty\nopen 3 empty 0x42 0600\nwrite 3 100 B\nclose 3"},
		{"link", "link d/x empty/x\nlink f empty/f"},
		{"symbolic link replaced", "unlink s\nsymlink f s"},
		{"new files", "open 3 new 0x42 0644\nwrite 3 100 B\nclose 3\nmkdir empty/new 0755"},
		{"chmod", "chmod f 0600\nchmod d 0700"},
		{"chmod to nothing, then overwrite", "chmod f 0000\npwrite 0 4096 B 0"},
		{"chown", "lchown f 1000\nlchown d 1000\nlchown s 1000"},
		{"times", "utimens f 0\nutimens d 0\nmtime d/x 5"},
		{"stores to a map", "map 0 f\nstore 0 0 70000 B\nmsync 0"},
		{"stores to a map without msync", "map 0 f\nstore 0 65536 70000 B\nunmap 0"},
	}
}

// S1: nothing that is done to the directory while a view is open changes what the
// view shows: neither content nor names nor attributes.
func TestViewsAreStable(t *testing.T) {
	fx := mounted(t)
	m := startMapper(t)
	cases := stableCases()
	rand.Shuffle(len(cases), func(i, j int) { cases[i], cases[j] = cases[j], cases[i] })
	worlds := make([]*world, len(cases))
	do := func(i int, steps string) {
		for _, s := range readSteps(steps) {
			if said := s.run(worlds[i]); strings.Contains(said, "E") || said == "none" || said == "beyond the end" {
				t.Fatalf("%s: %s: %s", cases[i].name, s, said)
			}
		}
	}
	for i := range cases {
		dir := in(fx.mnt, fmt.Sprint(i))
		must(t, os.Mkdir(dir, 0o755))
		worlds[i] = newWorld(dir, m)
		defer worlds[i].close()
		do(i, stableSetup)
	}
	cutOnce(t, fx, func(v *View) {
		want, err := shotOf(fx.mnt)
		must(t, err)
		must(t, sameView(v, want))
		for i, c := range cases {
			before, err := shotOf(worlds[i].root)
			must(t, err)
			do(i, c.steps)
			after, err := shotOf(worlds[i].root)
			must(t, err)
			if maps.Equal(before.texts, after.texts) && maps.EqualFunc(before.data, after.data, bytes.Equal) {
				t.Errorf("%s: nothing changed: the case proves nothing", c.name)
			}
			for path, data := range before.data {
				if err := sameFile(v, filepath.Join(fmt.Sprint(i), path), data); err != nil {
					t.Errorf("after %q: %v", c.name, err)
				}
			}
		}
		must(t, openWrite(t, in(fx.mnt, "last"), []byte("x")).Sync()) // all that the kernel holds is written
		must(t, sameView(v, want))
	})
}

// The kernel refuses what would move content within a file.
func TestRangesThatMoveContentAreRefused(t *testing.T) {
	fx := mounted(t)
	f := openWrite(t, in(fx.mnt, "f"), make([]byte, 1<<20))
	for _, mode := range []uint32{unix.FALLOC_FL_COLLAPSE_RANGE, unix.FALLOC_FL_INSERT_RANGE} {
		if err := unix.Fallocate(int(f.Fd()), mode, 0, 65536); err != unix.EOPNOTSUPP {
			t.Errorf("mode %#x: %v", mode, err)
		}
	}
}

// A cut that is asked for while a view is open waits for its Close, and for no longer
// than its context; then it shows what was written meanwhile.
func TestCutsWaitForTheOpenView(t *testing.T) {
	fx := mounted(t)
	must(t, os.WriteFile(in(fx.mnt, "f"), []byte("1"), 0o644))
	first, err := fx.fs.Cut(t.Context())
	must(t, err)
	type result struct {
		v   *View
		err error
	}
	ask := func(ctx context.Context) <-chan result {
		c := make(chan result, 1)
		go func() {
			v, err := fx.fs.Cut(ctx)
			c <- result{v, err}
		}()
		return c
	}
	why := errors.New("the daemon stops")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancelled, queued := ask(ctx), ask(t.Context())
	must(t, os.WriteFile(in(fx.mnt, "f"), []byte("22"), 0o644))
	select {
	case <-cancelled:
		t.Fatal("a cut did not wait for the open view")
	case <-queued:
		t.Fatal("a cut did not wait for the open view")
	case <-time.After(50 * time.Millisecond):
	}
	cancel(why)
	if r := <-cancelled; !errors.Is(r.err, why) {
		t.Errorf("the cut that was cancelled: %v", r.err)
	}
	if got := readEntry(t, first, first.Entries()[0]); string(got) != "1" {
		t.Errorf("the first view shows %q", got)
	}
	must(t, first.Close())
	r := <-queued
	must(t, r.err)
	if got := readEntry(t, r.v, r.v.Entries()[0]); string(got) != "22" || r.v.Number() != first.Number()+1 {
		t.Errorf("the queued cut, number %d after %d, shows %q", r.v.Number(), first.Number(), got)
	}
	must(t, r.v.Close())
}
