package uploader

import (
	"context"
	"encoding/binary"
	"io"
	"time"
)

// Bounds of Run's waiting.
const (
	firstBackoff = 5 * time.Second
	maxBackoff   = 5 * time.Minute
	minLook      = 10 * time.Millisecond // between two looks at the journal
	maxLook      = 5 * time.Second
)

// Run takes snapshots as DESIGN §6 says until ctx ends: something is dirty and the
// interval has passed since the last cut; then the next moment that nothing was
// written for the time to settle, at most a tenth of the interval after it was due.
// Failures are tried again for ever, with backoff (F4). It returns nil.
//
// It is the same once another writer has taken over, or was handed the store, with
// branches.
func (u *Uploader) Run(ctx context.Context) error {
	u.repairAtStart(ctx)
	var since time.Time // since when a snapshot has been due; zero: it is not
	for {
		now := u.o.Now()
		var wait time.Duration
		if wait, since = u.next(now, since); wait > 0 {
			if !sleep(ctx, wait) {
				return nil
			}
			continue
		}
		// An error is logged, kept for Status and decides about the next try.
		if _, err := u.Snapshot(ctx); err == nil {
			since = time.Time{}
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// next returns how long Run waits before it looks again, 0 for a snapshot now, and
// since when one has been due. A failure does not make it wait for quiet anew.
func (u *Uploader) next(now, since time.Time) (time.Duration, time.Time) {
	u.mu.Lock()
	due, retryAt := u.dueLocked(now), u.retryAt
	u.mu.Unlock()
	if wait := due.Sub(now); wait > 0 {
		return wait, time.Time{}
	}
	if u.o.Queue.Dirty().Empty() {
		return u.look(), time.Time{}
	}
	if since.IsZero() {
		since = now
	}
	if wait := retryAt.Sub(now); wait > 0 {
		return wait, since
	}
	last := u.o.LastMutation()
	if last.IsZero() || now.Sub(last) >= u.o.Settle {
		return 0, since
	}
	quiet := last.Add(u.o.Settle).Sub(now)
	latest := since.Add(u.o.Interval / 10).Sub(now)
	return max(0, min(quiet, latest)), since
}

// dueLocked returns when the interval has passed.
func (u *Uploader) dueLocked(now time.Time) time.Time {
	if u.lastCut.IsZero() {
		return now
	}
	return u.lastCut.Add(u.o.Interval)
}

// look is how often Run looks whether something became dirty.
func (u *Uploader) look() time.Duration {
	return min(max(u.o.Interval/100, minLook), maxLook)
}

// backoff returns how long to wait after the nth failure in a row: doubling from
// five seconds to five minutes, never longer than the interval, and each time
// somewhere between half of that and all of it, so that many mounts do not come
// back to a store at once.
func (u *Uploader) backoff(n int) time.Duration {
	d := firstBackoff
	for range min(n-1, 10) {
		d *= 2
	}
	d = min(d, maxBackoff, u.o.Interval)
	var b [8]byte
	if _, err := io.ReadFull(u.o.Rand, b[:]); err != nil {
		return d
	}
	half := uint64(d / 2)
	if half == 0 {
		return d
	}
	return time.Duration(half + binary.LittleEndian.Uint64(b[:])%half)
}

// sleep waits and reports whether the whole time passed.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
