package fusefs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// unitsOf tells the first n units of a file that were touched since a cut: "x" for
// touched, "." for not; "?" if that is not known.
func unitsOf(v *View, path string, since uint64, n int) (text string) {
	touched, known := v.Touched(path, since)
	if !known {
		return "?"
	}
	for i := range int64(n) {
		if touched(i*touchedUnit, touchedUnit) {
			text += "x"
		} else {
			text += "."
		}
	}
	return text
}

// bigFile makes a file of 4 units, which is mostly a hole.
func bigFile(t *testing.T, fx *fixture, name string) *os.File {
	t.Helper()
	f := openWrite(t, in(fx.mnt, name), nil)
	must(t, f.Truncate(4*touchedUnit))
	return f
}

// acknowledged cuts, acknowledges the view, and returns the cut's number.
func acknowledged(t *testing.T, fx *fixture) (cut uint64) {
	t.Helper()
	cutOnce(t, fx, func(v *View) {
		v.Acknowledged()
		cut = v.Number()
	})
	return cut
}

const unit = int64(touchedUnit)

func fallocate(mode uint32, off, length int64) func(t *testing.T, fx *fixture) {
	return func(t *testing.T, fx *fixture) {
		must(t, onFile(in(fx.mnt, "f"), unix.O_RDWR, func(fd int) error { return unix.Fallocate(fd, mode, off, length) }))
	}
}

func truncates(sizes ...int64) func(t *testing.T, fx *fixture) {
	return func(t *testing.T, fx *fixture) {
		for _, size := range sizes {
			must(t, unix.Truncate(in(fx.mnt, "f"), size))
		}
	}
}

func writes(flags int, at ...int64) func(t *testing.T, fx *fixture) {
	return func(t *testing.T, fx *fixture) {
		must(t, onFile(in(fx.mnt, "f"), unix.O_RDWR|flags, func(fd int) error {
			for _, off := range at {
				if _, err := unix.Pwrite(fd, make([]byte, 4096), off); err != nil {
					return err
				}
			}
			return nil
		}))
	}
}

func renames(t *testing.T, fx *fixture, flags uint, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		must(t, unix.Renameat2(unix.AT_FDCWD, in(fx.mnt, pairs[i]), unix.AT_FDCWD, in(fx.mnt, pairs[i+1]), flags))
	}
}

// touchCases are what is done to f, of 4 units, or g, its equal, and which units of f
// are touched then.
func touchCases() map[string]struct {
	do   func(t *testing.T, fx *fixture)
	want string
} {
	type c = struct {
		do   func(t *testing.T, fx *fixture)
		want string
	}
	return map[string]c{
		"nothing":                 {func(*testing.T, *fixture) {}, "...."},
		"write":                   {writes(0, 2*unit+5), "..x."},
		"write over an edge":      {writes(0, unit-1), "xx.."},
		"write at the edges":      {writes(0, unit, 3*unit-4096), ".xx."},
		"write behind the cache":  {writes(unix.O_DIRECT, unit), ".x.."},
		"write beyond the end":    {writes(0, 5*unit), "....." + "x"},
		"truncate":                {truncates(2*unit + 1), "..xx"},
		"truncate to an edge":     {truncates(2 * unit), "..xx"},
		"truncate and grow again": {truncates(unit+1, 4*unit), ".xxx"},
		"grow":                    {truncates(6 * unit), "......"}, // the base has no such parts
		"open with O_TRUNC":       {writes(unix.O_TRUNC), "xxxx"},
		"fallocate":               {fallocate(0, unit, 10), ".x.."},
		"punch a hole":            {fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unit, 2*unit), ".xx."},
		"zero a range":            {fallocate(unix.FALLOC_FL_ZERO_RANGE, 3*unit, 4096), "...x"},
		"copy_file_range": {func(t *testing.T, fx *fixture) {
			must(t, onFile(in(fx.mnt, "g"), unix.O_RDONLY, func(from int) error {
				return onFile(in(fx.mnt, "f"), unix.O_RDWR, func(to int) error {
					off, at := int64(0), 3*unit
					_, err := unix.CopyFileRange(from, &off, to, &at, 5, 0)
					return err
				})
			}))
		}, "...x"},
		"mmap": {func(t *testing.T, fx *fixture) {
			if out, err := runChild(t, nil, "ops", op("mmap", "mapped", in(fx.mnt, "f"))); err != nil || out != "mmap: ok\n" {
				t.Fatal(err, out)
			}
		}, "x..."},
		"write by another link": {func(t *testing.T, fx *fixture) {
			must(t, os.Link(in(fx.mnt, "f"), in(fx.mnt, "l")))
			must(t, onFile(in(fx.mnt, "l"), unix.O_RDWR, func(fd int) error {
				_, err := unix.Pwrite(fd, []byte("data"), unit)
				return err
			}))
		}, ".x.."},
		"chmod and times": {func(t *testing.T, fx *fixture) {
			must(t, os.Chmod(in(fx.mnt, "f"), 0o600))
			must(t, os.Chtimes(in(fx.mnt, "f"), fx.fs.fsys.now(), fx.fs.fsys.now()))
		}, "...."},
		"renamed away and back": {func(t *testing.T, fx *fixture) { renames(t, fx, 0, "f", "h", "h", "f") }, "...."},
		"exchanged and back":    {func(t *testing.T, fx *fixture) { renames(t, fx, unix.RENAME_EXCHANGE, "f", "g", "f", "g") }, "...."},
		"exchanged":             {func(t *testing.T, fx *fixture) { renames(t, fx, unix.RENAME_EXCHANGE, "f", "g") }, "?"},
		"replaced":              {func(t *testing.T, fx *fixture) { renames(t, fx, 0, "g", "f") }, "?"},
		"a link lost to a rename": {func(t *testing.T, fx *fixture) {
			must(t, os.Link(in(fx.mnt, "f"), in(fx.mnt, "l")))
			renames(t, fx, 0, "g", "l")
		}, "xxxx"},
		"a link removed": {func(t *testing.T, fx *fixture) {
			must(t, os.Link(in(fx.mnt, "f"), in(fx.mnt, "l")))
			must(t, os.Remove(in(fx.mnt, "f")))
			must(t, os.Link(in(fx.mnt, "l"), in(fx.mnt, "f")))
		}, "xxxx"},
	}
}

