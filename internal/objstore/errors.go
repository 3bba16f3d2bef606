package objstore

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// The kinds of errors, for errors.Is. An adapter's errors are of exactly one kind,
// and wrap their cause. The end of a caller's context is of none.
var (
	// ErrNotFound: the store itself said that this key is missing.
	ErrNotFound = errors.New("no such object")
	// ErrPrecondition: the object is not in the state that the caller asked for; or
	// an earlier try of this very write, whose answer was lost, has changed it.
	ErrPrecondition = errors.New("the object is not in the expected state")
	// ErrNotModified: the object is still in the state that the caller knows.
	ErrNotModified = errors.New("not modified")
	// ErrRange: the range begins at or past the end of the object.
	ErrRange = errors.New("the range lies outside the object")
	// ErrRefused: asking again does not help. Wrong key, bucket, region, address or
	// clock, a missing permission, or an answer that is not an object store's.
	ErrRefused = errors.New("the store refused")
	// ErrUnavailable: asking again may help. Network, timeout, overload, disk full.
	ErrUnavailable = errors.New("the store is unavailable")
	// ErrUnsupported: the store cannot do this at all.
	ErrUnsupported = errors.New("the store does not support this")
	// ErrDamaged: the store received other bytes than were sent.
	ErrDamaged = errors.New("the bytes were damaged on their way to the store")
)

// ErrNoUpload is the cause of an ErrUnavailable that no repetition of the request
// ends: the multipart upload was aborted or completed by another. A new one may help.
var ErrNoUpload = errors.New("the upload is gone")

// Error is a failed operation on a store.
type Error struct {
	Op    string // "get", "put", …
	Store string // as Store.String names it
	Key   string // "" where the operation is not about one key
	Kind  error  // one of the kinds above; nil for the end of a context
	Err   error  // the cause, may be nil
	Next  string // what a person can do, may be ""

	Busy       bool          // the store says that it gets too many requests
	RetryAfter time.Duration // how long the store wants to be left alone; 0 where it does not say
}

// Error implements error: operation, object, kind, cause.
func (e *Error) Error() string {
	msg := e.Op
	switch {
	case e.Store != "" && e.Key != "":
		msg += " " + e.Store + "/" + e.Key
	case e.Store+e.Key != "":
		msg += " " + e.Store + e.Key
	}
	if e.Kind != nil && !errors.Is(e.Err, e.Kind) { // else the cause says it
		msg += ": " + e.Kind.Error()
	}
	if e.Err != nil {
		msg += ": " + e.Err.Error()
	}
	return msg
}

// Unwrap returns kind and cause.
func (e *Error) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// ExitCode says what the error means to a script.
func (e *Error) ExitCode() int {
	switch {
	case errors.Is(e.Err, unix.ENOSPC) || errors.Is(e.Err, unix.EDQUOT):
		return exitcode.NoSpace
	case e.Kind == ErrPrecondition:
		return exitcode.Conflict
	case e.Kind == ErrDamaged || e.Kind == ErrRange:
		return exitcode.Integrity
	case e.Kind == nil:
		return exitcode.Failed
	}
	return exitcode.Store
}

// Hint returns the next step.
func (e *Error) Hint() string { return e.Next }

// KindOf returns which kind err is of, or nil.
func KindOf(err error) error {
	for _, kind := range []error{ErrNotFound, ErrPrecondition, ErrNotModified, ErrRange,
		ErrRefused, ErrUnavailable, ErrUnsupported, ErrDamaged} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return nil
}

// RetryAfter returns how long the store that gave err wants to be left alone, 0
// where it did not say.
func RetryAfter(err error) time.Duration {
	var e *Error
	if !errors.As(err, &e) {
		return 0
	}
	return e.RetryAfter
}

// Ended returns the cause of ctx's end, or nil while it goes on. Adapters ask it
// first: an operation that failed because its caller gave up is of no kind.
func Ended(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return context.Cause(ctx)
}
