package uploader

import (
	"context"
	"errors"
	"testing"
	"time"
)

// S1: a caller that comes before the cut shares it; one that comes later does not.
func TestCallersShareTheCutToCome(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("1"))
	entered, release := make(chan struct{}), make(chan struct{})
	w.onCut = func() { entered <- struct{}{}; <-release }
	results := make(chan Result, 4)
	call := func() {
		r, err := w.u.Snapshot(t.Context())
		if err != nil {
			t.Error(err)
		}
		results <- r
	}
	go call()
	<-entered // its cut is taken
	w.write("a", []byte("2"))
	for range 3 {
		go call()
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		w.u.mu.Lock()
		joined := w.u.joinable != nil
		w.u.mu.Unlock()
		if joined {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody waits for the next cut")
		}
	}
	release <- struct{}{}
	first := <-results
	if got := w.filesOf(first.ID)["a"]; got != "1" {
		t.Errorf("the first holds %q", got)
	}
	go func() { // a caller that was late for the second cut is a third
		for range entered {
			release <- struct{}{}
		}
	}()
	defer close(entered)
	for range 3 {
		if r := <-results; r.Sequence < 2 || w.filesOf(r.ID)["a"] != "2" {
			t.Errorf("a later caller got %+v", r)
		}
	}
	if w.head().Sequence != 2 {
		t.Errorf("sequence %d", w.head().Sequence)
	}
}

// A caller that gives up does not fail those that joined it.
func TestLeaderGivesUp(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("a"))
	w.u.turn <- struct{}{} // somebody else's
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := w.u.Snapshot(ctx)
		failed <- err
	}()
	waitFor(t, func() bool { w.u.mu.Lock(); defer w.u.mu.Unlock(); return w.u.joinable != nil })
	done := make(chan Result)
	go func() {
		r, err := w.u.Snapshot(t.Context())
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that gave up: %v", err)
	}
	<-w.u.turn
	if r := <-done; r.Sequence != 1 {
		t.Errorf("%+v", r)
	}
	if s := w.u.Status(); s.LastError != "" || s.Failures != 0 {
		t.Errorf("status %+v", s)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited 10 s")
		}
	}
}
