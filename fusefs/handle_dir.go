package fusefs

import (
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
)

// dirHandle is an open folder. Its offsets are those of the backing folder, so
// they stay good while entries come and go, and over seekdir(3).
type dirHandle struct {
	node *inode
	fd   int

	mu      sync.Mutex
	next    uint64 // offset of the entry at the start of pending
	pending []byte // entries read and not sent yet
	buf     []byte
}

// OpenDir opens a folder for reading.
func (s *fsys) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := s.node(in.NodeId)
	if n == nil {
		return status(syscall.ESTALE)
	}
	fd, errno := n.open(unix.O_RDONLY | unix.O_DIRECTORY)
	if errno != 0 {
		return status(errno)
	}
	h := &dirHandle{node: n, fd: fd, buf: make([]byte, 32<<10)}
	s.mu.Lock()
	out.Fh = s.nextHandle
	s.nextHandle++
	s.folders[out.Fh] = h
	n.refs++
	s.mu.Unlock()
	return fuse.OK
}

// ReleaseDir ends a handle.
func (s *fsys) ReleaseDir(in *fuse.ReleaseIn) {
	s.mu.Lock()
	h := s.folders[in.Fh]
	delete(s.folders, in.Fh)
	s.mu.Unlock()
	if h == nil {
		return
	}
	unix.Close(h.fd)
	s.unref(h.node, 1)
}

func (s *fsys) folder(fh uint64) *dirHandle {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.folders[fh]
}

// FsyncDir is a barrier for the whole mount (F3).
func (s *fsys) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := s.folder(in.Fh)
	if h == nil {
		return status(syscall.EBADF)
	}
	return status(s.barrier(requestContext(cancel, &in.InHeader), h.node, syncKindOf(in)))
}

// ReadDir lists names.
func (s *fsys) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(in, out, func(e *fuse.DirEntry) bool { return out.AddDirEntry(*e) })
}

// ReadDirPlus lists names and looks each of them up.
func (s *fsys) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir := s.node(in.NodeId)
	if dir == nil {
		return status(syscall.ESTALE)
	}
	return s.list(in, out, func(e *fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(*e)
		if entry == nil {
			return false
		}
		if e.Name == "." || e.Name == ".." {
			return true
		}
		// An entry that cannot be looked up, or went meanwhile, is listed only.
		var st unix.Stat_t
		if n, errno := s.child(dir, e.Name, &st); errno == 0 {
			replyEntry(entry, n, &st)
			out.FixMode(st.Mode)
		}
		return true
	})
}

// list passes entries from in.Offset on to add, until it has no room.
func (s *fsys) list(in *fuse.ReadIn, out *fuse.DirEntryList, add func(*fuse.DirEntry) bool) fuse.Status {
	h := s.folder(in.Fh)
	if h == nil {
		return status(syscall.EBADF)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if in.Offset != h.next || in.Offset == 0 {
		if _, err := unix.Seek(h.fd, int64(in.Offset), unix.SEEK_SET); err != nil {
			return status(errnoOf(err))
		}
		h.next, h.pending = in.Offset, nil
	}
	for {
		if len(h.pending) == 0 {
			n, err := unix.Getdents(h.fd, h.buf)
			if err == unix.EINTR {
				continue
			}
			if err != nil && out.Offset == in.Offset {
				return status(errnoOf(err))
			}
			if err != nil || n == 0 {
				return fuse.OK // an error comes again with the next request
			}
			h.pending = h.buf[:n]
		}
		var e fuse.DirEntry
		size := e.Parse(h.pending)
		hidden := h.node == s.rootNode && (e.Name == datadir.StateName || e.Ino == s.state.ino)
		if !hidden && !add(&e) {
			return fuse.OK
		}
		h.pending, h.next = h.pending[size:], e.Off
	}
}
