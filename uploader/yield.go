package uploader

import (
	"context"
	"errors"
	"fmt"

	"github.com/chromafs/chromafs/history"
)

// Yield ends publishing: when it returns nil, no snapshot of this process gets into
// the list until Reclaim; what is written goes to branches. A snapshot that is under way is waited for. Nothing is
// asked of the store. A fenced uploader has nothing to yield: ErrFenced.
func (u *Uploader) Yield(ctx context.Context) error {
	if err := u.takeTurn(ctx); err != nil {
		return fmt.Errorf("yield: %w", err)
	}
	defer u.leaveTurn()
	if err := u.isFenced(); err != nil {
		return fmt.Errorf("yield: %w", err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.yielded = true
	return nil
}

// Reclaim takes the store back after a Yield that nobody made use of: an ordinary
// takeover, on condition that nobody else has taken over since, else ErrFenced. It
// returns the epoch. Without a Yield it does nothing.
func (u *Uploader) Reclaim(ctx context.Context) (epoch uint64, err error) {
	if err := u.takeTurn(ctx); err != nil {
		return 0, fmt.Errorf("take the store back: %w", err)
	}
	defer u.leaveTurn()
	if u.aside() == nil {
		return u.head.Epoch, nil
	}
	if err := u.reclaim(ctx); err != nil {
		return 0, fmt.Errorf("take the store back: %w", err)
	}
	return u.head.Epoch, nil
}

func (u *Uploader) reclaim(ctx context.Context) error {
	if err := u.isFenced(); err != nil {
		return err
	}
	if err := u.readHead(ctx); err != nil {
		return err
	}
	err := u.takeover(ctx, u.head, u.etag)
	switch {
	case errors.Is(err, history.ErrFenced):
		return u.fence(err)
	case err != nil:
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.yielded = false
	return nil
}

// CheckWriter finds out whether another writer has taken the store over: ErrFenced.
func (u *Uploader) CheckWriter(ctx context.Context) error {
	if err := u.takeTurn(ctx); err != nil {
		return fmt.Errorf("look who holds the store: %w", err)
	}
	defer u.leaveTurn()
	err := u.isFenced()
	if err == nil {
		err = u.readHead(ctx)
	}
	if err != nil {
		return fmt.Errorf("look who holds the store: %w", err)
	}
	return nil
}
