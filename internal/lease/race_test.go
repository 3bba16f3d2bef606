package lease

import (
	"crypto/rand"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

func (w *world) waiter(m *mount) *Waiter {
	return NewWaiter(WaiterOptions{Store: w.store, Self: m.self, Patience: patience, Now: time.Now, Rand: rand.Reader, Log: w.logger(m.self.Writer)})
}

// wait is one Wait for a holder, which must have waited or not, for a time.
func (w *world) wait(x *Waiter, of head, wantWaited bool, least, most time.Duration) {
	w.t.Helper()
	start := time.Now()
	waited, err := x.Wait(w.t.Context(), of.writer, of.epoch)
	if err != nil || waited != wantWaited {
		w.t.Errorf("waited %v, %v", waited, err)
	}
	within(w.t, "the wait for "+of.writer, time.Since(start), least, most)
}

// Who loses the takeover to one that has not come to writing its lease asks that one,
// and does not go by the lease of the one before.
func TestTheLoserAsksTheWinner(t *testing.T) {
	for name, left := range map[string]func(w *world){
		"released": func(w *world) {
			a := w.mount("a")
			a.start(patience)
			a.stop()
		},
		"none": func(w *world) { w.takeover(head{}, "a") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				left(w)
				b, c := w.mount("b"), w.mount("c")
				x := w.waiter(b)
				w.wait(x, head{"a", 1}, false, 0, 0)
				won, _ := w.takeover(head{"a", 1}, "c")
				time.AfterFunc(8*time.Second, func() { c.hold(won) })
				w.wait(x, won, true, 8*time.Second, 8*time.Second+LookEvery+2*PollEvery)
				if c.handed != 1 {
					t.Error("the winner did not hand over")
				}
			})
		})
	}
}

// A lease of one that yielded says nothing of who took over from it.
func TestYieldedByTheWriterBefore(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		w.wait(w.waiter(b), w.now(), true, 0, LookEvery+2*PollEvery)
		a.wantState(Yielded, false)
		a.kill()
		won, _ := w.takeover(w.now(), "c")
		w.wait(w.waiter(b), won, true, AnswerTimeout, AnswerTimeout+2*PollEvery)
	})
}

// A head that is older than the lease: read it again, do not take over on it.
func TestTheHeadIsOld(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		a.stop()
		b.start(patience)
		w.wait(w.waiter(w.mount("c")), head{"a", 1}, true, 0, 0)
	})
}

// A request that gets lost is made again, and its time counts from when it was there.
func TestRequestIsLost(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		a.kill()
		held := w.lease()
		w.failing(func(op memstore.Op) error {
			if op.Kind == "put" {
				return errDown
			}
			return nil
		})
		time.AfterFunc(10*time.Second, func() { w.failing(nil) })
		time.AfterFunc(12*time.Second, func() { // as a holder that read the lease before it
			if r := w.lease(); r.Request == nil {
				t.Error("nothing was asked")
			}
			if _, _, err := (object{w.store, rand.Reader}).write(t.Context(), held, w.etag()); err != nil {
				t.Error(err)
			}
		})
		time.AfterFunc(13*time.Second, func() {
			if r := w.lease(); r.Request == nil || r.Request.Party != b.self {
				t.Errorf("the request was not made again: %+v", r)
			}
		})
		w.wait(w.waiter(b), w.now(), true, 10*time.Second+AnswerTimeout, 10*time.Second+AnswerTimeout+2*PollEvery)
	})
}

func (w *world) etag() string {
	w.t.Helper()
	_, obj, err := w.store.Get(w.t.Context(), Key, objstore.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return obj.ETag
}

// A request that comes in the middle of the release does not keep it from being seen.
func TestReleaseIsRaced(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		a.keeper.Ending()
		a.kill()
		var raced atomic.Bool
		w.failing(func(op memstore.Op) error {
			if op.Kind == "get" && op.After && raced.CompareAndSwap(false, true) {
				r, etag := w.lease(), w.etag()
				r.Request = &Request{Party: b.self, Nonce: "n", Patience: patience}
				if _, _, err := (object{w.store, rand.Reader}).write(t.Context(), r, etag); err != nil {
					t.Error(err)
				}
			}
			return nil
		})
		a.keeper.Release(t.Context())
		if r := w.lease(); !raced.Load() || r.State != Released || r.Request == nil {
			t.Errorf("raced %v, the lease: %+v", raced.Load(), r)
		}
	})
}

// A stop at the very moment at which the hand-over was done: the lease says so.
func TestStopAsItYielded(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		a.takes = 10 * time.Second
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.wait(w.waiter(b), w.now(), true, 0, time.Minute)
		}()
		time.Sleep(LookEvery + time.Second)
		a.wantState(Yielding, false)
		w.failing(func(op memstore.Op) error { // the answer to the yielding does not get through
			if op.Kind == "put" {
				return errDown
			}
			return nil
		})
		time.Sleep(10 * time.Second)
		a.wantState(Yielded, false)
		w.failing(nil)
		a.stop()
		<-done
		if r := w.lease(); r.State != Released {
			t.Errorf("the lease: %+v", r)
		}
	})
}

// L5: a holder that was left behind releases nothing.
func TestReleaseOfTheOneLeftBehind(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		a.keeper.Ending()
		a.kill()
		won, _ := w.takeover(w.now(), "b")
		b.hold(won)
		synctest.Wait()
		a.keeper.Release(t.Context())
		a.wantState(Released, true)
		if r := w.lease(); r.Holder != b.self || r.State != Held {
			t.Errorf("the lease: %+v", r)
		}
	})
}

// A write whose answer was lost, or that was refused because it had happened, is known
// by its nonce; one that did not happen is not.
func TestWriteIsReadBack(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		o := object{w.store, rand.Reader}
		r := Record{State: Held, Holder: Party{Writer: "a"}, Epoch: 1}
		for _, kind := range []error{objstore.ErrUnavailable, objstore.ErrPrecondition} {
			lost := false
			w.failing(func(op memstore.Op) error {
				if op.Kind == "put" && op.After && !lost {
					lost = true
					return kind
				}
				return nil
			})
			etag := ""
			if kind == objstore.ErrPrecondition {
				etag = w.etag()
			}
			if _, got, err := o.write(t.Context(), r, etag); err != nil || got != w.etag() || !lost {
				t.Errorf("%v: ETag %q, %v", kind, got, err)
			}
		}
		w.failing(nil)
		if _, _, err := o.write(t.Context(), r, ""); !errors.Is(err, errTaken) {
			t.Errorf("a write in the place of another: %v", err)
		}
	})
}

// A holder whose first lease is raced by a waiter's request writes it at once, and
// answers.
func TestTheFirstLeaseIsRaced(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		won, _ := w.takeover(head{}, "a")
		var raced atomic.Bool
		w.failing(func(op memstore.Op) error {
			if op.Kind == "put" && !op.After && raced.CompareAndSwap(false, true) {
				r := Record{State: Held, Holder: Party{Writer: "a"}, Epoch: 1, Request: &Request{Party: b.self, Nonce: "n", Patience: patience}}
				if _, _, err := (object{w.store, rand.Reader}).write(t.Context(), r, ""); err != nil {
					t.Error(err)
				}
			}
			return nil
		})
		start := time.Now()
		a.hold(won)
		synctest.Wait()
		if r := w.lease(); time.Since(start) > 0 || r.Holder != a.self || r.Answer != "n" {
			t.Errorf("after %v: %+v", time.Since(start), r)
		}
	})
}
