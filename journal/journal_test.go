package journal

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/tree"
)

func TestFreshJournal(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	s := j.State()
	if !s.Fresh || s.FreshReason == "" || s.Published || s.CleanStop || s.Cut != 0 || s.JournalID == "" || s.Writer == "" {
		t.Errorf("a fresh journal says %+v", s)
	}
	if !j.Dirty().Empty() || len(j.BaseRecords()) != 0 {
		t.Error("a fresh journal holds marks or a base")
	}
	j = reopen(t, j, dir)
	again := j.State()
	if !again.Fresh || again.JournalID != s.JournalID {
		t.Errorf("reopened, it says %+v", again)
	}
	if again.Writer == s.Writer {
		t.Error("two opens had the same writer id")
	}
	must(t, j.SetEpoch("lineage", 4))
	j = reopen(t, j, dir)
	if s := j.State(); s.Fresh || s.FreshReason != "" || s.Lineage != "lineage" || s.Epoch != 4 || s.Published {
		t.Errorf("after the takeover it says %+v", s)
	}
}

// J1, J3: what Mark returned for is there after a crash, repeats cost nothing.
func TestJ1MarkIsDurable(t *testing.T) {
	dir := t.TempDir()
	commits := 0
	j := openFaulty(t, dir, func(step string) error {
		if step == "mark-before" {
			commits++
		}
		return nil
	})
	must(t, j.Mark(1, "a", "seg/x"))
	before := j.Dirty().Since
	if before.IsZero() {
		t.Error("something is dirty, but since never")
	}
	for range 3 {
		must(t, j.Mark(1, "a"))
		must(t, j.Mark(0, "a", "seg/x"))
	}
	if commits != 1 {
		t.Errorf("%d transactions for two paths and their repeats, want 1", commits)
	}
	must(t, j.Mark(2, "a"))
	must(t, j.Mark(2, "seg"))
	must(t, j.Mark(2, "seg/x", "seg/deep/y")) // covered by seg
	if commits != 3 {
		t.Errorf("%d transactions, want 3", commits)
	}
	j = reopen(t, j, dir)
	wantMarks(t, j, map[string]uint64{"a": 2, "seg/x": 1, "seg": 2})
	if s := j.State(); s.Cut != 2 {
		t.Errorf("the highest cut is %d, want 2", s.Cut)
	}
	if d := j.Dirty(); !d.Since.Equal(before) {
		t.Errorf("dirty since %v, was %v", d.Since, before)
	}
}

func TestDirtyCovers(t *testing.T) {
	d := Dirty{Marks: map[string]uint64{"a": 1, "seg/sub": 1}}
	for path, want := range map[string]bool{
		"a": true, "a/b/c": true, "ab": false, "seg": false, "seg/sub": true, "seg/sub/x": true, "seg/subx": false, ".": false,
	} {
		if d.Covers(path) != want {
			t.Errorf("Covers(%q) is %v", path, !want)
		}
	}
	if !(Dirty{Marks: map[string]uint64{".": 0}}).Covers("any/path") || !(Dirty{All: true}).Covers("any") {
		t.Error(`a mark on "." does not cover everything`)
	}
}

func TestMarkRefusesBadPaths(t *testing.T) {
	j := open(t, t.TempDir())
	for _, p := range []string{"", "/", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\x00b"} {
		if err := j.Mark(1, p); !errors.Is(err, ErrPath) {
			t.Errorf("Mark(%q): %v, want ErrPath", p, err)
		}
	}
	long := strings.Repeat("folder/", 10_000) + "file"
	must(t, j.Mark(1, long))
	if d := j.Dirty(); !d.Covers(long) || d.All {
		t.Errorf("a path of %d bytes is not covered by its own", len(long))
	}
}

