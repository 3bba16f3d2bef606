package proof

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

// ordered is a writer that is sharper than ChromaDB: it counts in three files, one
// after the other, mostly without syncing. It overwrites the number in "first", then
// that in "second", then appends it to "third". So at any instant the third has one
// number for each up to that of the second, or to the one before it, and likewise
// the second and the first.
type ordered struct {
	files   [3]*os.File
	started atomic.Uint64 // the number that is being written
	done    atomic.Uint64 // the last one that all three files have
	synced  atomic.Uint64 // the last one before an fsync of "third" that has returned

	stopping atomic.Bool
	wg       sync.WaitGroup
	failed   error // read after stop
}

func orderedNames() [3]string { return [3]string{"first", "second", "third"} }

// startOrdered lets it count in a folder until stop.
func startOrdered(t testing.TB, dir string) *ordered {
	t.Helper()
	o := &ordered{}
	for i, name := range orderedNames() {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		o.files[i] = f
	}
	o.wg.Go(func() {
		for i := uint64(1); !o.stopping.Load() && o.failed == nil; i++ {
			o.failed = o.round(i)
		}
		for _, f := range o.files {
			o.failed = errors.Join(o.failed, f.Close())
		}
	})
	return o
}

// A pause now and then leaves moments in which no WRITE arrives.
const (
	orderedPause = 64
	orderedSync  = 256
)

func (o *ordered) round(i uint64) error {
	o.started.Store(i)
	number := binary.LittleEndian.AppendUint64(nil, i)
	for n, offset := range []int64{0, 0, int64(i-1) * 8} {
		if _, err := o.files[n].WriteAt(number, offset); err != nil {
			return err
		}
	}
	o.done.Store(i)
	if i%orderedSync == 0 {
		if err := o.files[2].Sync(); err != nil {
			return err
		}
		o.synced.Store(i)
	}
	if i%orderedPause == 0 {
		time.Sleep(time.Millisecond)
	}
	return nil
}

func (o *ordered) stop() error {
	o.stopping.Store(true)
	o.wg.Wait()
	return o.failed
}

// orderedAt reads the numbers that a copy of the folder shows.
func orderedAt(dir string) (n [3]uint64, err error) {
	for i, name := range orderedNames() {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return n, err
		}
		if i < 2 && len(data) >= 8 {
			n[i] = binary.LittleEndian.Uint64(data)
			continue
		}
		for ; len(data) >= 8; data = data[8:] {
			n[i]++
			if got := binary.LittleEndian.Uint64(data); got != n[i] {
				return n, fmt.Errorf("%s has %d where %d belongs", name, got, n[i])
			}
		}
	}
	return n, nil
}

// orderedProblems says what is wrong with a copy, nothing if it is one instant
// between two.
func orderedProblems(dir string, done, started uint64) []string {
	n, err := orderedAt(dir)
	if err != nil {
		return []string{err.Error()}
	}
	var problems []string
	if n[0] < n[1] || n[1] < n[2] || n[0] > n[2]+1 {
		problems = append(problems, fmt.Sprintf("not one instant: the files are at %v", n))
	}
	if n[2] < done || n[0] > started {
		problems = append(problems, fmt.Sprintf("the files are at %v; %d was written before the copy was asked for, %d after it was made", n, done, started))
	}
	return problems
}

// proveOrdered takes snapshots of a mount on which such a writer counts.
func proveOrdered(t testing.TB, p Plan, v Variant) Table {
	t.Helper()
	s := startMounted(t, t.TempDir(), v, false)
	o := startOrdered(t, s.path())
	random := rand.New(rand.NewPCG(p.Seed, 0))
	var table Table
	for range p.Copies {
		time.Sleep(time.Duration(random.IntN(10_000)) * time.Microsecond)
		done := o.done.Load()
		c, err := s.take()
		if err != nil {
			t.Fatal(err)
		}
		table.Taken++
		table.count(c, orderedProblems(s.o.Store.Snapshot(c.id), done, o.started.Load()))
		if p.UntilBroken && table.Failed() {
			break
		}
	}
	table.Operations = int(o.done.Load())
	if err := o.stop(); err != nil {
		t.Fatal(err)
	}
	directory := s.close()
	table.Waited, table.Held = s.holds()
	if problems := orderedProblems(directory, o.done.Load(), o.done.Load()); len(problems) > 0 {
		t.Fatalf("the directory itself is not whole: %s", strings.Join(problems, "\n  "))
	}
	return table
}

// proveKilled kills the daemon under such a writer, with no snapshot: what an fsync
// of the third file has covered is in the plain directory, of all three (F3, F5).
func proveKilled(t testing.TB, p Plan, v Variant) Table {
	t.Helper()
	random := rand.New(rand.NewPCG(p.Seed, 0))
	var table Table
	for range p.Copies {
		s := startMounted(t, t.TempDir(), v, false)
		o := startOrdered(t, s.path())
		after := uint64(orderedSync * (1 + random.IntN(10)))
		harness.Eventually(t, time.Minute, "the writer syncs", func() bool { return o.synced.Load() >= after })
		synced := o.synced.Load()
		s.m.Kill()
		_ = o.stop() // the mount is gone
		n, err := orderedAt(s.o.Dir)
		var problems []string
		if err != nil {
			problems = append(problems, err.Error())
		}
		if min(n[0], n[1], n[2]) < synced {
			problems = append(problems, fmt.Sprintf("an fsync covered %d, the files are at %v", synced, n))
		}
		table.Taken++
		table.count(taken{number: table.Taken}, problems)
		table.Operations += int(o.done.Load())
		if p.UntilBroken && table.Failed() {
			break
		}
	}
	return table
}
