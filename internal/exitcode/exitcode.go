// Package exitcode is the closed list of the exit codes of chromafs and the way
// an error says which one it stands for.
package exitcode

import "errors"

// The exit codes. The README documents them; scripts rely on them.
const (
	Done      = 0 // everything asked for was done
	Failed    = 1 // something failed that has no code of its own
	Usage     = 2 // the command line is wrong
	Store     = 3 // the object store is unreachable or refused
	Conflict  = 4 // another writer holds the store, or the two sides diverged
	Integrity = 5 // bytes do not match what was recorded of them
	NoSpace   = 6 // the disk has no room
)

// Of returns the exit code of err: Done for nil, what the first error in its
// chain with a method ExitCode says, else Failed.
func Of(err error) int {
	if err == nil {
		return Done
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return Failed
}

// Hint returns what a person can do next, as the first error in err's chain with
// a method Hint says, or "".
func Hint(err error) string {
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		return hinted.Hint()
	}
	return ""
}

// Error is an error with an exit code and, where there is one, a next step. It is
// for failures that need no type of their own.
type Error struct {
	Code int
	Err  error
	Next string
}

// New returns err with an exit code and a next step ("" for none).
func New(code int, err error, next string) *Error { return &Error{Code: code, Err: err, Next: next} }

// Error implements error.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode returns the exit code.
func (e *Error) ExitCode() int { return e.Code }

// Hint returns the next step.
func (e *Error) Hint() string { return e.Next }
