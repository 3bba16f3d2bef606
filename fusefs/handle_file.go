package fusefs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// handle is an open file of the kernel: what one open(2) of an application made.
// Nothing here offers the kernel a descriptor to pass reads and writes through to
// (FOPEN_PASSTHROUGH): they must be seen.
type handle struct {
	id       uint64
	node     *inode
	fd       int // the backing file; open until RELEASE, which no request through the handle outlives
	writable bool
	direct   bool // writes bypass the kernel's cache, because fd cannot be read

	// Guarded by fsys.mu.
	borrowers int  // requests that use fd and did not come through the handle
	released  bool // fd is closed by the last borrower
}

// openFile opens the backing file for a handle. Permissions are the kernel's
// business; a root daemon can open anything.
func (s *fsys) openFile(n *inode, flags uint32) (*handle, syscall.Errno) {
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		fd, errno := n.open(unix.O_RDONLY)
		if errno != 0 {
			return nil, errno
		}
		return s.addHandle(n, fd, flags), 0
	}
	// The cache reads what surrounds a write through the same handle.
	fd, errno := n.open(unix.O_RDWR)
	if errno != syscall.EACCES {
		if errno != 0 {
			return nil, errno
		}
		return s.addHandle(n, fd, flags), 0
	}
	// An ordinary user's daemon, and a file that may only be written.
	fd, errno = n.open(unix.O_WRONLY)
	if errno != 0 {
		return nil, errno
	}
	h := s.addHandle(n, fd, flags)
	h.direct = true
	return h, 0
}

// addHandle makes a handle of n; it owns fd. O_APPEND, O_TRUNC, O_DIRECT and
// O_SYNC never reach the backing file: the kernel turns them into offsets,
// SETATTR and FSYNC.
func (s *fsys) addHandle(n *inode, fd int, flags uint32) *handle {
	h := &handle{node: n, fd: fd, writable: flags&unix.O_ACCMODE != unix.O_RDONLY}
	s.mu.Lock()
	h.id = s.nextHandle
	s.nextHandle++
	s.files[h.id] = h
	n.refs++
	n.handles[h] = struct{}{}
	if h.writable {
		n.writable++
	}
	s.mu.Unlock()
	s.handleOpened(n, h.writable)
	return h
}

// closeHandle ends a handle.
func (s *fsys) closeHandle(h *handle) {
	s.mu.Lock()
	delete(s.files, h.id)
	delete(h.node.handles, h)
	if h.writable {
		h.node.writable--
	}
	s.mu.Unlock()
	s.handleReleased(h.node, h.writable)
	s.mu.Lock()
	h.released = true
	last := h.borrowers == 0
	s.mu.Unlock()
	if last {
		s.closeBacking(h)
	}
}

func (s *fsys) closeBacking(h *handle) {
	if err := unix.Close(h.fd); err != nil {
		s.log.Error("closing a backing file failed", "paths", s.paths(h.node), "error", err)
	}
	s.unref(h.node, 1)
}

// file returns the handle with a number, or nil.
func (s *fsys) file(fh uint64) *handle {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.files[fh]
}

// borrowWritable returns a handle of n that is open for writing, or nil. Its RELEASE
// may come at any time, and then the number of its descriptor means another file: so
// the descriptor stays open until giveBack.
func (s *fsys) borrowWritable(n *inode) *handle {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h := range n.handles {
		if h.writable {
			h.borrowers++
			return h
		}
	}
	return nil
}

// giveBack ends the use of a borrowed handle.
func (s *fsys) giveBack(h *handle) {
	s.mu.Lock()
	h.borrowers--
	last := h.released && h.borrowers == 0
	s.mu.Unlock()
	if last {
		s.closeBacking(h)
	}
}

// replyOpen tells the kernel about a handle. It keeps its cache of the file over
// opens, since nobody else writes to it.
func (s *fsys) replyOpen(out *fuse.OpenOut, h *handle) {
	out.Fh = h.id
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	if h.direct {
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
	}
}

// Open opens a regular file.
func (s *fsys) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := s.node(in.NodeId)
	if n == nil {
		return status(syscall.ESTALE)
	}
	if s.push.isOwn(in.Pid) {
		// A descriptor to push through. It needs no handle: nothing is read or written
		// with it, and handle 0 is nobody's.
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
		return fuse.OK
	}
	h, errno := s.openFile(n, in.Flags)
	if errno != 0 {
		return status(errno)
	}
	s.replyOpen(out, h)
	return fuse.OK
}

// Release ends a handle; the kernel sends it once nothing uses it any more.
func (s *fsys) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if h := s.file(in.Fh); h != nil {
		s.closeHandle(h)
	}
}

// Read reads from the backing file, spliced into the kernel where that pays: the
// descriptor is safe until RELEASE, which follows the reply.
func (s *fsys) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := s.file(in.Fh)
	if h == nil || h.direct {
		return nil, status(syscall.EBADF)
	}
	return fuse.ReadResultFd(uintptr(h.fd), int64(in.Offset), min(len(buf), int(in.Size))), fuse.OK
}

