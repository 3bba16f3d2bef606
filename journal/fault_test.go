package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/tree"
)

// scenario is a life of a journal, step by step. cut is what a mark of the step
// carries; k, the cut that the step acknowledges.
var scenario = []struct {
	name  string
	marks []string
	cut   uint64
	k     uint64
	run   func(*Journal) error
}{
	{name: "mark", marks: []string{"a", "seg/x"}, cut: 1},
	{name: "epoch", run: func(j *Journal) error { return j.SetEpoch("lineage", 1) }},
	{name: "pending", run: func(j *Journal) error { return j.AddPending("id-1") }},
	{name: "mark", marks: []string{"b"}, cut: 2},
	{name: "intent", run: func(j *Journal) error { return j.SetIntent(Intent{ID: "id-1", Nonce: "n", Cut: 2, Sequence: 1}) }},
	{name: "mark", marks: []string{"a"}, cut: 2},
	{name: "acknowledge", k: 2, run: func(j *Journal) error { return j.Acknowledge(published(1, 2, record("a", 9<<20, 1))) }},
	{name: "drop", run: func(j *Journal) error { return j.DropPending("id-1") }},
	{name: "mark", marks: []string{"c"}, cut: 2},
	{name: "stop", run: func(j *Journal) error { return j.Stop([]tree.Entry{record("c", 3, 1).Entry}) }},
	{name: "mark", marks: []string{"."}, cut: 3},
	{name: "acknowledge", k: 4, run: func(j *Journal) error {
		return j.Acknowledge(published(2, 4, record("a", 9<<20, 1), record("b", 5, 2)))
	}},
	{name: "mark", marks: []string{"a"}, cut: 4},
}

// promised are the marks that were answered and that no acknowledgement, begun
// or done, may have cleared.
type promised map[string]uint64

func (p promised) marked(paths []string, cut uint64) {
	for _, path := range paths {
		p[path] = max(p[path], cut)
	}
}

func (p promised) acknowledged(k uint64) {
	for path, n := range p {
		if n < k {
			delete(p, path)
		}
	}
}

func (p promised) check(t *testing.T, j *Journal) {
	t.Helper()
	d := j.Dirty()
	for path, n := range p {
		if !d.Covers(path) {
			t.Errorf("the answered mark %s of cut %d is lost: %+v", path, n, d)
		}
		if j.State().Cut < n {
			t.Errorf("cut %d is not known any more", n)
		}
	}
}

// J1, J2, J3: the Nth step fails, for every N until none is left to fail. What
// fails says so, but for marks, which the reserve takes; tried again it works;
// and, whether it is or the process ends there, no answered mark is lost.
func TestFailNthStep(t *testing.T) {
	injected := unix.EIO
	for _, crash := range []bool{false, true} {
		for n, failed := 1, true; failed; n++ {
			failed = false
			t.Run(fmt.Sprintf("crash=%v/%d", crash, n), func(t *testing.T) {
				steps, where := 0, ""
				fault := func(step string) error {
					if steps++; steps == n {
						failed, where = true, step
						return injected
					}
					return nil
				}
				dir := t.TempDir()
				j, err := tryOpen(t, dir, fault)
				if err != nil {
					if !failed || !errors.Is(err, injected) {
						t.Fatalf("open: %v", err)
					}
					j, err = tryOpen(t, dir, fault)
					must(t, err)
				}
				p := promised{}
				for _, s := range scenario {
					if s.run == nil {
						if err := j.Mark(s.cut, s.marks...); err != nil {
							t.Fatalf("a mark failed, though the reserve is there (%s): %v", where, err)
						}
						p.marked(s.marks, s.cut)
					} else {
						p.acknowledged(s.k)
						before := failed
						if err := s.run(j); err != nil {
							if before || !failed || !errors.Is(err, injected) {
								t.Fatalf("%s: %v", s.name, err)
							}
							checked(t, j)
							p.check(t, j)
							if !crash {
								must(t, s.run(j))
							}
						}
					}
					checked(t, j)
					p.check(t, j)
					if crash && failed {
						break
					}
				}
				must(t, j.Close())
				j = open(t, dir)
				p.check(t, j)
				must(t, j.Mark(5, "after"))
				must(t, j.Acknowledge(published(3, 6)))
				if d := reopen(t, j, dir).Dirty(); !d.Empty() {
					t.Errorf("acknowledged with the newest cut, and dirty: %+v", d)
				}
				if failed {
					t.Logf("failed %q", where)
				}
			})
		}
	}
}

// Where neither the transaction nor the reserve can be written, Mark says so.
func TestDeadDisk(t *testing.T) {
	dead := false
	dir := t.TempDir()
	j := openFaulty(t, dir, func(string) error {
		if dead {
			return unix.EIO
		}
		return nil
	})
	must(t, j.Mark(1, "a"))
	dead = true
	must(t, j.Mark(1, "a"))
	for range 2 {
		if err := j.Mark(1, "b"); !errors.Is(err, unix.EIO) {
			t.Errorf("a mark on a dead disk: %v", err)
		}
	}
	dead = false
	must(t, j.Mark(1, "b"))
	wantMarks(t, reopen(t, j, dir), map[string]uint64{"a": 1, "b": 1})
}

