package fusefs

import "errors"

// Errors that callers tell apart with errors.Is.
var (
	// ErrInsideItself says that the mountpoint lies inside the directory to be
	// served: the mount would contain itself.
	ErrInsideItself = errors.New("the mountpoint is inside the directory that it would show")
	// ErrNotDirectory says that the mountpoint is no directory.
	ErrNotDirectory = errors.New("the mountpoint is not a directory")
	// ErrViewAbandoned says that a view was given up so that writing could go on.
	ErrViewAbandoned = errors.New("the view was given up")
)