// Writev writes to the backing file.
func (s *fsys) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	h := s.file(in.Fh)
	if n := s.node(in.NodeId); h == nil && in.Fh == 0 && n != nil {
		// Pages written back through the pusher's descriptor.
		if h = s.borrowWritable(n); h != nil {
			defer s.giveBack(h)
		}
	}
	if h == nil || !h.writable {
		return 0, status(syscall.EBADF)
	}
	m := mutation{
		kind: mutateWrite, node: h.node, handle: h, off: int64(in.Offset), length: int64(in.Size),
		cacheFlushed: in.WriteFlags&fuse.WRITE_CACHE != 0,
	}
	injected := s.beforeWrite(&m)
	var written int
	errno := s.mutate(requestContext(cancel, &in.InHeader), &m, func() (errno syscall.Errno) {
		if injected != 0 {
			return injected
		}
		written, errno = writeAll(h.fd, data, int64(in.Offset))
		if written > 0 && !m.cacheFlushed {
			return 0 // a short write, as write(2) returns it
		}
		return errno
	})
	if errno != 0 {
		return 0, status(errno)
	}
	return uint32(written), fuse.OK
}

// writeAll writes all of data at off, or says how far it came and why.
func writeAll(fd int, data [][]byte, off int64) (written int, errno syscall.Errno) {
	for _, b := range data {
		for len(b) > 0 {
			n, err := unix.Pwrite(fd, b, off)
			switch {
			case err == unix.EINTR:
				continue
			case err != nil:
				return written, errnoOf(err)
			case n == 0:
				return written, syscall.EIO
			}
			written, off, b = written+n, off+int64(n), b[n:]
		}
	}
	return written, 0
}

// Flush runs at each close(2) of a descriptor, after the kernel has written back
// the file's pages.
func (s *fsys) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if in.Fh == 0 {
		return fuse.OK // the pusher's
	}
	h := s.file(in.Fh)
	if h == nil {
		return status(syscall.EBADF)
	}
	return status(s.flushed(requestContext(cancel, &in.InHeader), h))
}

// Fsync is a barrier for the whole mount (F3).
func (s *fsys) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if in.Fh == 0 {
		return fuse.OK // the pusher's
	}
	h := s.file(in.Fh)
	if h == nil {
		return status(syscall.EBADF)
	}
	return status(s.barrier(requestContext(cancel, &in.InHeader), h.node, syncKindOf(in)))
}

// syncKindOf tells fdatasync(2) from fsync(2).
func syncKindOf(in *fuse.FsyncIn) syncKind {
	const dataOnly = 1 // FUSE_FSYNC_FDATASYNC
	if in.FsyncFlags&dataOnly != 0 {
		return syncData
	}
	return syncAll
}

// Fallocate reserves or frees space of the backing file, in every mode it has.
func (s *fsys) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := s.file(in.Fh)
	if h == nil || !h.writable {
		return status(syscall.EBADF)
	}
	m := mutation{kind: mutateAllocate, node: h.node, handle: h, off: int64(in.Offset), length: int64(in.Length)}
	return status(s.mutate(requestContext(cancel, &in.InHeader), &m, func() syscall.Errno {
		return again(func() error {
			return unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length))
		})
	}))
}

// CopyFileRange copies between backing files. The kernel has written back both
// ranges before it asks, so the backing file is up to date there.
func (s *fsys) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, to := s.file(in.FhIn), s.file(in.FhOut)
	if from == nil || to == nil || from.direct || !to.writable {
		return 0, status(syscall.EBADF)
	}
	const most = 1 << 30 // the reply has 32 bits
	length := int64(min(in.Len, most))
	m := mutation{kind: mutateCopy, node: to.node, handle: to, off: int64(in.OffOut), length: length}
	var copied int
	errno := s.mutate(requestContext(cancel, &in.InHeader), &m, func() syscall.Errno {
		return again(func() (err error) {
			offIn, offOut := int64(in.OffIn), int64(in.OffOut)
			copied, err = unix.CopyFileRange(from.fd, &offIn, to.fd, &offOut, int(length), int(in.Flags))
			if err == nil {
				m.length = int64(copied) // what lies beyond was not written
			}
			return err
		})
	})
	if errno != 0 {
		return 0, status(errno)
	}
	return uint32(copied), fuse.OK
}

// Lseek finds data or a hole. The backing file does not know pages that the
// kernel still holds, so they are handed over first. Not by fsync(2): the kernel
// sends LSEEK with the inode locked, and fsync would wait for that lock for ever.
// With ENOSYS the kernel stops asking, and takes all of a file for data.
func (s *fsys) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := s.file(in.Fh)
	if h == nil {
		return status(syscall.EBADF)
	}
	if s.pushMode == pushFsync && s.push.isWritten(h.node) {
		return status(syscall.ENOSYS)
	}
	s.pushOne(requestContext(cancel, &in.InHeader), h.node)
	off, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
	if err != nil {
		return status(errnoOf(err))
	}
	out.Offset = uint64(off)
	return fuse.OK
}
