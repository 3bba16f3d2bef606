package uploader

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/journal"
)

// S2, S3: whichever operation of store or journal fails, before or after it had
// its effect, alone or with everything after it (a crash), the snapshot before or
// the one after is whole; and the next one without faults succeeds, in the same
// process or after reopening the journal, and leaves no litter.
func TestEveryStepMayFail(t *testing.T) { everyStep(t, 15, failAt) }

// everyStep lets failAt fail each operation in each way until there is no nth one, which
// it reports by false. least is how many there must be.
func everyStep(t *testing.T, least int, failAt func(t *testing.T, n int, after, dead bool) bool) {
	t.Helper()
	for _, mode := range []struct {
		name        string
		after, dead bool
	}{
		{"fails", false, false},
		{"answer lost", true, false},
		{"dies before", false, true},
		{"dies after", true, true},
	} {
		t.Run(mode.name, func(t *testing.T) {
			steps := 0
			for failAt(t, steps, mode.after, mode.dead) {
				steps++
			}
			if steps < least {
				t.Errorf("only %d operations were reached", steps)
			}
		})
	}
}

// failAt runs a snapshot whose nth operation fails and reports whether it came to that.
func failAt(t *testing.T, n int, after, dead bool) bool {
	f := &faults{fail: -1, after: after, dead: dead}
	w := newWorld(t)
	w.keep = 2
	w.queue = func(q Queue) Queue { return faultyQueue{q, f} }
	w.open().takeover()
	for i := range 2 { // so that the next one rotates
		w.write("same", []byte("same"))
		w.write("changes", fmt.Appendf(nil, "%d", i))
		w.write("dir/goes", []byte("goes"))
		w.snapshot()
	}
	before := contents(w.files)
	w.write("changes", []byte("changed"))
	w.write("dir/comes", []byte("comes"))
	w.remove("dir/goes")
	after1 := contents(w.files)

	f.n, f.ops, f.fail = 0, nil, n
	w.store.Fail = f.ofStore()
	res, err := w.u.Snapshot(t.Context())
	hit := f.hit
	where := "nothing failed"
	if hit {
		where = fmt.Sprintf("operation %d, %s, failed (after: %v, dead: %v)", n, f.ops[n], after, dead)
	}
	f.fail, f.dead, w.store.Fail = -1, false, nil
	if hit && err == nil && res.Untidy == "" && !recovered(f.ops[n]) {
		t.Errorf("%s, and nobody was told", where)
	}
	if err != nil && !errors.Is(err, errInjected) {
		t.Errorf("%s: %v", where, err)
	}
	got := w.published()
	if !maps.Equal(got, before) && !maps.Equal(got, after1) {
		t.Errorf("%s: published %v", where, got)
	}
	if err == nil && !maps.Equal(got, after1) {
		t.Errorf("%s: said to be published, but was not: %v", where, got)
	}
	if dead {
		w.close()
		w.open().takeover()
	}
	w.snapshot()
	if got := w.published(); !maps.Equal(got, after1) {
		t.Errorf("%s: the next snapshot holds %v", where, got)
	}
	w.checkTidy()
	if !w.j.Dirty().Empty() {
		t.Errorf("%s: still dirty: %v", where, w.j.Dirty().Marks)
	}
	w.write("later", []byte("later"))
	w.snapshot()
	if got := w.published(); !maps.Equal(got, contents(w.files)) {
		t.Errorf("%s: the one after holds %v", where, got)
	}
	w.checkTidy()
	if t.Failed() {
		t.FailNow()
	}
	w.close()
	return hit
}

// recovered reports whether an operation's failure may be made good on the spot:
// the swap of the head is looked for when its answer was lost.
func recovered(op string) bool { return op == "put "+history.HeadKey }

// What current has missed it gets with the next snapshot, also where that takes the
// one that current never followed off the list.
func TestCurrentCatchesUp(t *testing.T) {
	for _, keep := range []int{1, 2} {
		t.Run(fmt.Sprintf("keep=%d", keep), func(t *testing.T) {
			w := newWorld(t)
			w.keep = keep
			w.open().takeover()
			w.write("changes", []byte("1"))
			w.write("goes", []byte("goes"))
			w.write("same", []byte("same"))
			w.snapshot()
			w.store.Fail = func(op memstore.Op) error {
				if (op.Kind == "copy" || op.Kind == "delete") && !strings.HasPrefix(op.Key, history.HistoryPrefix) {
					return errInjected
				}
				return nil
			}
			w.write("changes", []byte("2"))
			w.write("comes", []byte("comes"))
			w.remove("goes")
			if r, err := w.u.Snapshot(t.Context()); err != nil || r.Untidy == "" {
				t.Fatalf("%+v, %v", r, err)
			}
			w.store.Fail = nil
			w.write("later", []byte("later"))
			w.snapshot()
			w.checkTidy()
		})
	}
}

