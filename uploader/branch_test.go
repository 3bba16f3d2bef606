package uploader

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// rival is another DIR on w's store, which takes it over and publishes.
func (w *world) rival() *world {
	w.t.Helper()
	r := newWorld(w.t)
	r.store, r.now, r.keep = w.store, w.now, w.keep
	r.open().takeover()
	r.write("theirs", []byte("theirs"))
	return r
}

// branch is a snapshot of a writer that was left behind.
func (w *world) branch() Result {
	w.t.Helper()
	res, err := w.u.Snapshot(w.t.Context())
	var fenced *AsideError
	if !errors.As(err, &fenced) || exitcode.Of(err) != exitcode.Conflict {
		w.t.Fatalf("snapshot: %v", err)
	}
	if fenced.Failed != nil || fenced.Branch != res.ID || !res.Aside || res.Published || res.Untidy != "" {
		w.t.Fatalf("%v, %+v", err, res)
	}
	if res.ID != "" && (!res.ID.IsBranch() || !strings.Contains(exitcode.Hint(err), "chromafs restore --at "+string(res.ID))) {
		w.t.Errorf("%s; hint %q", res.ID, exitcode.Hint(err))
	}
	return res
}

// branches returns the complete branches, each of which is whole (S2).
func (w *world) branches() (ids []history.ID) {
	w.t.Helper()
	all, err := w.catalog().Branches(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, b := range all {
		if report, err := w.catalog().Verify(w.t.Context(), b.ID); err != nil || b.Err != nil {
			w.t.Errorf("branch %s: %v, %v, %+v", b.ID, b.Err, err, report)
		}
		ids = append(ids, b.ID)
	}
	return ids
}

// objects returns the ETags of what is stored below a prefix.
func (w *world) objects(prefix string) map[string]string {
	w.t.Helper()
	all := map[string]string{}
	for o, err := range w.store.List(w.t.Context(), prefix) {
		if err != nil {
			w.t.Fatal(err)
		}
		all[o.Key] = o.ETag
	}
	return all
}

// requests counts what the store is asked while f runs, by kind.
func (w *world) requests(f func()) map[string]int {
	w.t.Helper()
	var mu sync.Mutex
	kinds := map[string]int{}
	w.store.Fail = func(op memstore.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if !op.After {
			kinds[op.Kind]++
		}
		return nil
	}
	f()
	w.store.Fail = nil
	return kinds
}

// W1, W2, H1: of two writers both store what they hold: the one in the list, the
// other one as a branch, byte for byte, which costs what changed and touches nothing
// of the first. The loser's journal goes on calling DIR diverged.
func TestBothWritersKeepTheirData(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("big", big("1"))
	w.write("same", []byte("same"))
	w.write("dir/gone", []byte("gone"))
	base := w.snapshot().ID
	r := w.rival()
	theirs := r.snapshot().ID

	w.write("big", big("22"))
	w.write("mine", []byte("mine"))
	w.remove("dir/gone")
	before := w.objects("")
	first := w.branch()
	if !maps.Equal(w.filesOf(first.ID), contents(w.files)) {
		t.Error("the branch is not what the loser holds (W2)")
	}
	if want := int64(len("22") + len("mine")); first.BytesUploaded != want {
		t.Errorf("%d bytes sent, want %d (S4)", first.BytesUploaded, want)
	}
	now := w.objects("")
	maps.DeleteFunc(now, func(key, _ string) bool { return strings.HasPrefix(key, history.SnapshotPrefix(first.ID)) })
	if !maps.Equal(now, before) {
		t.Error("a branch touched something else in the store (H1)")
	}
	if h := r.head(); !slices.Equal(h.History, []history.ID{base, theirs}) || h.Newest.ID != theirs {
		t.Errorf("list %v", h.History)
	}
	if s := w.j.State(); s.ID != string(base) || s.Sequence != 1 || s.Intent != nil || w.j.Dirty().Empty() {
		t.Errorf("the loser's journal: %+v", s)
	}
	if s := w.u.Status(); !s.Fenced || s.Branch == nil || s.Branch.ID != first.ID || s.LastError != "" || s.Last.ID != base {
		t.Errorf("status %+v", s)
	}

	again := w.requests(func() {
		if res := w.branch(); res.ID != first.ID || res.BytesUploaded != 0 {
			t.Errorf("nothing changed, and there is %+v", res)
		}
	})
	if !maps.Equal(again, map[string]int{"list": 1}) {
		t.Errorf("nothing changed, and the store was asked %v", again)
	}

	w.write("mine", []byte("more"))
	second := w.branch()
	if second.BytesUploaded != int64(len("more")) || !maps.Equal(w.filesOf(second.ID), contents(w.files)) {
		t.Errorf("%+v", second)
	}
	if got := w.branches(); !slices.Equal(got, []history.ID{first.ID, second.ID}) {
		t.Errorf("branches %v", got)
	}
	r.write("theirs", []byte("and more"))
	r.snapshot()
	if got := r.published(); !maps.Equal(got, contents(r.files)) {
		t.Errorf("the winner published %v", got)
	}
	if p := w.j.State().Pending; !slices.Equal(p, []string{string(second.ID)}) {
		t.Errorf("pending %v", p)
	}
}

// The new writer rotates the base away, before the branch or in its middle: what
// cannot be copied any more is sent.
func TestBranchWithoutItsBase(t *testing.T) {
	for _, middle := range []bool{false, true} {
		t.Run(fmt.Sprintf("middle=%v", middle), func(t *testing.T) {
			w := newWorld(t)
			w.keep = 1
			w.open().takeover()
			w.write("big", big("1"))
			w.write("same", []byte("same"))
			w.snapshot()
			r := w.rival()
			w.write("big", big("2"))
			if middle {
				done := false
				w.store.Fail = func(op memstore.Op) error {
					if op.Kind == "new-upload" && op.After && !done {
						done = true
						r.snapshot()
					}
					return nil
				}
			} else {
				r.snapshot()
			}
			res := w.branch()
			w.store.Fail = nil
			if n := len(w.head().History); n != 1 || !maps.Equal(w.filesOf(res.ID), contents(w.files)) {
				t.Errorf("%d listed, the branch holds %d files", n, len(w.filesOf(res.ID)))
			}
			w.branches()
		})
	}
}

// A daemon that was started again knows its last branch: nothing is sent twice.
func TestBranchAfterARestart(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("big", big("1"))
	w.snapshot()
	r := w.rival()
	r.snapshot()
	w.write("big", big("2"))
	first := w.branch()
	w.close()
	w.open() // it has not taken over: its base is not the newest
	if res, err := w.u.Branch(t.Context()); err != nil || res.ID != first.ID || res.BytesUploaded != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	w.write("new", []byte("new"))
	second := w.branch()
	if second.BytesUploaded != int64(len("new")) || !maps.Equal(w.filesOf(second.ID), contents(w.files)) {
		t.Errorf("%+v", second)
	}

	// Removed on request, it is stored again.
	for _, id := range w.branches() {
		if err := w.catalog().Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	third := w.branch()
	if third.ID == second.ID || !slices.Equal(w.branches(), []history.ID{third.ID}) || !maps.Equal(w.filesOf(third.ID), contents(w.files)) {
		t.Errorf("%+v", third)
	}
}

// A writer without changes has nothing to store; one whose changes came to nothing
// neither.
func TestBranchOfNothing(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("a"))
	w.snapshot()
	w.rival()
	if res := w.branch(); res.ID != "" {
		t.Errorf("%+v", res)
	}
	w.write("a", []byte("a"))
	if res := w.branch(); res.ID != "" || w.j.Dirty().Empty() || len(w.branches()) > 0 {
		t.Errorf("%+v, dirty %v", res, w.j.Dirty())
	}
}

// A store that is another one now, or that was emptied, gets no branch: it would stand
// in the way of whoever it belongs to.
func TestBranchGoesToItsOwnStore(t *testing.T) {
	for _, emptied := range []bool{false, true} {
		w := newWorld(t).open().takeover()
		w.write("a", []byte("a"))
		w.snapshot()
		w.rival()
		w.write("a", []byte("b"))
		w.branch()
		if err := w.store.Delete(t.Context(), slices.Collect(maps.Keys(w.objects("")))); err != nil {
			t.Fatal(err)
		}
		if !emptied {
			w.rival().snapshot()
		}
		before := w.objects("")
		w.write("a", []byte("c"))
		_, err := w.u.Snapshot(t.Context())
		var fenced *AsideError
		if !errors.As(err, &fenced) || fenced.Failed == nil || fenced.Branch != "" || exitcode.Of(err) != exitcode.Conflict {
			t.Errorf("emptied: %v: %v", emptied, err)
		}
		if !maps.Equal(w.objects(""), before) {
			t.Errorf("emptied: %v: something was stored", emptied)
		}
	}
}

// S5: what is damaged is no branch either.
func TestDamagedBranch(t *testing.T) {
	w := newWorld(t)
	broken := false
	w.check = func(_ context.Context, _ View, changed func(string) bool) ([]string, error) {
		if broken {
			return []string{"a: damaged"}, nil
		}
		return nil, nil
	}
	w.open().takeover()
	w.write("a", []byte("a"))
	w.snapshot()
	w.rival().snapshot()
	w.write("a", []byte("b"))
	broken = true
	if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, ErrDamaged) || !errors.Is(err, ErrFenced) || len(w.branches()) > 0 {
		t.Errorf("%v", err)
	}
	broken = false
	w.branch()
	w.checkBranchTidy(1)
}

