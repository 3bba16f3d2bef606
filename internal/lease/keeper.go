package lease

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
)

// ErrLost is what a Writer's methods return where another writer has taken the store
// over. It is final.
var ErrLost = errors.New("another writer has taken the store over")

// Writer is what a keeper needs of whoever publishes. Only one method runs at a time,
// but for Current, which does not wait.
type Writer interface {
	// HandOver takes a final snapshot; when it returns nil nothing is published to
	// the history any more. An error leaves everything as it was; ask again.
	HandOver(ctx context.Context) error
	// Reclaim takes the store back after a HandOver that nobody made use of, by an
	// ordinary takeover, and returns its epoch.
	Reclaim(ctx context.Context) (epoch uint64, err error)
	// Check finds out whether another writer has taken the store over.
	Check(ctx context.Context) error
	// Current returns the snapshot that `current` in the store is known to follow, or "".
	Current() string
}

// KeeperOptions are what NewKeeper needs.
type KeeperOptions struct {
	Store     objstore.Store
	Self      Party
	Writer    Writer
	LookEvery time.Duration    // 0 is the default
	Now       func() time.Time // with a monotonic reading
	Rand      io.Reader
	Log       *slog.Logger
}

// Status says how the lease stands.
type Status struct {
	State   State // "" before a takeover
	Lost    bool  // another writer has the store
	Epoch   uint64
	Holder  Party     // who has it, where that is another one and is known
	Request Party     // who asked, while it is yielding or yielded
	Since   time.Time // of the state
}

// Keeper keeps the lease of a process that took the store over. Run does all the
// work; the other methods may be called at any time, by anyone.
type Keeper struct {
	o      KeeperOptions
	object object
	kick   chan struct{} // holds a token while there is something to do at once
	handed chan error    // how HandOver went

	// Run's own.
	etag     string // of the lease as last read or written
	record   Record // as last read or written; zero: not known
	patience time.Duration
	trouble  bool // trouble with the store was logged

	mu      sync.Mutex // guards what follows
	status  Status
	written bool               // the lease says what status does
	ending  bool               // answer requests, but do not yield
	cancel  context.CancelFunc // ends the HandOver that is under way; nil: none is
}

// NewKeeper returns a keeper that has nothing to keep before Took.
func NewKeeper(o KeeperOptions) *Keeper {
	if o.LookEvery == 0 {
		o.LookEvery = LookEvery
	}
	return &Keeper{o: o, object: object{o.Store, o.Rand}, kick: make(chan struct{}, 1), handed: make(chan error, 1)}
}

// Took tells the keeper that the store was taken over, with which epoch. It does not
// wait.
func (k *Keeper) Took(epoch uint64) {
	k.mu.Lock()
	k.status = Status{State: Held, Epoch: epoch, Since: k.o.Now()}
	k.written = false
	k.mu.Unlock()
	k.wake()
}

func (k *Keeper) wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// Ending says that the process comes to its end: its final snapshot and its release
// are the hand-over. A HandOver that is under way is ended.
func (k *Keeper) Ending() {
	k.mu.Lock()
	k.ending = true
	cancel := k.cancel
	k.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// Status returns how the lease stands. It asks nobody.
func (k *Keeper) Status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.status
}

// Run keeps the lease until ctx ends. It leaves the lease as it is then.
func (k *Keeper) Run(ctx context.Context) {
	tick := time.NewTicker(k.o.LookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if k.handingOver() {
				k.handOverEnded(ctx, <-k.handed)
			}
			return
		case err := <-k.handed:
			k.handOverEnded(ctx, err)
		case <-k.kick:
		case <-tick.C:
		}
		k.look(ctx)
	}
}

func (k *Keeper) handingOver() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cancel != nil
}

// set changes the state; the lease has to be told.
func (k *Keeper) set(s State) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.status.State, k.status.Since, k.written = s, k.o.Now(), false
	if s == Held {
		k.status.Request = Party{}
	}
}

// lose ends the keeping: another writer has the store, and the lease with it (L5).
func (k *Keeper) lose(holder Party) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.status.Lost, k.status.Holder, k.status.Since = true, holder, k.o.Now()
}

// look reads the lease if there is one to keep, and does what it asks for.
func (k *Keeper) look(ctx context.Context) {
	k.mu.Lock()
	s, written := k.status, k.written
	k.mu.Unlock()
	if s.Epoch == 0 || s.Lost || ctx.Err() != nil {
		return
	}
	if s.State == Yielded && k.o.Now().Sub(s.Since) >= 2*k.patience {
		k.reclaim(ctx)
		return
	}
	r, etag, err := k.object.read(ctx, k.etag)
	switch {
	case errors.Is(err, objstore.ErrNotModified):
		r, etag = k.record, k.etag
	case err != nil && !absent(err):
		k.tellTrouble(ctx, err)
		return
	case errors.Is(err, errUnreadable):
		k.o.Log.Warn("the lease of the store does not count and is written anew", "error", err)
	}
	k.trouble = false
	k.record, k.etag = r, etag
	switch {
	case r.Epoch > s.Epoch, r.Epoch == s.Epoch && r.Holder.Writer != k.o.Self.Writer:
		if !k.isOurs(ctx, r.Holder) {
			return
		}
	case r.Epoch == s.Epoch && r.pending():
		k.answer(ctx, *r.Request)
		return
	case r.Epoch == s.Epoch && written:
		return
	}
	k.put(ctx)
}