// The same for what a multipart upload does.
func TestEveryStepOfAnUploadMayFail(t *testing.T) {
	for _, c := range []struct {
		kind  string
		after bool
	}{{"new-upload", true}, {"put-part", false}, {"copy-part", false}, {"complete", false}, {"complete", true}} {
		t.Run(fmt.Sprintf("%s after=%v", c.kind, c.after), func(t *testing.T) {
			w := newWorld(t).open().takeover()
			w.write("big", big("1"))
			w.snapshot()
			w.write("big", big("2"))
			hit := false
			w.store.Fail = func(op memstore.Op) error {
				if op.Kind == c.kind && op.After == c.after && strings.HasPrefix(op.Key, "history/") {
					hit = true
					return errInjected
				}
				return nil
			}
			_, err := w.u.Snapshot(t.Context())
			if !hit || !errors.Is(err, errInjected) {
				t.Fatalf("hit: %v, snapshot: %v", hit, err)
			}
			w.store.Fail = nil
			if h := w.head(); h.Sequence != 1 {
				t.Errorf("published: %+v", h)
			}
			w.snapshot()
			if got := w.published(); !maps.Equal(got, contents(w.files)) {
				t.Error("the next snapshot is not what is there")
			}
			w.checkTidy()
		})
	}
}

// The journal holds an intent that the store lists: it is acknowledged, no
// divergence, and what was written since the cut stays dirty (J2).
func TestPublishedButNotAcknowledged(t *testing.T) {
	for _, reopen := range []bool{false, true} {
		t.Run(fmt.Sprintf("reopen=%v", reopen), func(t *testing.T) {
			f := &faults{fail: -1, dead: true}
			w := newWorld(t)
			w.queue = func(q Queue) Queue { return faultyQueue{q, f} }
			w.open().takeover()
			w.write("a", []byte("1"))
			w.snapshot()
			w.write("a", []byte("2"))
			w.write("b", []byte("b"))
			w.onCut = func() { w.write("b", []byte("later")) }
			w.store.Fail = func(op memstore.Op) error {
				if op.Kind == "put" && op.Key == history.HeadKey && op.After {
					f.mu.Lock()
					f.hit = true // from here on everything fails
					f.mu.Unlock()
				}
				f.mu.Lock()
				defer f.mu.Unlock()
				if f.hit {
					return errInjected
				}
				return nil
			}
			if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, errInjected) {
				t.Fatal(err)
			}
			w.onCut, w.store.Fail, f.dead = nil, nil, false
			published := w.head().Newest.ID
			if s := w.j.State(); s.Intent == nil || s.Intent.ID != string(published) || s.Sequence != 1 {
				t.Fatalf("journal %+v, published %s", s, published)
			}
			if reopen {
				w.close()
				w.open()
				done, err := CompleteIntent(t.Context(), w.catalog(), w.j, w.head())
				if !done || err != nil {
					t.Fatalf("%v, %v", done, err)
				}
				w.takeover()
			} else if err := w.u.confirm(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s := w.j.State(); s.Intent != nil || s.ID != string(published) || s.Sequence != 2 {
				t.Errorf("journal %+v", s)
			}
			if d := w.j.Dirty(); d.Covers("a") || !d.Covers("b") {
				t.Errorf("dirty %v", d.Marks)
			}
			if r := w.snapshot(); r.Sequence != 3 || r.BytesUploaded != int64(len("later")) {
				t.Errorf("%+v", r)
			}
			if got := w.published(); !maps.Equal(got, contents(w.files)) {
				t.Errorf("published %v", got)
			}
			w.checkTidy()
		})
	}
}

// A write of the head that arrives after everybody gave it up changes nothing: the
// next attempt has taken away the ETag that it waits for.
func TestLateWriteOfTheHead(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("1"))
	first := w.snapshot()
	late, etag := w.u.head, w.u.etag
	w.write("a", []byte("2"))
	w.store.Fail = func(op memstore.Op) error {
		if op.Kind == "put" && op.Key == history.HeadKey && !op.After {
			return errInjected
		}
		return nil
	}
	if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	w.store.Fail = nil
	w.write("a", []byte("1")) // as it was: the next attempt has nothing to publish
	if r := w.snapshot(); r.ID != first.ID || r.Published {
		t.Errorf("%+v", r)
	}
	if s := w.j.State(); s.Intent != nil {
		t.Errorf("intent %+v", s.Intent)
	}
	if err := w.j.SetIntent(journal.Intent{ID: string(first.ID) + "-x", Nonce: "n"}); err != nil {
		t.Fatal(err)
	}
	w.close()
	w.open() // nor by one that has not taken over yet
	w.snapshot()
	if s := w.j.State(); s.Intent != nil {
		t.Errorf("intent %+v", s.Intent)
	}
	late.Sequence, late.Nonce = late.Sequence+1, "0123456789abcdef0123456789abcdef"
	if _, err := w.catalog().SwapHead(t.Context(), late, etag); err == nil && w.head().Sequence != 1 {
		t.Error("the late write arrived")
	}
	w.checkTidy()
}

func TestTakeoverMayFail(t *testing.T) {
	for n := 0; ; n++ {
		f := &faults{fail: -1}
		w := newWorld(t).open().takeover()
		w.write("a", []byte("a"))
		w.snapshot()
		w.close()
		w.open()
		w.write("a", []byte("b"))
		f.fail = n
		w.store.Fail = f.ofStore()
		err := w.tryTakeover()
		w.store.Fail = nil
		if !f.hit {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if !errors.Is(err, errInjected) {
			t.Fatalf("operation %d, %s: %v", n, f.ops[n], err)
		}
		w.takeover()
		w.snapshot()
		w.checkTidy()
		w.close()
	}
}
