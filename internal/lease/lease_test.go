package lease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

const patience = 90 * time.Second

// A key that is not the one that history knows would make every bucket a foreign one (R4).
func TestTheKeyIsThatOfTheLayout(t *testing.T) {
	if Key != history.LeaseKey {
		t.Errorf("%q, and history calls it %q", Key, history.LeaseKey)
	}
}

// The hand-over as it should be: asked, answered, a final snapshot, yielded, taken over.
// The holder serves on, and stays away from the lease of its successor (L5).
func TestHandOver(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		within(t, "the first mount", a.start(patience), 0, 0)
		a.takes = 30 * time.Second
		time.Sleep(time.Minute)
		within(t, "the hand-over", b.start(patience), 30*time.Second, 30*time.Second+LookEvery+2*PollEvery)
		if a.handed != 1 {
			t.Errorf("a yielded %d times", a.handed)
		}
		a.wantState(Yielded, false)
		time.Sleep(2*LookEvery + time.Second)
		a.wantState(Yielded, true)
		if s := a.keeper.Status(); s.Holder != b.self || s.Request != b.self {
			t.Errorf("a knows of its successor: %+v", s)
		}
		b.wantState(Held, false)
		a.stop()
		if r := w.lease(); r.Holder != b.self || r.State != Held || r.Epoch != 2 || r.Request != nil || r.Current != "current-b" {
			t.Errorf("the lease: %+v", r)
		}
		b.stop()
		if r := w.lease(); r.State != Released || r.Epoch != 2 {
			t.Errorf("the lease: %+v", r)
		}
		w.wantLogged("another mount holds the store", "the holder has answered", "the holder has yielded", "still waiting for the holder", "serves on")
	})
}

// L4: one conditional GET per LookEvery, and no write, while nobody asks.
func TestNobodyAsks(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a := w.mount("a")
		a.start(patience)
		synctest.Wait()
		w.requests()
		unconditional := 0
		w.failing(func(op memstore.Op) error { // a full answer has an effect, "not modified" is an error before that
			if op.Kind == "get" && op.After {
				unconditional++
			}
			return nil
		})
		const looks = 100
		time.Sleep(looks*LookEvery + time.Second)
		if gets, puts := w.requests(); gets > looks || gets < looks-1 || puts != 0 || unconditional != 0 {
			t.Errorf("%d GETs (%d of them whole), %d PUTs in %v", gets, unconditional, puts, looks*LookEvery)
		}
	})
}

// A dead holder is found by the waiter's own clock.
func TestDeadHolder(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		synctest.Wait()
		a.kill()
		within(t, "waiting for a dead holder", b.start(patience), AnswerTimeout, AnswerTimeout+2*PollEvery)
		w.wantLogged("taken for dead")
		c := w.mount("c") // --handoff-timeout bounds that too
		synctest.Wait()
		b.kill()
		within(t, "waiting impatiently", c.start(3*time.Second), 3*time.Second, 3*time.Second+2*PollEvery)
		d := w.mount("d")
		within(t, "not waiting", d.start(0), 0, 0)
	})
}

// One that answers and does not get done is waited for as long as the patience lasts.
// It stays what it is and finds out that it was left behind.
func TestSlowHolder(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		a.takes = time.Hour
		within(t, "waiting for a slow holder", b.start(patience), patience, patience+2*PollEvery)
		w.wantLogged("did not yield in time")
		time.Sleep(2 * patience)
		a.wantState(Held, true)
		b.wantState(Held, false)
		if a.handed != 0 {
			t.Error("it yielded after all")
		}
	})
}

// F4: a final snapshot that fails is tried again; one that never works ends nothing.
func TestTheFinalSnapshotFails(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		a.refuses = errDown
		time.AfterFunc(20*time.Second, func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.refuses = nil
		})
		within(t, "the hand-over", b.start(patience), 20*time.Second, 20*time.Second+maxRetry+LookEvery)
		w.wantLogged("the final snapshot before the hand-over failed")

		b.refuses = errDown
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if _, err := w.mount("c").tryStart(ctx, patience, func() {}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an interrupted waiter: %v", err)
		}
		time.Sleep(2 * patience)
		b.wantState(Held, false)
		if r := w.lease(); r.State != Held || r.Holder != b.self {
			t.Errorf("the lease: %+v", r)
		}
	})
}

