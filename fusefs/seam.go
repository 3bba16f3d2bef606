package fusefs

// Simple but real behaviour of the parts that gate.go, busy.go, push.go,
// barrier.go, selftest.go and view.go replace piece by piece. Delete each piece
// here when its file lands.

import (
	"context"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// gate lets mutations pass, many at once, unless a cut holds it.
type gate struct{ mu sync.RWMutex }

func newGate() *gate                    { return &gate{} }
func (g *gate) enter(_ context.Context) { g.mu.RLock() }
func (g *gate) leave()                  { g.mu.RUnlock() }

type busyTracker struct{}

func newBusyTracker(*fsys) *busyTracker               { return &busyTracker{} }
func (b *busyTracker) after(*mutation, syscall.Errno) {}

type pusher struct{}

func newPusher(*fsys) *pusher { return &pusher{} }

type syncState struct{}

func newSyncState(*fsys) *syncState                 { return &syncState{} }
func (y *syncState) after(*mutation, syscall.Errno) {}

type viewSet struct{}

func newViewSet(*fsys) *viewSet     { return &viewSet{} }
func (v *viewSet) before(*mutation) {}

func (s *fsys) handleOpened(*inode, bool)   {}
func (s *fsys) handleReleased(*inode, bool) {}

// flushed runs on FLUSH, before it is answered.
func (s *fsys) flushed(context.Context, *inode) syscall.Errno { return 0 }

// barrier runs on FSYNC and FSYNCDIR.
func (s *fsys) barrier(_ context.Context, n *inode, dirOnly bool) syscall.Errno {
	flags := unix.O_RDONLY
	fd, errno := n.open(flags)
	if errno != 0 {
		return errno
	}
	defer unix.Close(fd)
	return again(func() error { return unix.Fsync(fd) })
}

// pushOne makes the kernel hand over what it caches of n.
func (s *fsys) pushOne(context.Context, *inode) {}

// closePush ends what the pusher runs; called after the mount is gone.
func (s *fsys) closePush() {}
