package fusefs

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// thread is an operating system thread that may wait on this process's own mount
// and still not keep the process from being killed (promise F5).
//
// A thread that waits in the kernel for an answer of its own process holds the
// descriptor table, so after SIGKILL /dev/fuse stays open and the mount hangs for
// ever. This one has a table of its own without /dev/fuse: the other threads die,
// the device closes, the kernel ends all requests, and this thread dies too.
//
// No other goroutine ever runs on it (LockOSThread for life; the runtime starts
// new threads from another one then), and it ends with its goroutine. Descriptors
// opened on it exist on it alone.
type thread struct {
	tid  int
	jobs chan func()
	done chan struct{}
}

// startThread starts a thread.
func startThread() (*thread, error) {
	// The runtime may wake its poller from any thread, by a descriptor's number.
	// So the poller must exist before the table is copied, and stay in the copy:
	// else that number could come to mean a file of the mount.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the poller: %w", err)
	}
	r.Close()
	w.Close()
	t := &thread{jobs: make(chan func()), done: make(chan struct{})}
	ready := make(chan error, 1)
	run := func() {
		defer close(t.done)
		t.tid = unix.Gettid()
		err := leaveDescriptors()
		ready <- err
		if err != nil {
			return
		}
		for job := range t.jobs {
			job()
		}
	}
	go func() {
		runtime.LockOSThread() // never unlocked below: the thread ends with its goroutine
		if unix.Gettid() != unix.Getpid() {
			run()
			return
		}
		// Not the process's first thread: /proc/self means that one's descriptors, to
		// the whole process. While it is held here the next goroutine gets another.
		started := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(started)
			run()
		}()
		<-started
		runtime.UnlockOSThread()
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("give a thread its own descriptor table: %w", err)
	}
	return t, nil
}

// stop ends the thread after its last job; its descriptors are closed with it.
func (t *thread) stop() { close(t.jobs) }

// leaveDescriptors gives the calling thread a descriptor table of its own that
// holds nothing but the standard streams (a crash of the runtime must not be
// printed into a database) and the runtime's poller.
func leaveDescriptors() error {
	_, keep, err := descriptors()
	if err != nil {
		return err
	}
	if len(keep) == 0 {
		return errors.New("the runtime's poller is not among the descriptors")
	}
	keep = append(keep, 0, 1, 2)
	// What lies above the last to keep is not even copied, on Linux 5.9 and later.
	err = unix.CloseRange(uint(slices.Max(keep)+1), math.MaxUint32, unix.CLOSE_RANGE_UNSHARE)
	if err == unix.ENOSYS {
		err = unix.Unshare(unix.CLONE_FILES)
	}
	if err != nil {
		return os.NewSyscallError("unshare", err)
	}
	copied, _, err := descriptors()
	if err != nil {
		return err
	}
	for _, number := range copied {
		if !slices.Contains(keep, number) {
			unix.Close(number) // of a copy: nothing is lost with an error
		}
	}
	return nil
}

// descriptors lists the calling thread's descriptors, and those of them that are
// the runtime's poller.
func descriptors() (numbers, pollers []int, err error) {
	const self = "/proc/thread-self/fd"
	fd, err := unix.Open(self, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: self, Err: err}
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return nil, nil, &os.PathError{Op: "read", Path: self, Err: err}
	}
	buf := make([]byte, 256)
	for _, name := range names {
		number, err := strconv.Atoi(name)
		if err != nil || number == fd {
			continue
		}
		numbers = append(numbers, number)
		n, err := unix.Readlinkat(fd, name, buf)
		if err != nil {
			continue // closed meanwhile
		}
		if kind := string(buf[:n]); kind == "anon_inode:[eventpoll]" || kind == "anon_inode:[eventfd]" {
			pollers = append(pollers, number)
		}
	}
	return numbers, pollers, nil
}

// readNames lists the folder fd by raw system calls: nothing here may register
// with the poller.
func readNames(fd int) ([]string, error) {
	var names []string
	buf := make([]byte, 8192)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	return names, nil
}
