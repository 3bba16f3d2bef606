package fusefs

import (
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// F1: truncate(2) borrows a writable handle of another process, whose RELEASE may
// come in that very moment: it must not act on a descriptor that is closed, or is
// another file's by now.
func TestTruncateWhileHandlesComeAndGo(t *testing.T) {
	fx := mounted(t)
	p := in(fx.mnt, "f")
	must(t, writeFile(p, "x"))
	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				if fd, err := unix.Open(p, unix.O_WRONLY, 0); err == nil {
					unix.Close(fd)
				}
			}
		})
	}
	const enough = 1500 * time.Millisecond // without the borrowing it failed within 300 ms
	for start := time.Now(); time.Since(start) < enough; {
		if err := os.Truncate(p, 2); err != nil {
			t.Fatal(err)
		}
	}
}

// F5: the kernel sends LSEEK with the inode locked. Where a push is an fsync it
// would wait for that lock, and with it everybody.
func TestSeekDataOfAFileBeingWritten(t *testing.T) {
	for _, mode := range []pushMode{pushRange, pushFsync} {
		t.Run(mode.String(), func(t *testing.T) {
			fx := mounted(t, func(o *Options) { o.forcePush = mode })
			fx.requireWriteback(t)
			fd, err := unix.Open(in(fx.mnt, "f"), unix.O_RDWR|unix.O_CREAT, 0o644)
			must(t, err)
			_, err = unix.Write(fd, make([]byte, 8192))
			must(t, err)
			type answer struct {
				off int64
				err error
			}
			done := make(chan answer, 1)
			go func() {
				off, err := unix.Seek(fd, 4096, unix.SEEK_DATA)
				done <- answer{off, err}
			}()
			select {
			case a := <-done:
				if a.err != nil || a.off != 4096 {
					t.Errorf("SEEK_DATA at 4096 of 8192 cached bytes: %d, %v", a.off, a.err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("lseek waits for ever") // and so would closing fd
			}
			must(t, unix.Close(fd))
		})
	}
}
