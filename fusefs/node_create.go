package fusefs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Create makes a regular file and opens it.
func (s *fsys) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	dir := s.node(in.NodeId)
	if dir == nil {
		return status(syscall.ESTALE)
	}
	if errno := s.checkName(dir, name); errno != 0 {
		return status(errno)
	}
	var st unix.Stat_t
	var h *handle
	m := mutation{kind: mutateCreate, dir: dir, name: name}
	errno := s.mutate(requestContext(cancel, &in.InHeader), &m, func() (errno syscall.Errno) {
		h, errno = s.createFile(&m, in, &st)
		return errno
	})
	if errno == syscall.EEXIST && in.Flags&unix.O_EXCL == 0 {
		return s.createExisting(cancel, in, dir, name, out)
	}
	if errno != 0 {
		return status(errno)
	}
	replyEntry(&out.EntryOut, m.node, &st)
	s.replyOpen(&out.OpenOut, h)
	return fuse.OK
}

// createFile makes dir/name, which must not exist, and opens it for reading too,
// whatever the caller asked for: the kernel's cache reads what surrounds a write.
func (s *fsys) createFile(m *mutation, in *fuse.CreateIn, st *unix.Stat_t) (*handle, syscall.Errno) {
	var fd int
	errno := s.creds.as(in.Caller, func() (errno syscall.Errno) {
		fd, errno = openat(m.dir.fd, m.name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW, in.Mode&0o7777)
		return errno
	})
	if errno != 0 {
		return nil, errno
	}
	n, errno := s.made(m, in.Mode, fd, st)
	if errno != 0 {
		unix.Close(fd)
		return nil, errno
	}
	m.node = n
	m.handle = s.addHandle(n, fd, in.Flags)
	return m.handle, 0
}

// createExisting is Create on a file that exists, which the kernel asks for only
// if it was made behind its back.
func (s *fsys) createExisting(cancel <-chan struct{}, in *fuse.CreateIn, dir *inode, name string, out *fuse.CreateOut) fuse.Status {
	var st unix.Stat_t
	n, errno := s.child(dir, name, &st)
	if errno != 0 {
		return status(errno)
	}
	if !n.isFile() {
		s.unref(n, 1)
		return status(syscall.EEXIST)
	}
	h, errno := s.openFile(n, in.Flags)
	if errno == 0 && in.Flags&unix.O_TRUNC != 0 {
		m := mutation{kind: mutateTruncate, node: n, handle: h}
		errno = s.mutate(requestContext(cancel, &in.InHeader), &m, func() syscall.Errno { return truncate(&m) })
		st.Size = 0
	}
	if errno != 0 {
		if h != nil {
			s.closeHandle(h)
		}
		s.unref(n, 1)
		return status(errno)
	}
	replyEntry(&out.EntryOut, n, &st)
	s.replyOpen(&out.OpenOut, h)
	return fuse.OK
}

// Tmpfile makes a regular file without a name and opens it.
func (s *fsys) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	dir := s.node(in.NodeId)
	if dir == nil {
		return status(syscall.ESTALE)
	}
	var st unix.Stat_t
	m := mutation{kind: mutateTmpfile, dir: dir}
	errno := s.mutate(requestContext(cancel, &in.InHeader), &m, func() syscall.Errno {
		var fd int
		errno := s.creds.as(in.Caller, func() (errno syscall.Errno) {
			fd, errno = openat(dir.fd, ".", unix.O_TMPFILE|unix.O_RDWR|int(in.Flags)&unix.O_EXCL, in.Mode&0o7777)
			return errno
		})
		if errno != 0 {
			return errno
		}
		n, errno := s.made(&m, in.Mode, fd, &st)
		if errno != 0 {
			unix.Close(fd)
			return errno
		}
		m.node = n
		m.handle = s.addHandle(n, fd, in.Flags)
		return 0
	})
	if errno != 0 {
		return status(errno)
	}
	replyEntry(&out.EntryOut, m.node, &st)
	s.replyOpen(&out.OpenOut, m.handle)
	return fuse.OK
}

// Mkdir makes a folder.
func (s *fsys) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return s.make(cancel, &in.InHeader, mutateMkdir, name, in.Mode, out, func(dir *inode) error {
		return unix.Mkdirat(dir.fd, name, in.Mode&0o7777)
	})
}