// A view that was written to behind its back, and a DIR that was wiped, make no branch.
func TestViewsThatMakeNoBranch(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("a"))
	w.write("b", []byte("b"))
	w.snapshot()
	w.rival().snapshot()
	w.write("a", []byte("aa"))
	w.verify = func() error { return errInjected }
	if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, errInjected) || len(w.branches()) > 0 {
		t.Errorf("%v, branches %v", err, w.branches())
	}
	w.verify = nil
	w.branch()
	w.checkBranchTidy(1)
	w.verify = func() error { return errInjected }
	if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, errInjected) {
		t.Errorf("an unchanged one: %v", err)
	}
	w.verify, w.files = nil, nil
	if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, ErrWiped) {
		t.Errorf("a wiped one: %v", err)
	}
	w.checkBranchTidy(1)
}

// checkBranchTidy fails unless the store holds n branches, whole, no half ones, and
// the journal names the last one alone.
func (w *world) checkBranchTidy(n int) {
	w.t.Helper()
	ids := w.branches()
	if len(ids) != n {
		w.t.Errorf("%d branches, want %d", len(ids), n)
	}
	for key := range w.objects(history.HistoryPrefix) {
		name, _, _ := strings.Cut(strings.TrimPrefix(key, history.HistoryPrefix), "/")
		if id := history.ID(name); id.IsBranch() && !slices.Contains(ids, id) {
			w.t.Errorf("litter: %s", key)
		}
	}
	uploads, err := w.store.Uploads(w.t.Context(), "")
	if err != nil || len(uploads) > 0 {
		w.t.Errorf("unfinished uploads: %v, %v", uploads, err)
	}
	if p := w.j.State().Pending; len(p) != 1 || n > 0 && p[0] != string(ids[len(ids)-1]) {
		w.t.Errorf("pending %v, branches %v", p, ids)
	}
}
