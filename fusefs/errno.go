package fusefs

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// errnoOf returns what the kernel is told about err: the errno in its chain. All
// errors that reach it come from system calls, which have one; any other is EIO.
// What has a text worth reading is logged where it happens, as a failed mark is.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := err.(syscall.Errno); ok {
		return errno // nearly always, and without reflection
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return syscall.EIO
}

// again repeats a system call that a signal interrupted.
func again(call func() error) syscall.Errno {
	for {
		if err := call(); err != unix.EINTR {
			return errnoOf(err)
		}
	}
}
