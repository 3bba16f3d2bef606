package lease

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
)

// Defaults of the protocol's times. A holder has to look more often than a waiter
// takes it for dead, with room for slow requests.
const (
	LookEvery     = 5 * time.Second        // between two looks of a holder
	AnswerTimeout = 15 * time.Second       // without an answer the holder is dead
	PollEvery     = 250 * time.Millisecond // between two looks of a waiter
	tellEvery     = 10 * time.Second       // between two lines of a waiter that tell how it stands
)

// WaiterOptions are what NewWaiter needs. Times that are 0 are the defaults.
type WaiterOptions struct {
	Store         objstore.Store
	Self          Party
	Patience      time.Duration // how long to wait for one holder at most; 0: not at all
	AnswerTimeout time.Duration
	PollEvery     time.Duration
	Now           func() time.Time // with a monotonic reading
	Rand          io.Reader
	Log           *slog.Logger
}

// Waiter asks holders to yield. It is used by one goroutine.
type Waiter struct {
	o      WaiterOptions
	object object
	again  bool // Wait was called before
	last   Record
}

// NewWaiter returns a waiter.
func NewWaiter(o WaiterOptions) *Waiter {
	if o.AnswerTimeout == 0 {
		o.AnswerTimeout = AnswerTimeout
	}
	if o.PollEvery == 0 {
		o.PollEvery = PollEvery
	}
	return &Waiter{o: o, object: object{o.Store, o.Rand}}
}

// Last returns the lease as Wait saw it last; the zero Record where there was none.
func (w *Waiter) Last() Record { return w.last }

// Wait returns when nothing speaks against taking over from the writer that the
// store's head names (writer "" and epoch 0 for none), and whether it has waited: then
// the head may be another by now, and who finds another holder in it calls again.
// It fails only when ctx ends (L1).
func (w *Waiter) Wait(ctx context.Context, writer string, epoch uint64) (waited bool, err error) {
	now := w.o.Now()
	a := &asking{w: w, writer: writer, epoch: epoch, first: !w.again, start: now, asked: now, told: now}
	w.again = true
	if w.o.Patience <= 0 {
		return false, nil
	}
	for n := 0; ; n++ {
		over, err := a.look(ctx)
		if ctx.Err() != nil {
			return true, context.Cause(ctx)
		}
		if over || err != nil {
			return n > 0 || a.w.last.Epoch > epoch, err
		}
		select {
		case <-ctx.Done():
			return true, context.Cause(ctx)
		case <-time.After(w.o.PollEvery):
		}
	}
}

// asking is one wait for one holder.
type asking struct {
	w      *Waiter
	writer string // of the head
	epoch  uint64
	first  bool // nobody was waited for before: a lease older than the head is as it was left

	start   time.Time
	asked   time.Time // when the request was written; start before that
	nonce   string    // of the request; "" before that
	etag    string    // of the lease as last read
	heard   bool      // the holder has answered
	told    time.Time
	trouble bool // trouble with the store was logged
}

// look reads the lease, asks if that is still to be done, and reports whether the
// wait is over.
func (a *asking) look(ctx context.Context) (over bool, err error) {
	r, etag, err := a.w.object.read(ctx, a.etag)
	switch {
	case errors.Is(err, objstore.ErrNotModified):
		return a.overdue(), nil
	case errors.Is(err, errUnreadable):
		a.w.o.Log.Warn("the lease of the store does not count", "error", err)
		r = Record{}
	case errors.Is(err, objstore.ErrNotFound):
		r = Record{}
	case errors.Is(err, objstore.ErrUnavailable):
		a.tellTrouble(err)
		return a.overdue(), nil
	case ctx.Err() != nil:
		return false, nil
	case err != nil:
		a.w.o.Log.Warn("the lease of the store cannot be read: taking over without asking", "error", err)
		return true, nil
	}
	a.etag, a.w.last = etag, r
	if over, why := a.free(r); over {
		a.tellFree(r, why)
		return true, nil
	}
	if a.nonce == "" || r.Request == nil {
		a.ask(ctx, r, etag)
		return a.overdue(), nil
	}
	if r.answered() && !a.heard {
		a.heard = true
		a.w.o.Log.Info("the holder has answered and takes its final snapshot; waiting for it",
			"holder", r.Holder.String(), "at_most", a.left())
	}
	return a.overdue(), nil
}