// L6: a waiter that asked and is never seen again does not end the backups.
func TestVanishedWaiter(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		a.takes = 10 * time.Second
		ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		defer cancel()
		if _, err := b.tryStart(ctx, patience, func() {}); err == nil {
			t.Fatal("it did not vanish")
		}
		time.Sleep(20 * time.Second)
		a.wantState(Yielded, false)
		time.Sleep(2 * patience)
		a.wantState(Held, false)
		if a.reclaims != 1 || w.now() != (head{"a", 2}) {
			t.Errorf("reclaimed %d times; the head is of %+v", a.reclaims, w.now())
		}
		if r := w.lease(); r.State != Held || r.Epoch != 2 || r.Request != nil {
			t.Errorf("the lease: %+v", r)
		}
		w.wantLogged("has taken it back")
		// Another waiter is served as ever.
		c := w.mount("c")
		within(t, "the next hand-over", c.start(patience), 10*time.Second, 10*time.Second+LookEvery+2*PollEvery)
	})
}

// L6: a waiter that comes late, after the holder took the store back, loses at its own
// takeover and asks again.
func TestLateWaiter(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		late := true
		_, err := b.tryStart(context.Background(), patience, func() {
			if late { // SIGSTOP, between having seen it yield and the takeover
				late = false
				time.Sleep(3 * patience)
			}
		})
		if err != nil || a.reclaims != 1 || a.handed != 2 || w.now() != (head{"b", 3}) {
			t.Errorf("%v; reclaimed %d times, handed over %d times; the head is of %+v", err, a.reclaims, a.handed, w.now())
		}
		time.Sleep(2*LookEvery + time.Second)
		a.wantState(Yielded, true)
	})
}

// Several waiters at once: one after the other gets the store, nobody hangs, and the
// holders are left behind in order.
func TestManyWaiters(t *testing.T) {
	for name, dead := range map[string]bool{"of a live holder": false, "of a dead holder": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				a := w.mount("a")
				a.start(patience)
				a.takes = 20 * time.Second
				synctest.Wait()
				if dead {
					a.kill()
				}
				var all sync.WaitGroup
				var waiters []*mount
				for i := range 4 {
					b := w.mount(fmt.Sprint("b", i))
					waiters = append(waiters, b)
					all.Go(func() {
						time.Sleep(time.Duration(i) * 3 * time.Second)
						waited, err := b.tryStart(context.Background(), patience, func() {})
						if err != nil {
							t.Error(err)
						}
						within(t, b.self.Writer, waited, 0, patience)
					})
				}
				all.Wait()
				time.Sleep(2*LookEvery + time.Second)
				if w.now().epoch != 5 {
					t.Errorf("the head is of %+v", w.now())
				}
				for _, b := range waiters {
					last := b.self.Writer == w.now().writer
					if s := b.keeper.Status(); s.Lost == last || last != (s.State == Held) {
						t.Errorf("%s is %+v", b.self.Writer, s)
					}
				}
			})
		})
	}
}

// A clean stop releases the store: nobody waits, whoever is waiting goes on at once.
func TestReleased(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b, c := w.mount("a"), w.mount("b"), w.mount("c")
		a.start(patience)
		synctest.Wait()
		a.stop()
		within(t, "after a clean stop", b.start(patience), 0, 0)
		synctest.Wait()
		// The platform stops the old one as it starts the new one: the old one's end
		// is the hand-over, and takes its time.
		b.keeper.Ending()
		time.AfterFunc(40*time.Second, b.stop)
		within(t, "beside a clean stop", c.start(patience), 40*time.Second, 40*time.Second+2*PollEvery)
		if b.handed != 0 {
			t.Error("it yielded although it was about to end")
		}
	})
}

// A stop in the middle of a hand-over.
func TestStopWhileYielding(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		a.takes = time.Hour
		time.AfterFunc(20*time.Second, a.stop)
		within(t, "the wait", b.start(patience), 20*time.Second, 20*time.Second+2*PollEvery)
		if a.handed != 0 {
			t.Error("it yielded, so its final flush went to a branch")
		}
	})
}

