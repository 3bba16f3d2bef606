package fusefs

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"syscall"
)

// toErrno returns what the kernel is told about err: the errno in its chain, or
// that of a well-known error. Anything else is EIO, and is worth a line in the
// log because no caller will ever see its text.
func toErrno(log *slog.Logger, err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	for _, known := range []struct {
		err   error
		errno syscall.Errno
	}{
		{fs.ErrNotExist, syscall.ENOENT},
		{fs.ErrExist, syscall.EEXIST},
		{fs.ErrPermission, syscall.EPERM},
		{fs.ErrInvalid, syscall.EINVAL},
		{fs.ErrClosed, syscall.EBADF},
		{context.Canceled, syscall.EINTR},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
		{io.ErrShortWrite, syscall.EIO},
	} {
		if errors.Is(err, known.err) {
			return known.errno
		}
	}
	log.Error("an error without an errno became EIO", "error", err)
	return syscall.EIO
}
