package uploader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/retry"
	"github.com/chromafs/chromafs/journal"
)

// Options are what New needs. Those without a default must be given.
type Options struct {
	Cut     func(ctx context.Context) (View, error)
	Queue   Queue
	Catalog *history.Catalog
	Check   CheckFunc // nil: what a view holds is not checked
	// Ready is asked before each takeover, and so before anything is written to the
	// store: whether what the uploader relies on is there. nil: it is.
	Ready        func(ctx context.Context) error
	Interval     time.Duration    // between the cuts that Run takes; default 1 h
	Settle       time.Duration    // how long Run waits for a moment without a write; at most a tenth of Interval counts
	Keep         int              // how many snapshots are listed (H2)
	MaxSparse    int64            // bytes; a bigger file of which less than half is on disk is refused; 0: none is
	LastMutation func() time.Time // zero: none yet; nil: nothing mutates
	Parallel     int              // requests and hashing at once; default 4
	Now          func() time.Time // must go forward as time.Now does, with a monotonic reading
	Rand         io.Reader        // ids, nonces, jitter; read by one at a time
	Log          *slog.Logger
	// TookOver, where set, is told of every takeover, one at a time. It must not wait.
	TookOver func(history.Head)
}

const (
	defaultParallel = 4
	defaultInterval = time.Hour
)

func (o *Options) check() error {
	switch {
	case o.Cut == nil || o.Queue == nil || o.Catalog == nil || o.Now == nil || o.Rand == nil || o.Log == nil:
		return errors.New("uploader: Cut, Queue, Catalog, Now, Rand and Log are required")
	case o.Interval < 0:
		return fmt.Errorf("uploader: the interval must not be negative, as %v is", o.Interval)
	case o.Settle < 0:
		return fmt.Errorf("uploader: the time to settle must not be negative, as %v is", o.Settle)
	case o.Keep < 1:
		return fmt.Errorf("uploader: at least 1 snapshot is kept, not %d", o.Keep)
	case o.Parallel < 0:
		return fmt.Errorf("uploader: parallel must not be negative, as %d is", o.Parallel)
	}
	if o.Parallel == 0 {
		o.Parallel = defaultParallel
	}
	if o.Interval == 0 {
		o.Interval = defaultInterval
	}
	if o.LastMutation == nil {
		o.LastMutation = func() time.Time { return time.Time{} }
	}
	o.Settle = min(o.Settle, o.Interval/10)
	return nil
}

// Uploader publishes the snapshots of one DIR to one store.
//
// Lock order: turn, then mu. Requests and the journal's transactions happen under
// turn and never under mu.
type Uploader struct {
	o    Options
	turn chan struct{} // holds a token while someone has the turn, and with it what follows

	attached bool               // this process has taken the store over
	took     history.Head       // as of that takeover: what makes a later head this writer's
	head     history.Head       // as last seen
	etag     string             // of it
	newest   *history.Manifest  // what head.Newest names, where it is known
	unacked  *journal.Published // what step 6 was asked to publish and step 7 was not told of
	suspect  bool               // the last view that was checked failed: the next is checked before anything is sent
	based    basedOn            // the cut that the journal's base is of, as far as its view was told
	last     *history.Manifest  // the last branch; nil: none, or not looked for yet
	branches []storedBranch     // that this process stored and has not removed
	rotated  time.Time          // when all writers' branches were looked at last; zero: not yet

	mu       sync.Mutex // guards what follows
	joinable *attempt   // the next to cut; nil: there is none
	fenced   error      // set once
	yielded  bool       // between Yield and Reclaim
	current  history.ID // that `current` is known to follow; "": not known
	lastCut  time.Time  // of the last snapshot
	retryAt  time.Time  // when Run tries again after a failure
	status   Status     // but what Status computes
	trouble  trouble    // of the attempt that runs
}

// basedOn is the cut of a snapshot that was acknowledged.
type basedOn struct {
	id  string
	cut uint64
}

// trouble is a store that does not answer a request that is being repeated.
type trouble struct {
	err   error // nil: there is none
	since time.Time
}

// troubleShown is how long a store has not to answer until Status says so.
const troubleShown = 2 * time.Second

// attempt is one snapshot that callers wait for.
type attempt struct {
	done chan struct{} // closed when the rest is set
	res  Result
	err  error
}

// New returns an uploader. It does nothing before Takeover, Run or Snapshot.
func New(o Options) (*Uploader, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	return &Uploader{o: o, turn: make(chan struct{}, 1)}, nil
}

// Snapshot takes a snapshot now and returns when it is published and the store is
// tidied. Callers that come before the cut share one (S1). With nothing dirty it
// returns the newest snapshot. Once another writer has taken over, it stores a branch
// and fails, the branch being the result, with a *AsideError, for good.
func (u *Uploader) Snapshot(ctx context.Context) (Result, error) {
	for {
		a, leads := u.join()
		if leads {
			u.lead(ctx, a)
		}
		select {
		case <-a.done:
		case <-ctx.Done():
			return Result{}, fmt.Errorf("snapshot: %w", context.Cause(ctx))
		}
		var gone leaderGone
		if !leads && errors.As(a.err, &gone) {
			continue
		}
		if a.err != nil {
			return a.res, fmt.Errorf("snapshot: %w", a.err)
		}
		return a.res, nil
	}
}

