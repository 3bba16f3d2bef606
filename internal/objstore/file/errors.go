package file

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/objstore"
)

// missingError: the folder of the store, or the one it lies in, is not there.
type missingError struct {
	what string
	err  error
}

func (e *missingError) Error() string { return fmt.Sprintf("no folder %s: %v", e.what, e.err) }
func (e *missingError) Unwrap() error { return e.err }

// callerError is an error of what a caller gave to store, not of the store.
type callerError struct{ err error }

func (e *callerError) Error() string { return e.err.Error() }
func (e *callerError) Unwrap() error { return e.err }

// kindOf returns what to do about an error, and its kind.
func kindOf(err error) (next string, kind error) {
	var missing *missingError
	var caller *callerError
	var errno unix.Errno
	switch {
	case errors.As(err, &caller):
		return "", nil
	case objstore.KindOf(err) != nil:
		return "", objstore.KindOf(err)
	case errors.As(err, &missing):
		return "is the disk mounted? If " + missing.what + " is the right place, make it: mkdir -p " + missing.what, objstore.ErrRefused
	case !errors.As(err, &errno):
		return "", objstore.ErrUnavailable
	}
	switch errno {
	case unix.ENOSPC:
		return "the disk that holds the store is full: make room on it", objstore.ErrUnavailable
	case unix.EDQUOT:
		return "the quota on the disk that holds the store is used up: make room on it", objstore.ErrUnavailable
	case unix.EIO, unix.EUCLEAN:
		return "the disk that holds the store fails: see dmesg, and use another one", objstore.ErrUnavailable
	case unix.EACCES, unix.EPERM, unix.EROFS, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.EXDEV, unix.ENAMETOOLONG,
		unix.ENOTEMPTY, unix.EEXIST, unix.EINVAL, unix.EFBIG:
		return "", objstore.ErrRefused
	case unix.ENOSYS, unix.EOPNOTSUPP, unix.ENOLCK:
		return "the file system of the store lacks what chromafs needs (flock, rename, openat2): use another one", objstore.ErrUnsupported
	}
	return "", objstore.ErrUnavailable
}
