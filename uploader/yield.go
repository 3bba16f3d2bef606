package uploader

import (
	"context"
	"errors"
	"fmt"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
)

// ErrYielded: this writer has handed the store over, and publishes nothing to the
// history any more. Unlike ErrFenced it may end: see Reclaim.
var ErrYielded = errors.New("the store was handed over to another mount")

// YieldedError says what became of a snapshot after Yield. It is ErrYielded.
type YieldedError struct {
	Store string // as the store calls itself
}

// Error implements error.
func (e *YieldedError) Error() string { return fmt.Sprintf("%v: %s", ErrYielded, e.Store) }

// Is reports whether target is ErrYielded.
func (e *YieldedError) Is(target error) bool { return target == ErrYielded }

// ExitCode returns exitcode.Conflict.
func (e *YieldedError) ExitCode() int { return exitcode.Conflict }

// Hint returns the next step.
func (e *YieldedError) Hint() string {
	return "this one keeps serving, and what is written here no longer reaches the history; let applications use the new mount, and stop this one"
}

// Yield ends publishing: when it returns nil, no snapshot of this process gets into
// the history until Reclaim. A snapshot that is under way is waited for. Nothing is
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
	if u.isYielded() == nil {
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

func (u *Uploader) isYielded() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.yielded {
		return nil
	}
	return &YieldedError{Store: u.o.Catalog.Store().String()}
}
