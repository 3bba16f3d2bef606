package uploader

import (
	"context"
	"errors"

	"github.com/chromafs/chromafs/history"
)

// Current returns the snapshot that `current` in the store is known to follow; ""
// where that is not known.
func (u *Uploader) Current() history.ID {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.current
}

// KnowCurrent tells, before a Takeover, which snapshot `current` is known to follow.
func (u *Uploader) KnowCurrent(id history.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.current = id
}

// doubtCurrent notes, once per Takeover, that step 8 may not have been done for the
// newest snapshot: whoever published it may have died before that, on a machine
// whose journal nobody will read. A pending id that is listed means just that, so the
// next tidying looks at what `current` holds, and repairs it.
func (u *Uploader) doubtCurrent() error {
	n := u.head.Newest
	if n == nil || n.ID == u.Current() {
		return nil
	}
	return u.o.Queue.AddPending(string(n.ID))
}

// repairAtStart does step 8 where a takeover left it in doubt, or a crash undone, so
// that it does not wait for something to publish. What fails is tried again with the
// next snapshot.
func (u *Uploader) repairAtStart(ctx context.Context) {
	if err := u.takeTurn(ctx); err != nil {
		return
	}
	defer u.leaveTurn()
	if !u.attached || u.aside() != nil {
		return
	}
	listed, unlisted, _ := u.pending()
	if len(listed) == 0 {
		return
	}
	if err := u.follow(ctx, nil, listed, unlisted); err != nil && ctx.Err() == nil {
		u.o.Log.Warn("the files beside manifest.json may not follow the newest snapshot; the next snapshot tries again", "error", err)
	}
}

// overtaken records it where a step of the tidying found another writer, and returns
// err.
func (u *Uploader) overtaken(err error) error {
	if errors.Is(err, history.ErrFenced) {
		return u.fence(err)
	}
	return err
}
