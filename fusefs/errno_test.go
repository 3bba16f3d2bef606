package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestToErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
		logs int
	}{
		{nil, 0, 0},
		{syscall.ENOSPC, syscall.ENOSPC, 0},
		{fmt.Errorf("mark: %w", &os.PathError{Op: "write", Path: "x", Err: syscall.EDQUOT}), syscall.EDQUOT, 0},
		{fs.ErrNotExist, syscall.ENOENT, 0},
		{fs.ErrExist, syscall.EEXIST, 0},
		{fs.ErrPermission, syscall.EPERM, 0},
		{fs.ErrInvalid, syscall.EINVAL, 0},
		{os.ErrClosed, syscall.EBADF, 0},
		{context.Canceled, syscall.EINTR, 0},
		{context.DeadlineExceeded, syscall.ETIMEDOUT, 0},
		{errors.New("what is this"), syscall.EIO, 1},
	} {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		if got := toErrno(log, c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
		if lines := strings.Count(out.String(), "\n"); lines != c.logs {
			t.Errorf("%v: %d lines in the log, want %d", c.err, lines, c.logs)
		}
	}
}
