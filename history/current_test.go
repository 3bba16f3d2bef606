package history

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// steal is another writer's takeover.
func (w *world) steal() {
	w.t.Helper()
	h := w.head
	h.Epoch, h.Writer, h.Nonce = h.Epoch+1, nonce(w.t), nonce(w.t)
	if _, err := w.c.SwapHead(w.t.Context(), h, w.etag); err != nil {
		w.t.Fatal(err)
	}
}

// A writer that was left behind touches no file of current, nor deletes one.
func TestCurrentIsNotForTheOneLeftBehind(t *testing.T) {
	w := newWorld(t)
	prev := w.publish(files{"a": "1", "goes": "x"})
	next, _ := w.upload(files{"a": "2", "comes": "y"})
	was := w.current()
	w.steal()
	if err := w.c.RefreshCurrent(t.Context(), w.head, prev, next); !errors.Is(err, ErrFenced) {
		t.Errorf("RefreshCurrent: %v", err)
	}
	if copied, err := w.c.RepairCurrent(t.Context(), w.head, prev, next); !errors.Is(err, ErrFenced) {
		t.Errorf("RepairCurrent: %d, %v", copied, err)
	}
	sameTree(t, "current", w.current(), was)
}

// One that is stopped in the middle of it, and wakes up after it was left behind,
// looks before it goes on.
func TestCurrentIsNotForTheOneThatWakesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := files{}
		for i := range 100 {
			first[fmt.Sprint("file", i)] = "old"
		}
		prev := w.publish(first)
		second := files{}
		for name := range first {
			second[name] = "new"
		}
		next, _ := w.upload(second)
		const before = 20
		var copies atomic.Int32
		awake := make(chan struct{})
		w.store.Fail = func(op memstore.Op) error {
			if op.Kind != "copy" || op.After {
				return nil
			}
			if n := copies.Add(1); n == before {
				w.steal()
				time.Sleep(time.Minute)
				close(awake)
			} else if n > before {
				<-awake // the whole process is stopped
			}
			return nil
		}
		if err := w.c.RefreshCurrent(t.Context(), w.head, prev, next); !errors.Is(err, ErrFenced) {
			t.Errorf("RefreshCurrent: %v", err)
		}
		touched := 0
		for _, data := range w.current() {
			if data == "new" {
				touched++
			}
		}
		if touched >= before+parallel {
			t.Errorf("%d files were replaced, %d of them after it woke up", touched, touched-before)
		}
	})
}