// L7: the same DIR again waits for nothing, whatever its last process left behind.
func TestSameDir(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, again := w.mount("a"), w.mount("a2")
		again.self.Dir = a.self.Dir
		a.start(patience)
		synctest.Wait()
		a.kill()
		within(t, "the restart", again.start(patience), 0, 0)
		copied := w.mount("copy") // a copied DIR has another id
		synctest.Wait()
		again.kill()
		within(t, "a copy", copied.start(patience), AnswerTimeout, AnswerTimeout+2*PollEvery)
	})
}

// L1: what cannot be understood counts as no lease. It keeps nobody from mounting, and
// the next holder writes it anew.
func TestDamagedLease(t *testing.T) {
	for name, text := range map[string]string{
		"empty":          "",
		"not JSON":       "<html>404</html>",
		"newer":          `{"format": 2, "nonce": "x", "state": "held", "epoch": 1, "holder": {"writer": "x"}}`,
		"no holder":      `{"format": 1, "nonce": "x", "state": "held", "epoch": 1}`,
		"unknown state":  `{"format": 1, "nonce": "x", "state": "burning", "epoch": 1, "holder": {"writer": "x"}}`,
		"huge":           strings.Repeat(" ", maxBytes) + "{}",
		"long name":      `{"format": 1, "nonce": "x", "state": "held", "epoch": 1, "holder": {"writer": "` + strings.Repeat("x", maxName+1) + `"}}`,
		"negative times": `{"format": 1, "nonce": "x", "state": "held", "epoch": 1, "holder": {"writer": "x"}, "request": {"writer": "y", "nonce": "z", "patience_ns": -1}}`,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.putLease(text)
				a, b := w.mount("a"), w.mount("b")
				within(t, "the mount", a.start(patience), 0, 0)
				synctest.Wait()
				w.wantLogged("level=WARN", "does not count")
				if r := w.lease(); r.Holder != a.self {
					t.Errorf("the lease: %+v", r)
				}
				w.putLease(text) // and under its holder
				time.Sleep(LookEvery + time.Second)
				if r := w.lease(); r.Holder != a.self || r.State != Held {
					t.Errorf("the lease: %+v", r)
				}
				within(t, "the hand-over", b.start(patience), 0, LookEvery+2*PollEvery)
			})
		})
	}
}

// L5, L1: a lease that claims another holder is believed only as far as the head says so.
func TestForgedLease(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a := w.mount("a")
		a.start(patience)
		synctest.Wait()
		w.putLease(`{"format": 1, "nonce": "x", "state": "held", "epoch": 9, "holder": {"writer": "x"}}`)
		time.Sleep(LookEvery + time.Second)
		a.wantState(Held, false)
		if r := w.lease(); r.Holder != a.self || r.Epoch != 1 {
			t.Errorf("the lease: %+v", r)
		}
		// A waiter does not go by it either, nor round in circles.
		w.putLease(`{"format": 1, "nonce": "x", "state": "held", "epoch": 9, "holder": {"writer": "x"}}`)
		b := w.mount("b")
		within(t, "the mount", b.start(patience), 0, AnswerTimeout)
	})
}

// A head that another took over without a word (a command, or one that has not come to
// writing its lease): whoever reads the older lease asks, and waits for an answer.
func TestLeaseOfTheWriterBefore(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		synctest.Wait()
		w.takeover(w.now(), "command")
		time.Sleep(LookEvery)
		a.wantState(Held, false) // nothing told it yet
		within(t, "the mount", b.start(patience), AnswerTimeout, AnswerTimeout+2*PollEvery)
		time.Sleep(LookEvery)
		a.wantState(Held, true)
		if r := w.lease(); r.Holder != b.self || r.Epoch != 3 {
			t.Errorf("the lease: %+v", r)
		}
	})
}

// A holder that is asked and finds itself fenced keeps nobody waiting.
func TestFencedHolderIsAsked(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		synctest.Wait()
		seen := w.now()
		time.AfterFunc(time.Second, func() { w.takeover(seen, "command") })
		waiter := NewWaiter(WaiterOptions{Store: w.store, Self: b.self, Patience: patience, Now: time.Now, Rand: rand.Reader, Log: w.logger("b")})
		start := time.Now()
		if waited, err := waiter.Wait(t.Context(), seen.writer, seen.epoch); err != nil || !waited {
			t.Fatalf("waited %v, %v", waited, err)
		}
		within(t, "the wait", time.Since(start), 0, LookEvery+2*PollEvery)
		if r := w.lease(); r.State != Released || r.Holder != a.self {
			t.Errorf("the lease: %+v", r)
		}
		a.wantState(Released, true)
	})
}