// J2: an acknowledged cut clears the marks from before it and no other.
func TestJ2AcknowledgeKeepsNewerMarks(t *testing.T) {
	dir := t.TempDir()
	clock := time.Unix(100, 0)
	j, err := Open(folder(t, dir), Options{Now: func() time.Time { return clock }})
	must(t, err)
	tick := func() { clock = clock.Add(time.Second) }
	must(t, j.Mark(1, "both", "old", "dir/old"))
	tick() // cut 2
	must(t, j.SetIntent(Intent{ID: "id-1", Nonce: "n", Cut: 2, Sequence: 1}))
	must(t, j.AddPending("id-1"))
	must(t, j.Mark(2, "both", "new"))
	if since := j.Dirty().Since; since != time.Unix(100, 0) {
		t.Errorf("dirty since %v, want the first mark", since)
	}
	a, b := record("both", 10, 1), record("old", 9<<20, 2)
	must(t, j.Acknowledge(published(1, 2, b, a)))
	for range 2 {
		wantMarks(t, j, map[string]uint64{"both": 2, "new": 2})
		if since := j.Dirty().Since; since != time.Unix(101, 0) {
			t.Errorf("dirty since %v, want the first mark after the cut", since)
		}
		s := j.State()
		if !s.Published || s.Fresh || s.ID != "id-1" || s.Sequence != 1 || s.Epoch != 3 || s.Lineage != "lineage" || s.Cut != 2 || s.Intent != nil {
			t.Errorf("acknowledged, but the state is %+v", s)
		}
		if !slices.Equal(s.Pending, []string{"id-1"}) {
			t.Errorf("pending: %v", s.Pending)
		}
		got := j.BaseRecords()
		if len(got) != 2 || !sameRecord(got[0], a) || !sameRecord(got[1], b) {
			t.Errorf("the base is %+v", got)
		}
		j = reopen(t, j, dir)
	}
	must(t, j.Acknowledge(published(2, 3, a)))
	if !j.Dirty().Empty() {
		t.Errorf("marks left: %v", j.Dirty())
	}
	if _, ok := j.Base("old"); ok {
		t.Error("a path that the newest snapshot does not hold is in the base")
	}
}

// J2: a snapshot of a cut that is older than every mark clears none.
func TestJ2OldCutClearsNothing(t *testing.T) {
	j := open(t, t.TempDir())
	must(t, j.Mark(5, ".", "a"))
	must(t, j.Acknowledge(published(1, 5)))
	wantMarks(t, j, map[string]uint64{".": 5, "a": 5})
	if !j.Dirty().All {
		t.Error("not everything is dirty any more")
	}
}

func TestIntentEpochPendingRebase(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	intent := Intent{ID: "id-9", Nonce: "nonce", Cut: 7, Sequence: 9}
	must(t, j.SetIntent(intent))
	for _, id := range []string{"id-8", "id-9", "id-8"} {
		must(t, j.AddPending(id))
	}
	must(t, j.DropPending("id-8"))
	must(t, j.DropPending("unknown"))
	j = reopen(t, j, dir)
	if s := j.State(); s.Intent == nil || *s.Intent != intent || s.Cut != 7 || !slices.Equal(s.Pending, []string{"id-9"}) {
		t.Errorf("state %+v", s)
	}
	must(t, j.Acknowledge(published(8, 6)))
	if j.State().Intent == nil {
		t.Error("another snapshot's acknowledgement cleared the intent")
	}
	must(t, j.ClearIntent())
	if j.State().Intent != nil {
		t.Error("the intent is still there")
	}
	must(t, j.SetIntent(intent))
	must(t, j.Mark(7, ".", "x"))
	must(t, j.Rebase(published(10, 0, record("x", 3, 1))))
	if s := j.State(); s.Intent != nil || s.Sequence != 10 || s.Cut != 7 || !j.Dirty().Empty() {
		t.Errorf("rebased: %+v, %+v", s, j.Dirty())
	}
	must(t, j.SetEpoch("lineage", 12))
	if err := j.SetEpoch("other", 13); !errors.Is(err, ErrForeign) {
		t.Errorf("SetEpoch to another lineage: %v", err)
	}
	if s := j.State(); s.Epoch != 12 || s.Lineage != "lineage" {
		t.Errorf("state %+v", s)
	}
}

func TestForget(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	must(t, j.Rebase(published(10, 4, record("x", 3, 1), record("y", 3, 1))))
	must(t, j.SetIntent(Intent{ID: "id-11", Nonce: "nonce", Cut: 5, Sequence: 11}))
	must(t, j.Mark(4, ".", "x"))
	must(t, j.Forget())
	j = reopen(t, j, dir)
	s := j.State()
	if s.Published || s.Lineage != "" || s.ID != "" || s.Sequence != 0 || s.Epoch != 0 || s.Intent != nil || s.Cut != 5 {
		t.Errorf("state %+v", s)
	}
	if len(j.BaseRecords()) != 0 || !j.Dirty().Empty() {
		t.Errorf("base %v, dirty %+v", j.BaseRecords(), j.Dirty())
	}
	must(t, j.SetEpoch("another", 1))
}