// S4: after each kind of mutation the next view knows which units it touched, and
// claims nothing that it does not know.
func TestTouchedUnits(t *testing.T) {
	fx := mounted(t)
	for name, c := range touchCases() {
		t.Run(name, func(t *testing.T) {
			for _, p := range []string{"f", "g"} {
				must(t, bigFile(t, fx, p).Close())
			}
			base := acknowledged(t, fx)
			c.do(t, fx)
			cutOnce(t, fx, func(v *View) {
				if got := unitsOf(v, "f", base, len(c.want)); got != c.want {
					t.Errorf("touched %s, want %s", got, c.want)
				}
			})
			for _, p := range []string{"f", "g", "l"} {
				os.Remove(in(fx.mnt, p))
			}
		})
	}
}

// A file that takes the inode number of one that was removed is not that file,
// although nothing was written to it.
func TestTouchedIsAboutTheFileNotItsNumber(t *testing.T) {
	fx := mounted(t)
	for range 20 {
		f := bigFile(t, fx, "f")
		var before, after unix.Stat_t
		must(t, unix.Fstat(int(f.Fd()), &before))
		must(t, f.Close())
		base := acknowledged(t, fx)
		must(t, os.Remove(in(fx.mnt, "f")))
		eventually(t, "the removed file is forgotten", func() bool {
			fx.fs.fsys.mu.RLock()
			defer fx.fs.fsys.mu.RUnlock()
			return fx.fs.fsys.inodes[inodeKey{uint64(fx.fs.fsys.rootNode.key.dev), before.Ino}] == nil
		})
		f = bigFile(t, fx, "f")
		must(t, unix.Fstat(int(f.Fd()), &after))
		must(t, f.Close())
		cutOnce(t, fx, func(v *View) {
			if got := unitsOf(v, "f", base, 4); got != "?" && got != "xxxx" {
				t.Errorf("a new file is touched at %s", got)
			}
		})
		must(t, os.Remove(in(fx.mnt, "f")))
		if after.Ino == before.Ino {
			return
		}
	}
	t.Error("no inode number was used again in 20 tries: nothing was tested")
}