// isOurs asks the fence whether a lease of somebody else tells a lie.
func (k *Keeper) isOurs(ctx context.Context, other Party) bool {
	err := k.o.Writer.Check(ctx)
	switch {
	case errors.Is(err, ErrLost):
		k.lose(other)
		k.o.Log.Warn("another mount has the store now; this one serves on, and what it writes goes to no snapshot of the history", "holder", other.String())
	case err != nil:
		k.tellTrouble(ctx, err)
	}
	return err == nil
}

// put writes the lease as the state is. Whoever wrote it meanwhile is heard first: a
// request that came between is kept.
func (k *Keeper) put(ctx context.Context) {
	k.mu.Lock()
	s := k.status
	k.mu.Unlock()
	r := Record{State: s.State, Holder: k.o.Self, Epoch: s.Epoch, Current: k.o.Writer.Current()}
	if k.record.Epoch == s.Epoch { // one before that asked another holder, and asks again
		r.Request, r.Answer = k.record.Request, k.record.Answer
	}
	r, etag, err := k.object.write(ctx, r, k.etag)
	if err != nil {
		k.etag, k.record = "", Record{}
		if errors.Is(err, errTaken) {
			k.wake()
			return
		}
		k.tellTrouble(ctx, err)
		return
	}
	k.etag, k.record = etag, r
	k.mu.Lock()
	k.written = k.status.State == s.State && k.status.Epoch == s.Epoch
	k.mu.Unlock()
}

// answer tells a waiter that somebody is there, and begins to yield if that is
// still to be done.
func (k *Keeper) answer(ctx context.Context, q Request) {
	k.patience = min(max(q.Patience, time.Second), maxPatience)
	k.mu.Lock()
	state, begin := k.status.State, k.status.State == Held && !k.ending
	k.status.Request = q.Party
	if state == Held {
		k.status.State, k.status.Since = Yielding, k.o.Now()
	}
	k.written = false
	k.mu.Unlock()
	k.record.Answer = q.Nonce
	k.o.Log.Info("another mount asks for the store", "waiter", q.String(), "state", string(state), "patience", q.Patience)
	if begin {
		k.beginHandOver(ctx)
	}
	k.put(ctx)
}

// beginHandOver lets go of the store in the background, so that others who ask
// meanwhile are answered.
func (k *Keeper) beginHandOver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, k.patience)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cancel = cancel
	go func() {
		defer cancel()
		k.handed <- k.handOver(ctx)
	}()
}

// Backoff between two attempts to take the final snapshot.
const (
	firstRetry = time.Second
	maxRetry   = 15 * time.Second
)

// handOver tries until it is done, or the waiter's patience is at its end.
func (k *Keeper) handOver(ctx context.Context) error {
	for wait := firstRetry; ; wait = min(2*wait, maxRetry) {
		err := k.o.Writer.HandOver(ctx)
		if err == nil || errors.Is(err, ErrLost) || ctx.Err() != nil {
			return err
		}
		k.o.Log.Warn("the final snapshot before the hand-over failed; trying again", "error", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// handOverEnded draws the consequence of a HandOver.
func (k *Keeper) handOverEnded(ctx context.Context, err error) {
	k.mu.Lock()
	k.cancel = nil
	ending, request := k.ending, k.status.Request
	k.mu.Unlock()
	switch {
	case err == nil:
		k.o.Log.Info("the store is handed over; this mount serves on", "to", request.String())
		k.set(Yielded)
	case errors.Is(err, ErrLost):
		// The lease, if it is still this one's, need not keep anybody waiting.
		k.set(Released)
		k.released(ctx)
		k.lose(Party{})
	case ending, ctx.Err() != nil: // Release follows
	default:
		k.o.Log.Warn("the final snapshot was not taken while the other mount waited; this one stays the writer until that takes over", "error", err)
		k.set(Held)
	}
}

// reclaim takes the store back from a waiter that never came (L6).
func (k *Keeper) reclaim(ctx context.Context) {
	epoch, err := k.o.Writer.Reclaim(ctx)
	switch {
	case err == nil:
		k.o.Log.Warn("the mount that asked for the store did not take it over: this one has taken it back", "epoch", epoch)
		k.Took(epoch)
	case errors.Is(err, ErrLost):
		k.lose(Party{})
	default:
		k.tellTrouble(ctx, err)
	}
}

// Release ends the lease of a process that stops: nobody has to wait for it. It is
// called after Run. The lease of another one is left alone (L5), and so is one that
// says that this one has yielded.
func (k *Keeper) Release(ctx context.Context) {
	k.mu.Lock()
	s, written := k.status, k.written
	k.mu.Unlock()
	if s.Epoch == 0 || s.Lost || s.State == Yielded && written {
		return
	}
	k.trouble = false
	k.set(Released)
	for ctx.Err() == nil && !k.released(ctx) {
	}
}

// released tries once, and reports whether that was the last time.
func (k *Keeper) released(ctx context.Context) bool {
	r, etag, err := k.object.read(ctx, "")
	if err != nil && !absent(err) {
		k.tellTrouble(ctx, err)
		return true
	}
	s := k.Status()
	if r.Epoch > s.Epoch || r.Epoch == s.Epoch && r.Holder.Writer != k.o.Self.Writer {
		k.lose(r.Holder)
		return true
	}
	k.record, k.etag = r, etag
	k.put(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.written || k.trouble
}

// tellTrouble logs trouble with the store once until it has passed (F4).
func (k *Keeper) tellTrouble(ctx context.Context, err error) {
	if ctx.Err() == nil && !k.trouble {
		k.trouble = true
		k.o.Log.Warn("trouble with the lease of the store; mounts that want to take over may wait in vain for an answer", "error", err)
	}
}