// What the next Open would take for damage is refused before it is written.
func TestNonsenseIsNotWritten(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	parts := record("a", 10, 1)
	parts.Parts = nil
	for name, err := range map[string]error{
		"empty pending":   j.AddPending(""),
		"empty intent":    j.SetIntent(Intent{Cut: 3}),
		"empty lineage":   j.SetEpoch("", 1),
		"no id":           j.Acknowledge(Published{Lineage: "l"}),
		"twice":           j.Acknowledge(published(1, 1, record("a", 1, 1), record("a", 1, 1))),
		"path out":        j.Acknowledge(published(1, 1, record("../a", 1, 1))),
		"too few parts":   j.Acknowledge(published(1, 1, parts)),
		"unknown type":    j.Rebase(published(1, 1, tree.Record{Entry: tree.Entry{Path: "p", Type: 9}})),
		"link to nothing": j.Rebase(published(1, 1, tree.Record{Entry: tree.Entry{Path: "p", Type: tree.Symlink}})),
	} {
		if !errors.Is(err, errValue) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := reopen(t, j, dir).State(); !s.Fresh || s.Cut != 0 {
		t.Errorf("state %+v", s)
	}
}

func TestCleanStop(t *testing.T) {
	root, state, j := plainDir(t)
	must(t, j.Mark(2, "seg/data.bin"))
	must(t, j.Stop(walk(t, root)))
	for range 2 { // opening it alone changes nothing
		j = reopen(t, j, state)
		if s := j.State(); !s.CleanStop {
			t.Errorf("state %+v", s)
		}
	}
	must(t, j.Mark(j.State().Cut+1, "seg/data.bin"))
	if j.State().CleanStop || reopen(t, j, state).State().CleanStop {
		t.Error("a mark left the clean stop standing")
	}
}

// Marks asked for while a transaction runs share the next one.
func TestMarksShareATransaction(t *testing.T) {
	const marks = 40
	var commits int
	hold, held := make(chan struct{}), make(chan struct{})
	j := openFaulty(t, t.TempDir(), func(step string) error {
		if step == "mark-before" {
			if commits++; commits == 1 {
				close(held)
				<-hold
			}
		}
		return nil
	})
	var wg sync.WaitGroup
	mark := func(path string) {
		wg.Go(func() {
			if err := j.Mark(1, path); err != nil {
				t.Error(err)
			}
		})
	}
	mark("first")
	<-held
	for i := range marks {
		mark(fmt.Sprintf("p%d", i))
	}
	waiting := func() int {
		j.mu.RLock()
		defer j.mu.RUnlock()
		if j.next == nil {
			return 0
		}
		return len(j.next.marks)
	}
	deadline := time.Now().Add(10 * time.Second)
	for waiting() < marks && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	close(hold)
	wg.Wait()
	if commits != 2 || len(j.Dirty().Marks) != marks+1 {
		t.Errorf("%d transactions for %d marks", commits, len(j.Dirty().Marks))
	}
}

// Readers, marks, cuts and acknowledgements at once; a mark of the newest cut is
// never lost to an acknowledgement (J2). Run with -race.
func TestConcurrentUse(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	const rounds, workers = 15, 4
	for cut := uint64(1); cut <= rounds; cut++ {
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := range 5 {
					p := fmt.Sprintf("w%d/%d-%d", w, cut, i)
					if err := j.Mark(cut, p, "shared"); err != nil {
						t.Error(err)
					}
					if !j.Dirty().Covers(p) {
						t.Errorf("%s is marked and not dirty", p)
					}
				}
			})
		}
		wg.Go(func() {
			if err := j.Acknowledge(published(cut, cut, record("shared", 5, byte(cut)))); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { j.State(); j.BaseRecords(); j.Base("shared") })
		wg.Wait()
		if n := len(j.Dirty().Marks); n != workers*5+1 {
			t.Fatalf("%d marks of cut %d, want %d", n, cut, workers*5+1)
		}
	}
	checked(t, j)
	if n := len(reopen(t, j, dir).Dirty().Marks); n != workers*5+1 {
		t.Errorf("%d marks after reopening", n)
	}
}

func TestClosed(t *testing.T) {
	j := open(t, t.TempDir())
	must(t, j.Mark(1, "a"))
	must(t, j.Close())
	must(t, j.Close())
	for name, err := range map[string]error{
		"Mark": j.Mark(1, "a"), "Acknowledge": j.Acknowledge(published(1, 2)), "Stop": j.Stop(nil), "AddPending": j.AddPending("x"), "Check": j.Check(),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkMark(b *testing.B) {
	b.Run("first touch", func(b *testing.B) {
		j := open(b, b.TempDir())
		for i := range b.N {
			must(b, j.Mark(1, fmt.Sprintf("seg/%d", i)))
		}
	})
	b.Run("first touch, 16 at once", func(b *testing.B) {
		j := open(b, b.TempDir())
		b.SetParallelism(8)
		var mu sync.Mutex
		n := 0
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				mu.Lock()
				n++
				p := fmt.Sprintf("seg/%d", n)
				mu.Unlock()
				if err := j.Mark(1, p); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("repeat", func(b *testing.B) {
		j := open(b, b.TempDir())
		p := filepath.Join("0fb1b2c3-0000-4000-8000-000000000000", "data_level0.bin")
		must(b, j.Mark(1, p))
		b.ReportAllocs()
		for b.Loop() {
			if err := j.Mark(1, p); err != nil {
				b.Fatal(err)
			}
		}
	})
}
