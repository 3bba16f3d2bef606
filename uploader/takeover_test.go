package uploader

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// W1: of two writers the later one publishes, the earlier one says so and stays away
// from the list, which it does not even look at again.
func TestFence(t *testing.T) {
	for _, when := range []string{"before the snapshot", "in the middle of it"} {
		t.Run(when, func(t *testing.T) {
			w := newWorld(t).open().takeover()
			w.write("a", []byte("a"))
			w.snapshot()
			other := newWorld(t)
			other.store = w.store
			other.open()
			var once sync.Once
			steal := func() { once.Do(func() { other.takeover() }) }
			w.write("a", []byte("w"))
			if when == "before the snapshot" {
				steal()
			} else {
				w.onCut = steal
			}
			_, err := w.u.Snapshot(t.Context())
			if !errors.Is(err, ErrFenced) || exitcode.Of(err) != exitcode.Conflict || exitcode.Hint(err) == "" {
				t.Fatalf("snapshot: %v", err)
			}
			if !w.u.Status().Fenced || w.j.Dirty().Empty() {
				t.Errorf("status %+v", w.u.Status())
			}
			asked := false
			w.store.Fail = func(op memstore.Op) error { asked = asked || op.Key == history.HeadKey; return nil }
			if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, ErrFenced) || asked {
				t.Errorf("a second time: %v, asked for the list: %v", err, asked)
			}
			w.store.Fail = nil
			if h := w.head(); h.Sequence != 1 || h.Epoch != 2 {
				t.Errorf("head %+v", h)
			}
		})
	}
}

// W1: of takeovers that race for one head, one wins.
func TestTakeoverRace(t *testing.T) {
	a := newWorld(t).open()
	b := newWorld(t)
	b.store = a.store
	b.open()
	for round := range 3 {
		head, etag, err := a.catalog().Head(t.Context())
		if err != nil && !errors.Is(err, history.ErrNoBackup) {
			t.Fatal(err)
		}
		won, err := a.u.Takeover(t.Context(), head, etag)
		if err != nil {
			t.Fatal(err)
		}
		if won.Epoch != head.Epoch+1 || won.Lineage == "" || won.Writer != a.j.State().Writer {
			t.Errorf("head %+v", won)
		}
		if s := a.j.State(); s.Epoch != won.Epoch || s.Lineage != won.Lineage {
			t.Errorf("journal %+v", s)
		}
		if _, err := b.u.Takeover(t.Context(), head, etag); !errors.Is(err, history.ErrFenced) && !errors.Is(err, history.ErrStale) {
			t.Errorf("round %d: the loser got %v", round, err)
		}
		a.write("a", fmt.Appendf(nil, "%d", round))
		a.snapshot()
	}
}

// A mount that began without a store takes over when it answers, if nothing moved.
func TestAttach(t *testing.T) {
	w := newWorld(t).open()
	w.write("a", []byte("a"))
	w.snapshot()
	if h := w.head(); h.Epoch != 1 || h.Sequence != 1 {
		t.Errorf("head %+v", h)
	}
	w.close()
	w.open()
	w.snapshot()
	w.write("a", []byte("a"))
	w.snapshot()
	if h := w.head(); h.Epoch != 1 {
		t.Errorf("with nothing to publish it took over: %+v", h)
	}
	w.write("a", []byte("b"))
	w.snapshot()
	w.checkTidy()

	other := newWorld(t)
	other.store = w.store
	other.open()
	other.write("x", []byte("x"))
	if _, err := other.u.Snapshot(t.Context()); !errors.Is(err, ErrFenced) || !errors.Is(err, ErrDiverged) {
		t.Errorf("one that knows nothing of the store: %v", err)
	}
	if w.head().Epoch != 2 {
		t.Error("it took over")
	}
}

func TestStoreEmptiedUnderTheWriter(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("a"))
	w.snapshot()
	var keys []string
	for o, err := range w.store.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, o.Key)
	}
	if err := w.store.Delete(t.Context(), keys); err != nil {
		t.Fatal(err)
	}
	w.write("a", []byte("b"))
	if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, ErrDiverged) || exitcode.Of(err) != exitcode.Conflict {
		t.Errorf("snapshot: %v", err)
	}
}