// The reserve: while it is set, everything is dirty; only a snapshot of a later
// cut clears it, and marks are stored one by one again as soon as that works.
func TestReserve(t *testing.T) {
	full := false
	dir := t.TempDir()
	j := openFaulty(t, dir, func(step string) error {
		if full && step != "reserve-before" && step != "reserve-after" {
			return unix.ENOSPC
		}
		return nil
	})
	must(t, j.Mark(3, "before"))
	must(t, j.Stop(nil))
	full = true
	must(t, j.Mark(4, "x"))
	must(t, j.Mark(4, "y"))
	if s, d := j.State(), j.Dirty(); !s.AllDirty || s.CleanStop || s.Cut != 4 || !d.All || !d.Covers("anything") {
		t.Errorf("the reserve is set, but %+v, %+v", s, d)
	}
	if err := j.Acknowledge(published(1, 5)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("an acknowledgement on a full disk: %v", err)
	}
	full = false
	j = reopen(t, j, dir)
	if s := j.State(); !s.AllDirty || s.CleanStop || s.Cut != 4 {
		t.Errorf("reopened: %+v", s)
	}
	must(t, j.Acknowledge(published(1, 4))) // its cut came before
	if !j.State().AllDirty {
		t.Error("a snapshot cut before the failed marks cleared them (J2)")
	}
	must(t, j.Mark(5, "z"))
	wantMarks(t, j, map[string]uint64{"z": 5})
	j = reopen(t, j, dir)
	must(t, j.Acknowledge(published(2, 5)))
	for range 2 {
		wantMarks(t, j, map[string]uint64{"z": 5})
		if j.State().AllDirty {
			t.Error("still everything is dirty")
		}
		j = reopen(t, j, dir)
	}
}

// A reserve that is gone or says nonsense may have been set, so it is.
func TestReserveMissingOrDamaged(t *testing.T) {
	for name, harm := range map[string]func(file string) error{
		"missing":   os.Remove,
		"truncated": func(f string) error { return os.Truncate(f, 17) },
		"zeros":     func(f string) error { return os.WriteFile(f, make([]byte, reserveSize), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j := open(t, dir)
			must(t, j.Mark(7, "a"))
			must(t, j.Close())
			must(t, harm(filepath.Join(dir, reserveName)))
			j = reopen(t, open(t, dir), dir)
			if !j.Dirty().All {
				t.Error("not everything is dirty")
			}
			must(t, j.Acknowledge(published(1, 8)))
			if d := reopen(t, j, dir).Dirty(); !d.Empty() {
				t.Errorf("dirty: %+v", d)
			}
		})
	}
}

// On a disk that is really full marks go on, and so does the unlink that makes
// room; with room and a snapshot all is as it was.
func TestFullDisk(t *testing.T) {
	dir := smallDisk(t, "1m")
	j := open(t, dir)
	must(t, j.Rebase(published(1, 1, record("a", 9<<20, 1))))
	filler := fill(t, dir, 0)
	fallen := -1
	name := func(i int) string { return fmt.Sprintf("%0200d", i) }
	for i := range 200 {
		must(t, j.Mark(2, name(i)))
		if fallen < 0 && j.State().AllDirty {
			fallen = i
			checked(t, j)
		}
	}
	if fallen < 0 {
		t.Fatal("no mark needed the reserve: the disk was not full")
	}
	t.Logf("the reserve took over at mark %d", fallen+1)
	if err := j.Acknowledge(published(2, 3)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("an acknowledgement on a full disk: %v", err)
	}
	j = reopen(t, j, dir) // works without room, too
	for i := range 200 {
		must(t, j.Mark(3, name(i)))
	}
	if d := j.Dirty(); !d.All {
		t.Errorf("dirty: %+v", d)
	}
	must(t, j.Mark(3, "filler"))
	must(t, os.Remove(filler))
	must(t, j.Acknowledge(published(2, 4, record("a", 9<<20, 1))))
	must(t, j.Mark(4, "f1"))
	j = reopen(t, j, dir)
	wantMarks(t, j, map[string]uint64{"f1": 4})
	if j.State().AllDirty {
		t.Error("everything is dirty still")
	}
}

// J1, J3: the scenario with less and less to fail for want of room: N free pages,
// for every N until nothing fails. Marks always succeed.
func TestFullDiskSweep(t *testing.T) {
	disk := smallDisk(t, "2m")
	for pages, failed := int64(0), true; failed; pages++ {
		failed = false
		t.Run(fmt.Sprintf("%d pages free", pages), func(t *testing.T) {
			dir := filepath.Join(disk, "state")
			must(t, os.Mkdir(dir, 0o700))
			j := open(t, dir)
			filler := fill(t, disk, pages*4096)
			p := promised{}
			for _, s := range scenario {
				if s.run == nil {
					must(t, j.Mark(s.cut, s.marks...))
					p.marked(s.marks, s.cut)
				} else {
					p.acknowledged(s.k)
					if err := s.run(j); err != nil && !errors.Is(err, unix.ENOSPC) {
						t.Fatalf("%s: %v", s.name, err)
					} else if err != nil {
						failed = true
					}
				}
				failed = failed || j.all != nil
				checked(t, j)
				p.check(t, j)
			}
			must(t, j.Close())
			j = open(t, dir)
			p.check(t, j)
			must(t, os.Remove(filler))
			must(t, j.Acknowledge(published(3, 6)))
			if d := reopen(t, j, dir).Dirty(); !d.Empty() {
				t.Errorf("dirty: %+v", d)
			}
			must(t, os.RemoveAll(dir))
		})
		if t.Failed() || pages > 200 {
			t.Fatalf("at %d pages", pages)
		}
	}
}
