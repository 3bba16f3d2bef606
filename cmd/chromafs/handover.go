package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/control"
	"github.com/chromafs/chromafs/internal/lease"
	"github.com/chromafs/chromafs/internal/reconcile"
	"github.com/chromafs/chromafs/uploader"
)

// releaseTimeout bounds what the release of the lease may add to an end: it only
// spares others a wait.
const releaseTimeout = 5 * time.Second

// handover is a session's part in the hand-over of DESIGN §8: it asks the holder
// before it takes the store over, and is asked once it has.
//
// Its times are spans of the monotonic clock, so it has time.Now and not the clock
// that everything else is given.
type handover struct {
	session *session
	waiter  *lease.Waiter
	keeper  *lease.Keeper
	serving chan struct{} // closed when the mount answers
	stop    context.CancelFunc
	ended   chan struct{} // closed when the keeper has stopped
}

// newHandover starts the keeper, which has nothing to keep before a takeover.
func newHandover(s *session) *handover {
	host, err := os.Hostname()
	if err != nil {
		s.env.log.Debug("the lease goes without the name of this machine", keyError, err)
	}
	state := s.local.journal.State()
	self := lease.Party{Writer: state.Writer, Dir: state.JournalID, Host: host}
	look, answer := leaseTimes(s.env.getenv)
	h := &handover{session: s, serving: make(chan struct{}), ended: make(chan struct{})}
	h.waiter = lease.NewWaiter(lease.WaiterOptions{Store: s.catalog.Store(), Self: self, Patience: s.options.handoffTimeout,
		AnswerTimeout: answer, Now: time.Now, Rand: rand.Reader, Log: s.env.log})
	h.keeper = lease.NewKeeper(lease.KeeperOptions{Store: s.catalog.Store(), Self: self, Writer: writer{h},
		LookEvery: look, Now: time.Now, Rand: rand.Reader, Log: s.env.log})
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	go func() {
		defer close(h.ended)
		h.keeper.Run(ctx)
	}()
	return h
}

// join makes a reconciliation ask before it takes over.
func (h *handover) join(e *reconcile.Env) {
	e.HandOver = func(ctx context.Context, head history.Head) (bool, error) {
		if err := h.session.known.ready(ctx); err != nil {
			return false, nil // the takeover will say so, and knows what to do about it
		}
		return h.waiter.Wait(ctx, head.Writer, head.Epoch)
	}
	e.Takeover = func(ctx context.Context, head history.Head, etag string) (history.Head, error) {
		h.session.uploader.KnowCurrent(h.current(head))
		return h.session.uploader.Takeover(ctx, head, etag)
	}
}

// current returns the snapshot that `current` is known to follow before a takeover:
// what the holder wrote down, or, where that was a process of this very DIR, what
// its journal says.
func (h *handover) current(head history.Head) history.ID {
	if head.Newest == nil {
		return ""
	}
	newest, last, state := head.Newest.ID, h.waiter.Last(), h.session.local.journal.State()
	ours := last.Holder.Dir == state.JournalID && last.Epoch == head.Epoch && last.Holder.Writer == head.Writer
	if last.Current == string(newest) || ours && state.ID == string(newest) && !slices.Contains(state.Pending, string(newest)) {
		return newest
	}
	return ""
}

// tookOver is told of every takeover of the session's uploader.
func (h *handover) tookOver(head history.Head) { h.keeper.Took(head.Epoch) }

// close ends the keeper and releases the lease, so that nobody waits for this process.
func (h *handover) close() {
	h.keeper.Ending()
	h.stop()
	<-h.ended
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	h.keeper.Release(ctx)
}

// status describes the lease for people; nil before a takeover.
func (h *handover) status() *control.Lease {
	s := h.keeper.Status()
	if s.Epoch == 0 {
		return nil
	}
	l := &control.Lease{State: string(s.State), Epoch: s.Epoch, Since: s.Since}
	if s.Lost {
		l.State = "lost"
	}
	if s.Holder.Writer != "" {
		l.Holder = s.Holder.String()
	}
	if s.Request.Writer != "" {
		l.Waiter = s.Request.String()
	}
	return l
}

// writer is the session's uploader as the keeper of its lease sees it.
type writer struct{ h *handover }

// HandOver implements lease.Writer. A mount that is still starting up is waited for:
// before that there is no cut to be had.
func (w writer) HandOver(ctx context.Context) error {
	select {
	case <-w.h.serving:
	case <-ctx.Done():
		return fmt.Errorf("hand the store over: the mount does not answer yet: %w", context.Cause(ctx))
	}
	if _, err := w.h.session.uploader.Snapshot(ctx); err != nil {
		return lost(err)
	}
	return lost(w.h.session.uploader.Yield(ctx))
}

// Reclaim implements lease.Writer.
func (w writer) Reclaim(ctx context.Context) (uint64, error) {
	epoch, err := w.h.session.uploader.Reclaim(ctx)
	return epoch, lost(err)
}

// Check implements lease.Writer.
func (w writer) Check(ctx context.Context) error { return lost(w.h.session.uploader.CheckWriter(ctx)) }

// Current implements lease.Writer.
func (w writer) Current() string { return string(w.h.session.uploader.Current()) }

// lost makes an uploader's error that of package lease where it is final.
func lost(err error) error {
	if errors.Is(err, uploader.ErrFenced) {
		return fmt.Errorf("%w: %w", lease.ErrLost, err)
	}
	return err
}
