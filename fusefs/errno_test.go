package fusefs

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestErrnoOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{unix.ENOSPC, syscall.ENOSPC},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.EDQUOT}, syscall.EDQUOT},
		{fmt.Errorf("open: %w", os.NewSyscallError("openat", unix.EMFILE)), syscall.EMFILE},
		{errors.Join(errors.New("first"), unix.EROFS), syscall.EROFS},
		{errors.New("what is this"), syscall.EIO},
	} {
		if got := errnoOf(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestAgain(t *testing.T) {
	calls := 0
	errno := again(func() error {
		if calls++; calls < 3 {
			return unix.EINTR
		}
		return unix.ENOENT
	})
	if errno != syscall.ENOENT || calls != 3 {
		t.Errorf("%v after %d calls, want ENOENT after 3", errno, calls)
	}
}
