package uploader

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// other is a second machine on the same store, which knows what the first has published.
func (w *world) other() *world {
	w.t.Helper()
	o := newWorld(w.t)
	o.store = w.store
	return o.open()
}

// After Yield nothing gets into the list, and what is written goes to a branch; after
// Reclaim all goes on. Run does as it should in both.
func TestYieldAndReclaim(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var took []uint64
		w.u.o.TookOver = func(h history.Head) { took = append(took, h.Epoch) }
		var published atomic.Int32
		w.store.Fail = func(op memstore.Op) error {
			if op.Kind == "put" && op.Key == history.HeadKey || op.Kind == "copy" && op.Key == history.CurrentKey("a") {
				published.Add(1)
			}
			return nil
		}
		cuts := run(t, w)
		w.write("a", []byte("1"))
		time.Sleep(10 * time.Minute)
		if w.head().Sequence != 1 || len(cuts()) != 1 {
			t.Fatalf("before anything: %+v, cuts %v", w.head(), cuts())
		}
		if err := w.u.Yield(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.write("a", []byte("2"))
		published.Store(0)
		time.Sleep(24 * time.Hour)
		if s := w.u.Status(); !s.Yielded || s.Fenced || s.Failures > 0 || s.Branch == nil {
			t.Fatalf("Run has stored no branch: %+v", s)
		}
		branch := w.u.Status().Branch.ID
		_, err := w.u.Snapshot(t.Context())
		if !errors.Is(err, ErrYielded) || errors.Is(err, ErrFenced) || exitcode.Of(err) != exitcode.Conflict || exitcode.Hint(err) == "" ||
			published.Load() > 0 || !strings.Contains(err.Error(), string(branch)) {
			t.Errorf("Snapshot: %v; published %d times; the branch is %s", err, published.Load(), branch)
		}
		if h := w.head(); h.Sequence != 1 || w.j.Dirty().Empty() {
			t.Errorf("it published: %+v", h)
		}
		epoch, err := w.u.Reclaim(t.Context())
		if err != nil || epoch != 2 || len(took) != 1 || took[0] != 2 || w.u.Status().Yielded {
			t.Errorf("Reclaim: epoch %d, %v; told of %v", epoch, err, took)
		}
		if again, err := w.u.Reclaim(t.Context()); err != nil || again != 2 || w.head().Epoch != 2 {
			t.Errorf("a second Reclaim: epoch %d, %v", again, err)
		}
		time.Sleep(2 * time.Hour)
		if h := w.head(); h.Sequence != 2 || h.Epoch != 2 {
			t.Errorf("it does not publish again: %+v", h)
		}
	})
}

// W1: who comes first, the one that takes over or the one that takes back, has it.
func TestReclaimIsATakeover(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("1"))
	w.snapshot()
	if err := w.u.Yield(t.Context()); err != nil {
		t.Fatal(err)
	}
	head, etag, err := w.catalog().Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o := w.other()
	if _, err := w.u.Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := o.u.Takeover(t.Context(), head, etag); !errors.Is(err, history.ErrFenced) {
		t.Errorf("a late takeover: %v", err)
	}
	w.write("a", []byte("2"))
	w.snapshot()

	if err := w.u.Yield(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.takeover()
	w.u.head = w.head() // it may have been read since, for other reasons
	if _, err := w.u.Reclaim(t.Context()); !errors.Is(err, ErrFenced) {
		t.Errorf("a late Reclaim: %v", err)
	}
	if h := w.head(); h.Writer != o.j.State().Writer {
		t.Errorf("head %+v", h)
	}
	for name, call := range map[string]func(context.Context) error{
		"Yield": w.u.Yield, "CheckWriter": w.u.CheckWriter,
		"Reclaim": func(ctx context.Context) error { _, err := w.u.Reclaim(ctx); return err },
	} {
		if err := call(t.Context()); !errors.Is(err, ErrFenced) {
			t.Errorf("%s of a fenced one: %v", name, err)
		}
	}
}

// `history clear` replaces the head and keeps the epoch: it is no reason not to take
// the store back.
func TestReclaimAfterHistoryClear(t *testing.T) {
	w := newWorld(t).open().takeover()
	for _, data := range []string{"1", "2"} {
		w.write("a", []byte(data))
		w.snapshot()
	}
	if err := w.u.Yield(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.catalog().Clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	if epoch, err := w.u.Reclaim(t.Context()); err != nil || epoch != 2 || len(w.head().History) != 1 {
		t.Errorf("epoch %d, %v, head %+v", epoch, err, w.head())
	}
	if err := w.u.CheckWriter(t.Context()); err != nil {
		t.Errorf("CheckWriter: %v", err)
	}
}

// CheckWriter finds the takeover before there is anything to publish.
func TestCheckWriter(t *testing.T) {
	w := newWorld(t).open().takeover()
	if err := w.u.CheckWriter(t.Context()); err != nil {
		t.Errorf("CheckWriter: %v", err)
	}
	w.other().takeover()
	if err := w.u.CheckWriter(t.Context()); !errors.Is(err, ErrFenced) || !w.u.Status().Fenced {
		t.Errorf("CheckWriter: %v", err)
	}
}

// Yield waits for the snapshot that is under way: it is published, or not begun.
func TestYieldWaitsForASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t).open().takeover()
		w.write("a", []byte("1"))
		w.onCut = func() { time.Sleep(time.Minute) }
		done := make(chan error)
		go func() { _, err := w.u.Snapshot(t.Context()); done <- err }()
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.u.Yield(short); !errors.Is(err, context.DeadlineExceeded) || w.u.Status().Yielded {
			t.Errorf("Yield, with no time: %v", err)
		}
		go func() { done <- w.u.Yield(t.Context()) }()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if w.head().Sequence != 1 || !w.u.Status().Yielded {
			t.Errorf("head %+v", w.head())
		}
	})
}
