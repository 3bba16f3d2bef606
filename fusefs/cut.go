package fusefs

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/superjournal"
)

const (
	quiescent       = "quiescent"
	crashConsistent = "crash-consistent"

	// cutGrace is how much longer than QuiesceTimeout a cut waits for a segment: a
	// quarter more, in which a hot journal is no reason to wait any longer.
	cutGrace = 4
	// cutPause lies between two tries when nothing is busy but writes came between.
	cutPause = time.Millisecond
)

// patience is what a cut still waits for.
type patience uint8

const (
	forAll      patience = iota // that no database and no segment is busy
	forSegments                 // that no segment is; SQLite rolls a hot journal back
	forNothing
)

// Cut freezes the whole directory at one instant and returns it as a View (S1).
// Everything written before the call is in it. Nothing is held while it waits for
// a moment when no database is busy; then mutations wait for about a millisecond.
//
// One view exists at a time: the next Cut waits for the Close of the last.
func (f *FS) Cut(ctx context.Context) (*View, error) { return f.fsys.cut(ctx) }

func (s *fsys) cut(ctx context.Context) (*View, error) {
	if err := s.views.acquire(ctx); err != nil {
		return nil, fmt.Errorf("cut: %w", err)
	}
	v, err := s.cutNow(ctx)
	if err != nil {
		s.views.yield()
		return nil, fmt.Errorf("cut: %w", err)
	}
	return v, nil
}

func (s *fsys) cutNow(ctx context.Context) (*View, error) {
	started := time.Now()
	limit, err := s.scratchLimit()
	if err != nil {
		return nil, err
	}
	s.gate.recent.Store(0)
	rec := s.views.record()
	defer s.views.endRecord(rec)
	if err := rec.walk(ctx); err != nil {
		return nil, err
	}
	for {
		still, until := s.patience(started)
		before, pushed, err := s.settle(ctx, still, until)
		if err != nil {
			return nil, err
		}
		still, _ = s.patience(started)
		if !before.at(still, before) || !s.busy.look().at(still, before) {
			if err := pause(ctx, cutPause); err != nil {
				return nil, err
			}
			continue
		}
		held := time.Now() // from here on mutations wait
		release := s.holdGate()
		now := s.busy.look()
		if !now.at(still, before) {
			release()
			continue
		}
		v, err := s.freeze(rec, limit, now.consistency(before, pushed, s.sync.failure(nil)))
		hold := time.Since(held)
		release()
		if err != nil {
			return nil, err
		}
		v.assemble(rec)
		if entries, err := superjournal.Undecide(v.entries, v.Open, s.log); err != nil {
			v.abandon(err)
		} else {
			v.entries = entries
		}
		s.views.note(held.Sub(started), hold)
		s.log.Debug("cut", "number", v.number, "consistency", v.consistency, "entries", len(v.entries),
			"waited", held.Sub(started), "held", hold, "hot", now.hot, "busy", now.busy)
		return v, nil
	}
}

// holdGate closes the gate and returns what opens it.
func (s *fsys) holdGate() (release func()) {
	if failpoint.Off("fusefs/gate") {
		return func() {}
	}
	s.gate.hold()
	return s.gate.release
}

// patience returns what a cut that began at started still waits for, and until when.
func (s *fsys) patience(started time.Time) (patience, time.Time) {
	timeout := s.opts.QuiesceTimeout
	first, second := started.Add(timeout), started.Add(timeout+timeout/cutGrace)
	switch now := time.Now(); {
	case now.Before(first):
		return forAll, first
	case now.Before(second):
		return forSegments, second
	}
	return forNothing, second
}

// settle pushes, waits for rest, and pushes again. It returns how things were
// before the second push. A cut is good if nothing changed since: every file was
// then clean at some instant of that push, and the backing directory is what an
// application saw at its begin.
func (s *fsys) settle(ctx context.Context, still patience, until time.Time) (before rest, pushed syscall.Errno, err error) {
	if errno := s.push.all(); errno != 0 {
		pushed = errno
	}
	for {
		before = s.busy.look()
		if before.quiet(still) || !time.Now().Before(until) {
			break
		}
		if err := waitFor(ctx, before.relaxed, until); err != nil {
			return before, pushed, err
		}
	}
	if err := failpoint.Hit("fusefs/freeze"); err != nil {
		return before, pushed, err
	}
	if failpoint.Off("fusefs/second-push") {
		return before, pushed, nil
	}
	if errno := s.push.all(); errno != 0 {
		pushed = errno
	}
	return before, pushed, nil
}

// quiet reports whether there is nothing left to wait for.
func (r rest) quiet(still patience) bool {
	if failpoint.Off("fusefs/wait-for-quiet") {
		return true
	}
	switch still {
	case forAll:
		return r.hot == 0 && r.busy == 0
	case forSegments:
		return r.busy == 0
	}
	return true
}

// at reports whether this is a moment to cut, given how it was before the last push.
func (r rest) at(still patience, before rest) bool {
	return r.quiet(still) && (still == forNothing || r.changes == before.changes || failpoint.Off("fusefs/no-write-between"))
}

// consistency says what a view cut now is worth. pushed and failed are errors of
// the last push and of earlier writes: what an application wrote is not all here.
func (r rest) consistency(before rest, pushed, failed syscall.Errno) string {
	if r.busy > 0 || r.torn > 0 || r.changes != before.changes || pushed != 0 || failed != 0 {
		return crashConsistent
	}
	return quiescent
}

// waitFor waits for a channel, a time or the end of ctx, which alone is an error.
func waitFor(ctx context.Context, c <-chan struct{}, until time.Time) error {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-c:
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error { return waitFor(ctx, nil, time.Now().Add(d)) }
