package fusefs

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pairAt is where childPairs writes: not at the header of a write-ahead log.
const pairAt = 8192

// childPairs writes a number to the file args[2] in args[1], then to args[3], without
// syncing, for ever: with write(2), or (args[0]) to shared maps, or to such without a
// pause.
func childPairs(args []string) error {
	var put []func(uint64) error
	for _, name := range args[2:] {
		f, err := os.OpenFile(filepath.Join(args[1], name), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		buf := make([]byte, 8)
		write := func(i uint64) error {
			binary.LittleEndian.PutUint64(buf, i)
			_, err := f.WriteAt(buf, pairAt)
			return err
		}
		if err := write(0); err != nil {
			return err
		}
		if args[0] != "write" {
			m, err := unix.Mmap(int(f.Fd()), 0, pairAt+8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			write = func(i uint64) error { binary.LittleEndian.PutUint64(m[pairAt:], i); return nil }
		}
		put = append(put, write)
	}
	for i := uint64(1); ; i++ {
		for _, f := range put {
			if err := f(i); err != nil {
				return err
			}
		}
		if i%300 == 0 && args[0] != "map without pause" {
			time.Sleep(time.Millisecond)
		}
	}
}

// S1: of two files written A, then B, without any sync, no quiescent view has B newer
// than A, and every view has what was written before the cut; also if B is a
// write-ahead log, whose transactions follow what they tell of, and if both are
// written through memory maps. Stores without a pause may leave no quiet moment: then
// the view comes at the deadline, and says that it is not quiescent.
func TestViewNeverShowsTheSecondWriteWithoutTheFirst(t *testing.T) {
	for _, c := range []struct {
		how, second string
		pauses      bool
		cuts        int
	}{
		{"write", "b", true, 80}, {"write", "b-wal", true, 80}, {"map", "b", true, 40}, {"map without pause", "b", false, 20},
	} {
		t.Run(c.how+" "+c.second, func(t *testing.T) {
			const patience = 150 * time.Millisecond
			fx := mounted(t, func(o *Options) {
				if !c.pauses {
					o.QuiesceTimeout = patience
				}
			})
			fx.requireWriteback(t)
			start(t, "pairs", c.how, fx.mnt, "a", c.second)
			eventually(t, "both files are written", func() bool {
				b, err := os.ReadFile(in(fx.mnt, c.second))
				return err == nil && len(b) > pairAt && binary.LittleEndian.Uint64(b[pairAt:]) > 0
			})
			calm := 0
			for range c.cuts {
				time.Sleep(rand.N(2 * time.Millisecond)) // ask anywhere between two pauses
				if cutPair(t, fx, c.second) {
					calm++
				}
			}
			if c.pauses && calm < c.cuts {
				t.Errorf("%d of %d cuts were quiescent", calm, c.cuts)
			}
			t.Logf("%d of %d cuts were quiescent; %+v", calm, c.cuts, fx.fs.CutStats())
		})
	}
}

// cutPair checks one cut and says whether it was quiescent.
func cutPair(t *testing.T, fx *fixture, second string) (calm bool) {
	t.Helper()
	var least [2]uint64
	names := []string{"a", second}
	for i, name := range names {
		b, err := os.ReadFile(in(fx.mnt, name))
		must(t, err)
		least[i] = binary.LittleEndian.Uint64(b[pairAt:])
	}
	cutOnce(t, fx, func(v *View) {
		var value [2]uint64
		for i, name := range names {
			r, err := v.Open(name)
			must(t, err)
			buf := make([]byte, 8)
			if n, err := r.ReadAt(buf, pairAt); n < len(buf) {
				t.Fatal(err)
			}
			must(t, r.Close())
			value[i] = binary.LittleEndian.Uint64(buf)
			if value[i] < least[i] {
				t.Errorf("cut %d (%s): %s is %d, before the cut it was %d", v.Number(), v.Consistency(), name, value[i], least[i])
			}
		}
		if calm = v.Consistency() == quiescent; calm && value[1] > value[0] {
			t.Errorf("cut %d: %s is %d and a is %d", v.Number(), second, value[1], value[0])
		}
	})
	return calm
}
