package fusefs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A thread's descriptors are its own: it sees none of the process's files, and the
// process sees none that it opens (F5 rests on it).
func TestThreadHasItsOwnDescriptors(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	th, err := startThread()
	if err != nil {
		t.Fatal(err)
	}
	inside := make(chan error, 1)
	var fd int
	th.jobs <- func() {
		var st unix.Stat_t
		inside <- unix.Fstat(int(f.Fd()), &st)
		fd, err = unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		inside <- err
	}
	if err := <-inside; err != unix.EBADF {
		t.Errorf("fstat of the process's file on the thread: %v, want EBADF", err)
	}
	if err := <-inside; err != nil {
		t.Fatal(err)
	}
	var mine, theirs unix.Stat_t
	unix.Fstat(int(f.Fd()), &mine)
	if err := unix.Fstat(fd, &theirs); err == nil && theirs.Ino == mine.Ino && fd != int(f.Fd()) {
		t.Errorf("descriptor %d of the thread is open in the process", fd)
	}
	th.stop()
	<-th.done
}