// free reports whether a lease leaves nobody to wait for.
func (a *asking) free(r Record) (is bool, why string) {
	none := r.Holder.Writer == ""
	current := r.Epoch == a.epoch && r.Holder.Writer == a.writer
	switch {
	case r.Epoch > a.epoch:
		return true, "the store was taken over by another mount meanwhile"
	case none && a.first:
		return true, "nobody holds the store"
	case !current && !a.first:
		return false, "" // who took over is about to write it
	case r.State == Released:
		return true, "the last holder has released the store"
	case r.Holder.Dir != "" && r.Holder.Dir == a.w.o.Self.Dir:
		return true, "the last holder was this very directory"
	case current && r.State == Yielded:
		return true, "the holder has yielded"
	}
	return false, ""
}

// ask writes the request. Where the lease is not of the writer that the head names,
// it is made so: the one before has no say any more.
func (a *asking) ask(ctx context.Context, r Record, etag string) {
	nonce, err := a.w.object.nonce()
	if err != nil {
		a.tellTrouble(err)
		return
	}
	if r.Epoch != a.epoch || r.Holder.Writer != a.writer {
		r = Record{State: Held, Holder: Party{Writer: a.writer}, Epoch: a.epoch, Current: r.Current}
	}
	r.Request = &Request{Party: a.w.o.Self, Nonce: nonce, Patience: a.w.o.Patience}
	r, etag, err = a.w.object.write(ctx, r, etag)
	if err != nil {
		if !errors.Is(err, errTaken) && ctx.Err() == nil {
			a.tellTrouble(err)
		}
		a.etag = "" // read it again
		return
	}
	a.etag, a.w.last = etag, r
	if a.nonce == "" {
		a.asked = a.w.o.Now()
		a.w.o.Log.Info("another mount holds the store; asked it to hand over",
			"holder", a.holder(), "epoch", a.epoch, "answer_within", a.answerTimeout(), "at_most", a.left())
	}
	a.nonce = nonce
}

// overdue reports whether there was no sign of life in time, or no yielding.
func (a *asking) overdue() bool {
	now, log := a.w.o.Now(), a.w.o.Log
	switch {
	case !a.heard && now.Sub(a.asked) >= a.answerTimeout():
		log.Warn("the holder of the store does not answer and is taken for dead", "holder", a.holder(), "waited", now.Sub(a.start))
		return true
	case now.Sub(a.start) >= a.w.o.Patience:
		log.Warn("the holder of the store did not yield in time: taking over without; what it has not stored by now goes to a branch",
			"holder", a.holder(), "waited", now.Sub(a.start))
		return true
	case now.Sub(a.told) >= tellEvery:
		a.told = now
		log.Info("still waiting for the holder of the store", "holder", a.holder(), "answered", a.heard, "at_most", a.left())
	}
	return false
}

// holder names who is waited for, as far as that is known.
func (a *asking) holder() string {
	if h := a.w.last.Holder; h.Writer == a.writer {
		return h.String()
	}
	return Party{Writer: a.writer}.String()
}

func (a *asking) answerTimeout() time.Duration { return min(a.w.o.AnswerTimeout, a.w.o.Patience) }

func (a *asking) left() time.Duration {
	return max(0, a.w.o.Patience-a.w.o.Now().Sub(a.start)).Round(time.Millisecond)
}

func (a *asking) tellFree(r Record, why string) {
	attrs := []any{"why", why, "waited", a.w.o.Now().Sub(a.start).Round(time.Millisecond)}
	if r.Holder.Writer != "" {
		attrs = append(attrs, "holder", r.Holder.String(), "epoch", r.Epoch)
	}
	a.w.o.Log.Info("the store is free to take over", attrs...)
}

func (a *asking) tellTrouble(err error) {
	if !a.trouble {
		a.trouble = true
		a.w.o.Log.Warn("trouble with the lease of the store; going on without it unless it passes", "error", err)
	}
}