// Every answer of the store that is lost, after the effect or before it, one by one:
// the hand-over comes about all the same.
func TestLostAnswers(t *testing.T) {
	for _, after := range []bool{false, true} {
		for _, kind := range []string{"get", "put"} {
			for n := range 6 {
				bubble(t, func(t *testing.T, w *world) {
					a, b := w.mount("a"), w.mount("b")
					var seen atomic.Int32
					w.failing(func(op memstore.Op) error {
						if op.Kind == kind && op.After == after {
							if seen.Add(1) == int32(n)+1 {
								return errDown
							}
						}
						return nil
					})
					a.start(patience)
					time.Sleep(LookEvery + time.Second)
					within(t, "the hand-over", b.start(patience), 0, AnswerTimeout)
					if a.handed != 1 {
						t.Errorf("%s %d, after its effect %v: it was no hand-over", kind, n, after)
					}
				})
			}
		}
	}
}

// F4: while the store is down nobody fails, and the waiter's times decide.
func TestStoreDown(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.start(patience)
		synctest.Wait()
		w.failing(func(memstore.Op) error { return errDown })
		within(t, "the mount", b.start(patience), AnswerTimeout, AnswerTimeout+2*PollEvery)
		time.Sleep(time.Minute)
		w.failing(nil)
		time.Sleep(2*LookEvery + time.Second)
		a.wantState(Held, true)
		b.wantState(Held, false)
		if r := w.lease(); r.Holder != b.self {
			t.Errorf("the lease: %+v", r)
		}
		if n := strings.Count(w.log.String(), "trouble with the lease"); n != 3 { // a's, b's while it waited, b's as the holder
			t.Errorf("trouble was logged %d times", n)
		}
	})
}

// A key that may not read the lease: no wait, no error.
func TestRefused(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.failing(func(memstore.Op) error { return objstore.ErrRefused })
		a := w.mount("a")
		within(t, "the mount", a.start(patience), 0, 0)
		w.failing(nil)
		time.Sleep(LookEvery + time.Second)
		if r := w.lease(); r.Holder != a.self {
			t.Errorf("the lease: %+v", r)
		}
	})
}

// A store without conditional writes is written without.
func TestStoreWithoutConditions(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		store := unconditional{w.store}
		a, b := w.mount("a"), w.mount("b")
		a.store, b.store = store, store
		a.start(patience)
		time.Sleep(time.Minute)
		within(t, "the hand-over", b.start(patience), 0, LookEvery+2*PollEvery)
		if a.handed != 1 {
			t.Error("it was no hand-over")
		}
	})
}

type unconditional struct{ *memstore.Store }

func (u unconditional) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o objstore.PutOptions) (objstore.Object, error) {
	if o.IfMatch != "" || o.IfAbsent {
		return objstore.Object{}, objstore.ErrUnsupported
	}
	return u.Store.Put(ctx, key, body, size, o)
}

// L3: clocks that are two days apart change nothing, and no time gets into the lease.
func TestClocksDoNotMatter(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		a, b := w.mount("a"), w.mount("b")
		a.now = func() time.Time { return time.Now().Add(24 * time.Hour) }
		b.now = func() time.Time { return time.Now().Add(-24 * time.Hour) }
		a.start(patience)
		a.takes = 20 * time.Second
		time.Sleep(time.Hour)
		within(t, "the hand-over", b.start(patience), 20*time.Second, 20*time.Second+LookEvery+2*PollEvery)
	})
	for _, typ := range []reflect.Type{reflect.TypeFor[Record](), reflect.TypeFor[Request](), reflect.TypeFor[Party]()} {
		for i := range typ.NumField() {
			if typ.Field(i).Type == reflect.TypeFor[time.Time]() {
				t.Errorf("%v.%s is a time", typ, typ.Field(i).Name)
			}
		}
	}
}
