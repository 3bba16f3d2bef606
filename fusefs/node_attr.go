package fusefs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// GetAttr reads the attributes of an inode.
func (s *fsys) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := s.node(in.NodeId)
	if n == nil {
		return status(syscall.ESTALE)
	}
	return status(s.replyStat(n, out))
}

func (s *fsys) replyStat(n *inode, out *fuse.AttrOut) syscall.Errno {
	var st unix.Stat_t
	if errno := n.stat(&st); errno != 0 {
		return errno
	}
	replyAttr(&out.Attr, &st)
	out.Nlink = n.visibleLinks(out.Nlink)
	out.SetTimeout(cacheTime)
	return 0
}

// visibleLinks is the link count without the hidden folder's "..", on file
// systems that count those.
func (n *inode) visibleLinks(links uint32) uint32 {
	if n.isRoot() && links > 2 {
		return links - 1
	}
	return links
}

// Statx is asked for what GetAttr cannot tell: the time of birth.
func (s *fsys) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	n := s.node(in.NodeId)
	if n == nil {
		return status(syscall.ESTALE)
	}
	var st unix.Statx_t
	flags := unix.AT_EMPTY_PATH | unix.AT_SYMLINK_NOFOLLOW | int(in.SxFlags)&(unix.AT_STATX_FORCE_SYNC|unix.AT_STATX_DONT_SYNC)
	errno := again(func() error {
		return unix.Statx(n.fd, "", flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	})
	if errno != 0 {
		return status(errno)
	}
	out.FromStatx(&st)
	out.Nlink = n.visibleLinks(out.Nlink)
	out.SetTimeout(cacheTime)
	return fuse.OK
}

// SetAttr changes size, owner, mode or times. The kernel has checked that the
// caller may, and asks for the set-id bits to be cleared where they must be.
func (s *fsys) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := s.node(in.NodeId)
	if n == nil {
		return status(syscall.ESTALE)
	}
	if timesStand(n, in) {
		return status(s.replyStat(n, out))
	}
	m := mutation{kind: mutateAttr, node: n}
	if fh, ok := in.GetFh(); ok {
		m.handle = s.file(fh)
	}
	if size, ok := in.GetSize(); ok {
		if int64(size) < 0 {
			return status(syscall.EFBIG)
		}
		m.kind, m.length = mutateTruncate, int64(size)
	}
	errno := s.mutate(requestContext(cancel, &in.InHeader), &m, func() syscall.Errno {
		errno := setAttr(&m, in)
		if errno == 0 && !writesTimesBack(in) {
			s.busy.attributesSet()
		}
		return errno
	})
	if errno != 0 {
		return status(errno)
	}
	return status(s.replyStat(n, out))
}

// timesStand reports whether in is the kernel's writing back of times and the backing
// file has them already. It comes after every unlink, link and rename of a file, for
// the sake of its ctime, which cannot be set.
func timesStand(n *inode, in *fuse.SetAttrIn) bool {
	var st unix.Stat_t
	return writesTimesBack(in) && n.stat(&st) == 0 && st.Mtim == unix.Timespec{Sec: int64(in.Mtime), Nsec: int64(in.Mtimensec)}
}

// writesTimesBack reports whether in is the kernel's writing back of times, or an
// application's setting of the mtime alone, which looks the same.
func writesTimesBack(in *fuse.SetAttrIn) bool {
	return in.Valid&^(fuse.FATTR_FH|fuse.FATTR_LOCKOWNER) == fuse.FATTR_MTIME|fuse.FATTR_CTIME
}

// setAttr applies a SETATTR to the backing file: the size first, and the owner
// before the mode, because changing the owner clears set-id bits.
func setAttr(m *mutation, in *fuse.SetAttrIn) syscall.Errno {
	n := m.node
	if m.kind == mutateTruncate {
		if errno := truncate(m); errno != 0 {
			return errno
		}
	}
	uid, setUID := in.GetUID()
	gid, setGID := in.GetGID()
	if setUID || setGID {
		if !setUID {
			uid = ^uint32(0)
		}
		if !setGID {
			gid = ^uint32(0)
		}
		err := unix.Fchownat(n.fd, "", int(int32(uid)), int(int32(gid)), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return errnoOf(err)
		}
	}
	if mode, ok := in.GetMode(); ok {
		if errno := chmod(n.fd, mode); errno != 0 {
			return errno
		}
	}
	return setTimes(n, in)
}

// chmod changes the mode behind an O_PATH descriptor. Only /proc can do that on
// kernels before 6.6.
func chmod(fd int, mode uint32) syscall.Errno {
	return errnoOf(unix.Fchmodat(unix.AT_FDCWD, procPath(fd), mode&0o7777, 0))
}

func setTimes(n *inode, in *fuse.SetAttrIn) syscall.Errno {
	const both = fuse.FATTR_ATIME | fuse.FATTR_MTIME
	if in.Valid&both == 0 {
		return 0
	}
	times := []unix.Timespec{
		timespec(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		timespec(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}
	errno := errnoOf(unix.UtimesNanoAt(n.fd, "", times, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW))
	if errno == syscall.EPERM && in.Valid&fuse.FATTR_CTIME != 0 {
		// The kernel writes back the time of cached writes, which only it asks for
		// together with a ctime. An ordinary user's daemon may not set times of
		// another's file; the time at which the data arrived is as good.
		return 0
	}
	return errno
}

// timespec is one time of utimensat(2): as asked, now, or left alone.
func timespec(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

// truncate sets the size, through a handle where there is one: a file may be open
// for writing and not be writable any more.
func truncate(m *mutation) syscall.Errno {
	h := m.handle
	if h == nil || !h.writable {
		if h = m.node.fsys.borrowWritable(m.node); h != nil {
			defer m.node.fsys.giveBack(h)
		}
	}
	if h != nil {
		return again(func() error { return unix.Ftruncate(h.fd, m.length) })
	}
	fd, errno := m.node.open(unix.O_WRONLY)
	if errno != 0 {
		return errno
	}
	defer unix.Close(fd)
	return again(func() error { return unix.Ftruncate(fd, m.length) })
}
