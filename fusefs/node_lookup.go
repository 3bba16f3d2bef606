package fusefs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lookup finds a name in a folder.
func (s *fsys) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir := s.node(in.NodeId)
	if dir == nil {
		return status(syscall.ESTALE)
	}
	var st unix.Stat_t
	n, errno := s.child(dir, name, &st)
	if errno == syscall.ENOENT {
		// No node, and a time for which there will be none.
		out.SetEntryTimeout(cacheTime)
		return fuse.OK
	}
	if errno != 0 {
		return status(errno)
	}
	replyEntry(out, n, &st)
	return fuse.OK
}

// Forget drops references that the kernel held.
func (s *fsys) Forget(id, lookups uint64) {
	if n := s.node(id); n != nil {
		s.unref(n, lookups)
	}
}

// Readlink reads a symbolic link.
func (s *fsys) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n := s.node(in.NodeId)
	if n == nil {
		return nil, status(syscall.ESTALE)
	}
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return nil, status(errnoOf(err))
	}
	return buf[:size], fuse.OK
}

// StatFs describes the backing file system.
func (s *fsys) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st syscall.Statfs_t
	if errno := again(func() error { return syscall.Fstatfs(int(s.root.Fd()), &st) }); errno != 0 {
		return status(errno)
	}
	out.FromStatfsT(&st)
	return fuse.OK
}

// Ioctl answers as a file system that has none.
func (s *fsys) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return status(syscall.ENOTTY)
}
