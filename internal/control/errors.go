package control

import (
	"errors"
	"fmt"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// ErrNotRunning says that no mount answers for a DIR.
var ErrNotRunning = errors.New("not mounted")

// DeadError says that a mount is there and its daemon is not.
type DeadError struct{ Mountpoint string }

// Error implements error.
func (e *DeadError) Error() string {
	return fmt.Sprintf("ask the mount %s: its daemon does not answer", e.Mountpoint)
}

// Is reports whether target is ErrNotRunning.
func (e *DeadError) Is(target error) bool { return target == ErrNotRunning }

// Hint returns the next step.
func (e *DeadError) Hint() string {
	return fmt.Sprintf("mount again (that clears a dead mount), or clear it by hand: fusermount3 -uz %s", e.Mountpoint)
}

// ForbiddenError says that the socket belongs to someone else.
type ForbiddenError struct{ Err error }

// Error implements error.
func (e *ForbiddenError) Error() string { return fmt.Sprintf("ask the mount: %v", e.Err) }

// Unwrap returns the cause.
func (e *ForbiddenError) Unwrap() error { return e.Err }

// Hint returns the next step.
func (e *ForbiddenError) Hint() string {
	return "only the user who mounted, and root, may talk to a mount"
}

// RemoteError is what the daemon answered.
type RemoteError struct {
	Message string `json:"error"`
	Next    string `json:"hint,omitempty"`
	Code    int    `json:"exit_code"`
}

// Error implements error.
func (e *RemoteError) Error() string { return e.Message }

// Hint returns the next step.
func (e *RemoteError) Hint() string { return e.Next }

// ExitCode returns the exit code.
func (e *RemoteError) ExitCode() int { return e.Code }

func remote(err error) *RemoteError {
	code := exitcode.Of(err)
	if code == exitcode.Done {
		code = exitcode.Failed
	}
	return &RemoteError{Message: err.Error(), Next: exitcode.Hint(err), Code: code}
}
