package retry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/objstore"
)

// Policy bounds the repetitions of one operation.
type Policy struct {
	Time        time.Duration // from the first failure on
	Attempts    int           // the first one included
	First, Most time.Duration // the longest wait after the first failure, and after many
}

// The policies of chromafs.
var (
	// Patient lets a snapshot or a restore outlast a store that is down for minutes.
	Patient = Policy{Time: 5 * time.Minute, Attempts: 100, First: 200 * time.Millisecond, Most: 20 * time.Second}
	// Brief is for a person who waits for an answer.
	Brief = Policy{Time: 10 * time.Second, Attempts: 10, First: 200 * time.Millisecond, Most: 3 * time.Second}
)

const (
	busyFirst   = time.Second // Policy.First where the store says that it is overloaded
	maxDamaged  = 4           // attempts at a write whose bytes arrive damaged
	maxDoubling = 30
)

// Options are what New needs. Those that are nil have defaults.
type Options struct {
	Policy Policy
	Now    func() time.Time                                 // must have a monotonic reading
	Wait   func(ctx context.Context, d time.Duration) error // returns the cause of ctx's end if that comes first
	Rand   func(n int64) int64                              // in [0, n); safe for concurrent use
	Log    *slog.Logger
}

// Repeater repeats operations. It is safe for concurrent use.
type Repeater struct{ o Options }

// New returns a repeater.
func New(o Options) *Repeater {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Wait == nil {
		o.Wait = wait
	}
	if o.Rand == nil {
		o.Rand = rand.Int64N
	}
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	o.Policy.Attempts = max(o.Policy.Attempts, 1)
	return &Repeater{o: o}
}

// wait waits for d or for the end of ctx.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

type budgetKey struct{}

// WithBudget bounds the time that an operation called with the context is repeated
// for; with 0 it is tried once. It never makes it longer.
func WithBudget(ctx context.Context, d time.Duration) context.Context {
	if outer, ok := ctx.Value(budgetKey{}).(time.Duration); ok {
		d = min(d, outer)
	}
	return context.WithValue(ctx, budgetKey{}, max(d, 0))
}

type observerKey struct{}

// WithObserver lets observe know of each failure after which an operation called
// with the context is repeated, with the time of its first one, and, by a nil, that
// one of them succeeded after all. It is called concurrently.
func WithObserver(ctx context.Context, observe func(err error, since time.Time)) context.Context {
	return context.WithValue(ctx, observerKey{}, observe)
}

// Do calls f until it succeeds, fails for good, or the budget is used up. what says
// what f does, for people.
func (r *Repeater) Do(ctx context.Context, what string, f func() error) error {
	return r.do(ctx, what, false, f)
}

// do is Do; write says that f sends bytes that are verified on arrival.
func (r *Repeater) do(ctx context.Context, what string, write bool, f func() error) error {
	t := r.begin(ctx, what)
	t.write = write
	for {
		err := f()
		if err == nil {
			t.recovered()
			return nil
		}
		if err := t.next(ctx, err); err != nil {
			return err
		}
	}
}

// tries are the attempts at one operation.
type tries struct {
	*Repeater
	what    string
	policy  Policy
	write   bool
	failed  int // attempts
	damaged int // of these, the ones whose bytes arrived damaged
	since   time.Time
	observe func(err error, since time.Time)
}

func (r *Repeater) begin(ctx context.Context, what string) *tries {
	t := &tries{Repeater: r, what: what, policy: r.o.Policy, observe: func(error, time.Time) {}}
	if observe, ok := ctx.Value(observerKey{}).(func(error, time.Time)); ok {
		t.observe = observe
	}
	if d, ok := ctx.Value(budgetKey{}).(time.Duration); ok {
		t.policy.Time = min(t.policy.Time, d)
	}
	return t
}

// progress gives the operation its whole budget again.
func (t *tries) progress() { t.failed, t.damaged = 0, 0 }

// recovered tells people who were told of trouble that it is over.
func (t *tries) recovered() {
	if t.failed > 0 {
		t.observe(nil, time.Time{})
		t.o.Log.Info("the store answers again", "operation", t.what, "attempts", t.failed+1, "after", t.o.Now().Sub(t.since))
	}
}

// next waits before the attempt that follows one that failed with err. It returns
// the error that stands where there is none to follow.
func (t *tries) next(ctx context.Context, err error) error {
	if !t.mayHelp(err) {
		return err
	}
	now := t.o.Now()
	if t.failed++; t.failed == 1 {
		t.since = now
	}
	if cause := objstore.Ended(ctx); cause != nil {
		return t.ended(cause, err)
	}
	delay := t.delay(err)
	left := t.policy.Time - now.Sub(t.since)
	if after := objstore.RetryAfter(err); after > 0 {
		delay += after
	} else {
		delay = min(delay, left)
	}
	if left <= 0 || delay > left || t.failed >= t.policy.Attempts || t.damaged >= maxDamaged {
		return &exhausted{error: err, attempts: t.failed, took: now.Sub(t.since)}
	}
	t.observe(err, t.since)
	level := slog.LevelDebug
	if bits.OnesCount(uint(t.failed)) == 1 { // 1, 2, 4, …
		level = slog.LevelWarn
	}
	t.o.Log.Log(ctx, level, "a request to the store failed, trying again", "operation", t.what, "attempt", t.failed,
		"delay", delay, "given_up_in", left, "error", err)
	if cause := t.o.Wait(ctx, delay); cause != nil {
		return t.ended(cause, err)
	}
	return nil
}

// mayHelp reports whether another attempt may end otherwise than with err (T1).
func (t *tries) mayHelp(err error) bool {
	var done *exhausted
	if errors.As(err, &done) || errors.Is(err, objstore.ErrNoUpload) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return false
	}
	switch objstore.KindOf(err) {
	case objstore.ErrUnavailable:
		return true
	case objstore.ErrDamaged:
		t.damaged++
		return t.write
	}
	return false
}

// delay draws how long to wait (T2).
func (t *tries) delay(err error) time.Duration {
	longest := t.policy.First
	var e *objstore.Error
	if errors.As(err, &e) && e.Busy {
		longest = max(longest, busyFirst)
	}
	for range min(t.failed-1, maxDoubling) {
		longest = min(2*longest, t.policy.Most)
	}
	longest = min(longest, t.policy.Most)
	if longest <= 0 {
		return 0
	}
	return time.Duration(t.o.Rand(int64(longest) + 1))
}

// ended is the error of an operation that its caller had no more time for. It is of
// no kind: that the store might have answered later is not known.
func (t *tries) ended(cause, last error) error {
	return &objstore.Error{Op: t.what, Err: fmt.Errorf("%w (the store did not answer meanwhile: %v)", cause, last)}
}

// exhausted is the last error of an operation that was given up.
type exhausted struct {
	error
	attempts int
	took     time.Duration
}

// Error implements error.
func (e *exhausted) Error() string {
	if e.attempts == 1 {
		return e.error.Error()
	}
	return fmt.Sprintf("%v (asked %d times in %v)", e.error, e.attempts, e.took.Round(time.Millisecond))
}

// Unwrap returns the error of the last attempt.
func (e *exhausted) Unwrap() error { return e.error }
