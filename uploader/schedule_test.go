package uploader

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/objstore/retry"
)

// run starts Run in a bubble whose clock only moves while everyone waits. cuts
// returns when cuts were taken, since the start.
func run(t *testing.T, w *world) (cuts func() []time.Duration) {
	t.Helper()
	start := time.Now()
	var mu sync.Mutex
	var at []time.Duration
	w.onCut = func() {
		mu.Lock()
		defer mu.Unlock()
		at = append(at, time.Since(start))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.u.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func() []time.Duration {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return at
	}
}

func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.settle = 30 * time.Second
		w.open().takeover()
		f(t, w)
	})
}

// expect fails unless the cuts are where they should be, give or take one look.
func expect(t *testing.T, got []time.Duration, want ...time.Duration) {
	t.Helper()
	ok := len(got) == len(want)
	for i := range got {
		ok = ok && got[i] >= want[i] && got[i] <= want[i]+maxLook
	}
	if !ok {
		t.Errorf("cuts at %v, want %v", got, want)
	}
}

func TestRunTakesNothingWhereNothingIsDirty(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		cuts := run(t, w)
		asked := 0
		w.store.Fail = func(memstore.Op) error { asked++; return nil }
		time.Sleep(24 * time.Hour)
		expect(t, cuts())
		if asked > 0 {
			t.Errorf("%d requests", asked)
		}
	})
}

func TestRunWaitsForAQuietMoment(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		cuts := run(t, w)
		time.Sleep(8 * time.Hour) // an idle night
		for i := range 90 {       // an upload of 90 s
			w.write("a", fmt.Append(nil, i))
			time.Sleep(time.Second)
		}
		end := 8*time.Hour + 89*time.Second
		time.Sleep(time.Minute)
		expect(t, cuts(), end+30*time.Second)
		w.write("b", nil) // in the same hour: it waits for the interval
		time.Sleep(2 * time.Hour)
		expect(t, cuts(), end+30*time.Second, end+30*time.Second+time.Hour)
	})
}

func TestRunWaitsNoLongerThanATenthOfTheInterval(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		cuts := run(t, w)
		for range 2 * 360 {
			w.write("a", fmt.Append(nil, time.Now()))
			time.Sleep(10 * time.Second)
		}
		first := 6 * time.Minute
		expect(t, cuts(), first, first+66*time.Minute)
	})
}

func TestSettleIsATenthOfTheIntervalAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.interval, w.settle = 10*time.Second, 30*time.Second
		w.open().takeover()
		w.write("a", nil)
		cuts := run(t, w)
		time.Sleep(5 * time.Second)
		expect(t, cuts(), time.Second)
	})
}

// What a dead process left dirty is due at once; what `snapshot` published is not due again.
func TestSnapshotOnRequestMovesTheNextOne(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.write("a", []byte("1"))
		time.Sleep(time.Minute)
		cuts := run(t, w)
		expect(t, cuts(), 0)
		w.write("a", []byte("2"))
		time.Sleep(30 * time.Minute)
		if due := w.u.Status().NextDue; !due.Equal(time.Now().Add(30 * time.Minute)) {
			t.Errorf("due at %v", due)
		}
		w.snapshot()
		w.write("a", []byte("3"))
		time.Sleep(2 * time.Hour)
		expect(t, cuts(), 0, 30*time.Minute, 90*time.Minute)
	})
}

// F4: the store being down stops nothing; it is tried again for ever, and told.
func TestRunGoesOnWhileTheStoreIsDown(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var mu sync.Mutex
		tries, down := 0, true
		w.store.Fail = func(op memstore.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if !down {
				return nil
			}
			tries++
			return objstore.ErrUnavailable
		}
		w.write("a", []byte("a"))
		cuts := run(t, w)
		time.Sleep(24 * time.Hour)
		expect(t, cuts())
		s := w.u.Status()
		if s.LastError == "" || s.FailingSince.IsZero() || s.Failures < 100 || s.DirtySince.IsZero() || s.DirtyPaths != 1 {
			t.Errorf("status %+v", s)
		}
		mu.Lock()
		// Five minutes between two tries at most, half of that at least.
		if day := int(24 * time.Hour / maxBackoff); tries < day || tries > 2*day+20 {
			t.Errorf("%d tries in a day", tries)
		}
		down = false
		mu.Unlock()
		time.Sleep(maxBackoff)
		if got := cuts(); len(got) != 1 {
			t.Errorf("cuts %v", got)
		}
		if s := w.u.Status(); s.LastError != "" || !s.FailingSince.IsZero() || s.Last == nil || s.DirtyPaths != 0 {
			t.Errorf("status %+v", s)
		}
		if w.log.count("snapshot failed") != tries {
			t.Errorf("%d failures logged, of %d", w.log.count("snapshot failed"), tries)
		}
	})
}

func TestOptionsAreChecked(t *testing.T) {
	w := newWorld(t).open()
	good := w.u.o
	for name, spoil := range map[string]func(*Options){
		"no cut":   func(o *Options) { o.Cut = nil },
		"no log":   func(o *Options) { o.Log = nil },
		"interval": func(o *Options) { o.Interval = -1 },
		"settle":   func(o *Options) { o.Settle = -1 },
		"keep":     func(o *Options) { o.Keep = 0 },
		"parallel": func(o *Options) { o.Parallel = -1 },
	} {
		o := good
		spoil(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// F4: while a request of an attempt is repeated, Status says that the store does not
// answer, and no longer than that.
func TestStatusTellsOfTroubleWhileItLasts(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	w.now = func() time.Time { return now }
	var during, between Status
	failures := 0
	w.over = retry.New(retry.Options{Policy: retry.Policy{Time: time.Minute, Attempts: 9, First: 5 * time.Second, Most: 5 * time.Second},
		Now: w.now, Wait: func(context.Context, time.Duration) error {
			between = w.u.Status()
			now = now.Add(3 * time.Second)
			during = w.u.Status()
			return nil
		}}).Over(w.store)
	w.open().takeover()
	w.write("a", []byte("a"))
	w.store.Fail = func(op memstore.Op) error {
		if op.Kind == "put" && strings.HasPrefix(op.Key, "history/") && failures < 1 {
			failures++
			return errInjected
		}
		return nil
	}
	w.snapshot()
	if !between.FailingSince.IsZero() || during.FailingSince.IsZero() || !strings.Contains(during.LastError, errInjected.Error()) {
		t.Errorf("at once %+v, after 3 s %+v", between, during)
	}
	if s := w.u.Status(); !s.FailingSince.IsZero() || s.LastError != "" {
		t.Errorf("afterwards %+v", s)
	}
}