// join returns the attempt whose cut is still to come, and whether the caller is
// the one to carry it out.
func (u *Uploader) join() (a *attempt, leads bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.joinable == nil {
		u.joinable, leads = &attempt{done: make(chan struct{})}, true
	}
	return u.joinable, leads
}

// seal lets nobody join a any more.
func (u *Uploader) seal(a *attempt) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.joinable == a {
		u.joinable = nil
	}
}

// lead carries an attempt out in the context of its first caller.
func (u *Uploader) lead(ctx context.Context, a *attempt) {
	defer close(a.done)
	defer u.seal(a)
	if err := u.takeTurn(ctx); err != nil {
		a.err = leaderGone{err}
		return
	}
	defer u.leaveTurn()
	u.began()
	a.res, a.err = u.snapshot(retry.WithObserver(ctx, u.troubled), func() { u.seal(a) })
	u.ended(ctx, a.res, a.err)
	if a.res.Aside {
		a.err = u.stoodAside(a.res, a.err)
	}
	if a.err != nil && ctx.Err() != nil {
		a.err = leaderGone{a.err}
	}
}

func (u *Uploader) takeTurn(ctx context.Context) error {
	select {
	case u.turn <- struct{}{}:
		if ctx.Err() == nil {
			return nil
		}
		u.leaveTurn()
		return context.Cause(ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (u *Uploader) leaveTurn() { <-u.turn }

func (u *Uploader) began() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.Running = true
}

// troubled records that the store does not answer, or does again.
func (u *Uploader) troubled(err error, since time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.trouble = trouble{err, since}
}

// ended records how an attempt went, for Run, Status and the log.
func (u *Uploader) ended(ctx context.Context, res Result, err error) {
	canceled := ctx.Err() != nil && errors.Is(err, context.Canceled) // that says nothing about the store
	u.mu.Lock()
	u.status.Running, u.trouble = false, trouble{}
	switch {
	case err == nil:
		switch {
		case !res.Aside:
			u.status.Last = &res
		case res.ID != "":
			u.status.Branch = &res
		}
		u.status.LastError, u.status.FailingSince, u.status.Failures = res.Untidy, time.Time{}, 0
		u.retryAt = time.Time{}
	case !canceled:
		if u.status.Failures == 0 {
			u.status.FailingSince = u.o.Now()
		}
		u.status.Failures++
		if u.status.LastError = err.Error(); exitcode.Hint(err) != "" {
			u.status.LastError += "; next: " + exitcode.Hint(err)
		}
		u.retryAt = u.o.Now().Add(max(u.backoff(u.status.Failures), objstore.RetryAfter(err)))
	}
	s, retryAt := u.status, u.retryAt
	u.mu.Unlock()
	if err != nil && !canceled {
		u.o.Log.Error("snapshot failed; what is dirty stays so", "error", err, "hint", exitcode.Hint(err),
			"failures", s.Failures, "failing_since", s.FailingSince, "retry_at", retryAt)
	}
}

// fence records that another writer has taken over. It is final.
func (u *Uploader) fence(cause error) error {
	err := &AsideError{Store: u.o.Catalog.Store().String(), Why: ErrFenced, Err: cause}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.fenced == nil {
		u.fenced = err
	}
	return u.fenced
}

// stoodAside is what a snapshot ends with that went to a branch, or failed to.
func (u *Uploader) stoodAside(res Result, err error) error {
	var aside *AsideError
	if !errors.As(u.aside(), &aside) {
		return err
	}
	told := *aside
	told.Branch, told.Failed = res.ID, err
	return &told
}

// Status returns how things stand. It asks nobody but the journal.
func (u *Uploader) Status() Status {
	dirty := u.o.Queue.Dirty()
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.status
	s.LastCut = u.lastCut
	s.DirtySince, s.DirtyPaths, s.AllDirty = dirty.Since, len(dirty.Marks), dirty.All
	s.Fenced, s.Yielded = u.fenced != nil, u.yielded
	if t := u.trouble; t.err != nil && s.Failures == 0 && u.o.Now().Sub(t.since) >= troubleShown {
		s.LastError, s.FailingSince = t.err.Error(), t.since
	}
	if !dirty.Empty() {
		if s.NextDue = u.dueLocked(u.o.Now()); u.retryAt.After(s.NextDue) {
			s.NextDue = u.retryAt
		}
	}
	if s.Last != nil {
		last := *s.Last
		s.Last = &last
	}
	if s.Branch != nil {
		branch := *s.Branch
		s.Branch = &branch
	}
	return s
}