// Mknod makes a FIFO, a socket, a device or a regular file.
func (s *fsys) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return s.make(cancel, &in.InHeader, mutateMknod, name, in.Mode, out, func(dir *inode) error {
		return unix.Mknodat(dir.fd, name, in.Mode, int(in.Rdev))
	})
}

// Symlink makes a symbolic link.
func (s *fsys) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return s.make(cancel, in, mutateSymlink, name, 0, out, func(dir *inode) error {
		return unix.Symlinkat(target, dir.fd, name)
	})
}

// make is what Mkdir, Mknod and Symlink have in common.
func (s *fsys) make(cancel <-chan struct{}, in *fuse.InHeader, kind mutationKind, name string, mode uint32, out *fuse.EntryOut, call func(dir *inode) error) fuse.Status {
	dir := s.node(in.NodeId)
	if dir == nil {
		return status(syscall.ESTALE)
	}
	if errno := s.checkName(dir, name); errno != 0 {
		return status(errno)
	}
	var st unix.Stat_t
	m := mutation{kind: kind, dir: dir, name: name}
	errno := s.mutate(requestContext(cancel, in), &m, func() (errno syscall.Errno) {
		errno = s.creds.as(in.Caller, func() syscall.Errno { return again(func() error { return call(dir) }) })
		if errno == 0 {
			m.node, errno = s.made(&m, mode, -1, &st)
		}
		return errno
	})
	if errno != 0 {
		return status(errno)
	}
	replyEntry(out, m.node, &st)
	return fuse.OK
}

// made takes up an object that was just made: open as fd, or -1, by name or, for a
// mutateTmpfile, without one. If that fails the object goes again.
func (s *fsys) made(m *mutation, mode uint32, fd int, st *unix.Stat_t) (n *inode, errno syscall.Errno) {
	defer func() {
		if errno == 0 || m.name == "" {
			return
		}
		flags := 0
		if m.kind == mutateMkdir {
			flags = unix.AT_REMOVEDIR
		}
		if err := unix.Unlinkat(m.dir.fd, m.name, flags); err != nil {
			s.log.Error("a new file that could not be taken up stays behind", "name", m.name, "error", err)
		}
	}()
	var path int
	if fd >= 0 {
		path, errno = openat(unix.AT_FDCWD, procPath(fd), unix.O_PATH, 0)
	} else {
		path, errno = openat(m.dir.fd, m.name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	}
	if errno != 0 {
		return nil, errno
	}
	errno = errnoOf(unix.Fstat(path, st))
	if errno == 0 && m.kind != mutateSymlink && mode&s.creds.umask&0o777 != 0 {
		// Our own umask took bits that the caller's left.
		want := mode&0o7777 | st.Mode&unix.S_ISGID
		if errno = chmod(path, want); errno == 0 {
			errno = errnoOf(unix.Fstat(path, st))
		}
	}
	if errno != 0 {
		unix.Close(path)
		return nil, errno
	}
	n, _ = s.adopt(path, st, func(n *inode) bool {
		if m.name != "" {
			s.linkLocked(m.dir, m.name, n)
			m.dir.changes++
		}
		return true
	})
	return n, 0
}

// Link gives a file another name.
func (s *fsys) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, n := s.node(in.NodeId), s.node(in.Oldnodeid)
	if dir == nil || n == nil {
		return status(syscall.ESTALE)
	}
	if errno := s.checkName(dir, name); errno != 0 {
		return status(errno)
	}
	m := mutation{kind: mutateLink, node: n, newDir: dir, newName: name}
	var st unix.Stat_t
	errno := s.mutate(requestContext(cancel, &in.InHeader), &m, func() syscall.Errno {
		errno := again(func() error {
			return unix.Linkat(unix.AT_FDCWD, procPath(n.fd), dir.fd, name, unix.AT_SYMLINK_FOLLOW)
		})
		if errno != 0 {
			return errno
		}
		s.mu.Lock()
		n.refs++ // the kernel's
		s.linkLocked(dir, name, n)
		dir.changes++
		s.mu.Unlock()
		return 0
	})
	if errno != 0 {
		return status(errno)
	}
	if errno := n.stat(&st); errno != 0 {
		s.unref(n, 1)
		return status(errno)
	}
	replyEntry(out, n, &st)
	return fuse.OK
}