// J2: what is touched after a cut stays so whatever becomes of the cut's snapshot;
// what was touched before it stays so unless that is acknowledged.
func TestTouchedFollowsAcknowledgements(t *testing.T) {
	fx := mounted(t)
	f := bigFile(t, fx, "f")
	write := func(n int64) {
		t.Helper()
		_, err := f.WriteAt([]byte("data"), n*unit)
		must(t, err)
		must(t, f.Sync())
	}
	expect := func(v *View, since uint64, want string) {
		t.Helper()
		if got := unitsOf(v, "f", since, 4); got != want {
			t.Errorf("cut %d: touched since %d: %s, want %s", v.Number(), since, got, want)
		}
	}
	cutOnce(t, fx, func(v *View) { expect(v, 0, "?"); expect(v, v.Number(), "?") }) // no base yet
	write(0)
	base := acknowledged(t, fx)
	cutOnce(t, fx, func(v *View) { expect(v, base, "....") })
	write(0)
	cutOnce(t, fx, func(v *View) { // fails
		write(1)
		expect(v, base, "x...")
		expect(v, base-1, "?")
		expect(v, v.Number(), "?")
	})
	write(2)
	var next uint64
	cutOnce(t, fx, func(v *View) {
		expect(v, base, "xxx.")
		write(3)
		expect(v, base, "xxx.")
		v.Acknowledged()
		next = v.Number()
	})
	var late *View
	cutOnce(t, fx, func(v *View) {
		expect(v, base, "?")
		expect(v, next, "...x")
		late = v
	})
	cutOnce(t, fx, func(v *View) {
		late.Acknowledged() // too late: another cut was taken
		expect(v, next, "...x")
	})
	cutOnce(t, fx, func(v *View) { expect(v, next, "...x") })
}

// The memory is bounded; beyond the bound nothing is claimed until the next
// snapshot was acknowledged, and offsets without end cost nothing.
func TestTouchedIsBounded(t *testing.T) {
	fx := mounted(t)
	must(t, bigFile(t, fx, "f").Close())
	base := acknowledged(t, fx)
	must(t, onFile(in(fx.mnt, "f"), unix.O_RDWR, func(fd int) error {
		_, err := unix.Pwrite(fd, []byte("data"), touchedUnit*touchedUnits)
		return err
	}))
	s := fx.fs.fsys
	s.touch.mu.Lock()
	if words := s.touch.now.words; words > 100 {
		t.Errorf("%d words for a file", words)
	}
	s.touch.mu.Unlock()
	cutOnce(t, fx, func(v *View) {
		if got := unitsOf(v, "f", base, 4); got != "...." {
			t.Errorf("touched %s", got)
		}
	})
	s.touch.mu.Lock()
	for i := range uint64(touchedWords/wordsPerTouch + 1) {
		s.touch.now.add(inodeKey{1, i}, 0, 1)
	}
	s.touch.mu.Unlock()
	cutOnce(t, fx, func(v *View) {
		if got := unitsOf(v, "f", base, 4); got != "?" || v.since.files != nil {
			t.Errorf("touched %s, %d files known", got, len(v.since.files))
		}
		v.Acknowledged()
		base = v.Number()
	})
	must(t, unix.Truncate(in(fx.mnt, "f"), 3*unit))
	cutOnce(t, fx, func(v *View) {
		if got := unitsOf(v, "f", base, 4); got != "...x" {
			t.Errorf("touched %s", got)
		}
	})
}

// A set has what was added, and what another had that was merged.
func TestTouchedSet(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	const end = 200
	for range 200 {
		sets, model := [2]*touchedSet{{from: touchedUnits}, {from: touchedUnits}}, [2][end]bool{}
		for range rnd.IntN(6) {
			which, off := rnd.IntN(2), rnd.Int64N(end*unit)
			length := 1 + rnd.Int64N(1+rnd.Int64N(end*unit-off))
			to := off + length
			if rnd.IntN(5) == 0 {
				to = maxOffset
			}
			sets[which].add(off, to)
			for i := off / unit; i < end && i <= (to-1)/unit; i++ {
				model[which][i] = true
			}
		}
		sets[0].merge(sets[1])
		for range 50 {
			off := rnd.Int64N(end * unit)
			length := 1 + rnd.Int64N(min(3*unit, end*unit-off))
			want := false
			for i := off / unit; i <= (off+length-1)/unit; i++ {
				want = want || model[0][i] || model[1][i]
			}
			if got := sets[0].has(off, length); got != want {
				t.Fatalf("has(%d, %d) is %v", off, length, got)
			}
		}
	}
}

// BenchmarkTouch is what a WRITE pays.
func BenchmarkTouch(b *testing.B) {
	t := newTouchTracker()
	for files := range uint64(1000) {
		t.now.add(inodeKey{1, files}, 0, 1)
	}
	m := &mutation{kind: mutateWrite, node: &inode{kind: unix.S_IFREG, key: inodeKey{1, 7}}, length: 4096}
	for i := range int64(b.N) {
		m.off = i % 1000 * 4096 * 100
		t.before(m)
	}
	if len(t.now.files) != 1000 {
		b.Fatal(fmt.Sprint(len(t.now.files), " files"))
	}
}
