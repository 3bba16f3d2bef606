package uploader

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/journal"
)

// Whichever operation fails while a branch is stored, before or after it had its
// effect, alone or with everything after it (a crash), the list is not touched, and
// the next attempt leaves complete branches and nothing else, the last one what the
// loser holds.
func TestEveryStepOfABranchMayFail(t *testing.T) { everyStep(t, 8, failBranchAt) }

// failBranchAt stores a branch, the nth operation failing, and reports whether it
// came to that.
func failBranchAt(t *testing.T, n int, after, dead bool) bool {
	f := &faults{fail: -1, after: after, dead: dead}
	w := newWorld(t)
	w.queue = func(q Queue) Queue { return faultyQueue{q, f} }
	w.open().takeover()
	w.write("same", []byte("same"))
	w.write("also", []byte("the same"))
	w.write("changes", []byte("1"))
	w.snapshot()
	r := w.rival()
	r.snapshot()
	w.write("changes", []byte("2"))
	first := w.branch()
	w.write("changes", []byte("3"))
	w.write("comes", []byte("comes"))
	head := w.head()

	f.n, f.ops, f.fail = 0, nil, n
	w.store.Fail = f.ofStore()
	res, err := w.u.Snapshot(t.Context())
	hit := f.hit
	where := "nothing failed"
	if hit {
		where = fmt.Sprintf("operation %d, %s, failed (after: %v, dead: %v)", n, f.ops[n], after, dead)
	}
	f.fail, f.dead, w.store.Fail = -1, false, nil
	var fenced *AsideError
	switch {
	case !errors.As(err, &fenced):
		t.Fatalf("%s: %v", where, err)
	case hit && fenced.Failed == nil && res.Untidy == "":
		t.Errorf("%s, and nobody was told", where)
	case fenced.Failed != nil && !errors.Is(err, errInjected):
		t.Errorf("%s: %v", where, err)
	case fenced.Branch != "" && !maps.Equal(w.filesOf(fenced.Branch), contents(w.files)):
		t.Errorf("%s: %s was said to be stored, and holds %v", where, fenced.Branch, w.filesOf(fenced.Branch))
	}
	w.branches() // whatever is complete is whole
	if dead {
		w.close()
		w.open()
	}
	last := w.branch()
	if !maps.Equal(w.filesOf(last.ID), contents(w.files)) {
		t.Errorf("%s: the next branch holds %v", where, w.filesOf(last.ID))
	}
	if fenced.Branch != "" && last.ID != fenced.Branch {
		t.Errorf("%s: what %s holds was stored again", where, fenced.Branch)
	}
	w.checkBranchTidy(2)
	if got := w.branches(); got[0] != first.ID {
		t.Errorf("%s: branches %v, without the first, %s", where, got, first.ID)
	}
	if now := w.head(); now.Nonce != head.Nonce {
		t.Errorf("%s: the head was touched: %+v", where, now)
	}
	if t.Failed() {
		t.FailNow()
	}
	w.close()
	return hit
}

// A branch that a crash left pending is not deleted as an unlisted snapshot is by the
// mount that publishes again; half of one is.
func TestPendingBranchesOfAWriterThatIsBack(t *testing.T) {
	for _, complete := range []bool{true, false} {
		w := newWorld(t).open().takeover()
		w.write("a", []byte("a"))
		w.snapshot()
		r := w.rival()
		r.snapshot()
		w.write("a", []byte("b"))
		w.store.Fail = func(op memstore.Op) error {
			if op.Kind == "put" && strings.HasSuffix(op.Key, "/manifest.json") && op.After == complete {
				return errInjected
			}
			return nil
		}
		if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, errInjected) {
			t.Fatal(err)
		}
		w.store.Fail = nil
		pending := w.j.State().Pending
		if len(pending) != 1 || !history.ID(pending[0]).IsBranch() {
			t.Fatalf("pending %v", pending)
		}
		// What a mount does whose row is "diverged": the journal follows the newest.
		m, err := w.catalog().Manifest(t.Context(), r.head().Newest.ID, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := w.j.Rebase(journal.Published{Lineage: m.Lineage, Sequence: m.Sequence, Epoch: m.Epoch, ID: string(m.ID), Records: m.Entries}); err != nil {
			t.Fatal(err)
		}
		w.files = r.files
		w.close()
		w.open().takeover()
		w.write("a", []byte("c"))
		w.snapshot()
		if got := w.branches(); complete != (len(got) == 1) || complete && string(got[0]) != pending[0] {
			t.Errorf("complete: %v: branches %v", complete, got)
		}
		if p := w.j.State().Pending; len(p) > 0 {
			t.Errorf("complete: %v: pending %v", complete, p)
		}
		if left := w.objects(history.SnapshotPrefix(history.ID(pending[0]))); !complete && len(left) > 0 {
			t.Errorf("litter: %v", left)
		}
		for key := range w.objects("") {
			if key == history.CurrentKey("theirs") || strings.HasPrefix(key, history.HistoryPrefix) {
				continue
			}
			if key != history.CurrentKey("a") && key != history.HeadKey {
				t.Errorf("in current: %s", key)
			}
		}
	}
}

// Whichever operation of the rotation of branches fails, a branch that is there is
// whole, and the next snapshot ends it.
func TestRotationOfBranchesMayFail(t *testing.T) {
	_, ops := failRotationAt(t, -1, false, false)
	first := slices.Index(ops, "list "+history.HistoryPrefix)
	if first < 0 || len(ops) < first+5 {
		t.Fatalf("%v", ops)
	}
	for _, dead := range []bool{false, true} { // an error before the effect, a crash after it
		for n := first; n < len(ops); n++ {
			if hit, _ := failRotationAt(t, n, dead, dead); !hit {
				t.Errorf("operation %d was not reached", n)
			}
		}
	}
}

func failRotationAt(t *testing.T, n int, after, dead bool) (hit bool, ops []string) {
	w := newWorld(t)
	var later time.Duration
	w.now = func() time.Time { return time.Now().Add(later) }
	w.store.Now = w.now
	w.open().takeover()
	w.write("a", []byte("a"))
	w.snapshot()
	f := &faults{fail: -1, after: after, dead: dead}
	r := newWorld(t)
	r.store, r.now = w.store, w.now
	r.queue = func(q Queue) Queue { return faultyQueue{q, f} }
	r.open().takeover()
	for i := range keptBranches + 1 {
		w.write("a", fmt.Appendf(nil, "%d", i))
		w.branch()
		later += time.Minute
	}
	later += history.BranchAge + time.Hour
	r.write("b", []byte("b"))
	f.n, f.ops, f.fail = 0, nil, n
	w.store.Fail = f.ofStore()
	res, err := r.u.Snapshot(t.Context())
	hit, ops = f.hit, f.ops
	f.fail, f.dead, w.store.Fail = -1, false, nil
	if f.hit && err == nil && res.Untidy == "" && !recovered(f.ops[n]) {
		t.Errorf("operation %d, %s, failed, and nobody was told", n, f.ops[n])
	}
	if got := len(w.branches()); got < keptBranches {
		t.Errorf("operation %d: %d branches", n, got)
	}
	if dead {
		r.close()
		r.open().takeover()
	}
	r.write("b", []byte("bb"))
	r.snapshot()
	w.checkBranchTidy(keptBranches)
	if p := r.j.State().Pending; len(p) > 0 {
		t.Errorf("operation %d: pending %v", n, p)
	}
	if t.Failed() {
		t.Fatalf("after: %v, dead: %v", after, dead)
	}
	r.close()
	w.close()
	return hit, ops
}
