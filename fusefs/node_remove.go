package fusefs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Unlink removes a name of anything but a folder.
func (s *fsys) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return s.remove(cancel, in, mutateUnlink, name, 0)
}

// Rmdir removes an empty folder.
func (s *fsys) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return s.remove(cancel, in, mutateRmdir, name, unix.AT_REMOVEDIR)
}

func (s *fsys) remove(cancel <-chan struct{}, in *fuse.InHeader, kind mutationKind, name string, flags int) fuse.Status {
	dir := s.node(in.NodeId)
	if dir == nil {
		return status(syscall.ESTALE)
	}
	old, errno := s.known(dir, name)
	if errno != 0 {
		return status(errno)
	}
	defer s.unref(old, 1)
	m := mutation{kind: kind, dir: dir, name: name, replaced: old}
	return status(s.mutate(requestContext(cancel, in), &m, func() syscall.Errno {
		if errno := again(func() error { return unix.Unlinkat(dir.fd, name, flags) }); errno != 0 {
			return errno
		}
		s.mu.Lock()
		s.unlinkLocked(dir, name)
		dir.changes++
		s.mu.Unlock()
		return 0
	}))
}

// known returns dir/name with one more reference, asking the disk only for what
// is not known yet.
func (s *fsys) known(dir *inode, name string) (*inode, syscall.Errno) {
	s.mu.Lock()
	n := dir.children[name]
	if n != nil {
		n.refs++
	}
	s.mu.Unlock()
	if n != nil {
		return n, 0
	}
	var st unix.Stat_t
	return s.child(dir, name, &st)
}

// Rename moves a name, over another or in exchange with it.
func (s *fsys) Rename(cancel <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	dir, newDir := s.node(in.NodeId), s.node(in.Newdir)
	if dir == nil || newDir == nil {
		return status(syscall.ESTALE)
	}
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return status(syscall.EINVAL) // RENAME_WHITEOUT belongs to overlayfs
	}
	if errno := s.checkName(newDir, newName); errno != 0 {
		return status(errno)
	}
	n, errno := s.known(dir, name)
	if errno != 0 {
		return status(errno)
	}
	defer s.unref(n, 1)
	replaced, errno := s.known(newDir, newName)
	if errno != 0 && errno != syscall.ENOENT {
		return status(errno)
	}
	if replaced != nil {
		defer s.unref(replaced, 1)
	}
	m := mutation{
		kind: mutateRename, node: n, dir: dir, name: name,
		newDir: newDir, newName: newName, replaced: replaced,
	}
	if in.Flags&unix.RENAME_EXCHANGE != 0 {
		m.kind = mutateExchange
	}
	return status(s.mutate(requestContext(cancel, &in.InHeader), &m, func() syscall.Errno {
		errno := again(func() error {
			return unix.Renameat2(dir.fd, name, newDir.fd, newName, uint(in.Flags))
		})
		if errno == 0 {
			s.renamed(&m)
		}
		return errno
	}))
}

// renamed records what a rename did to the names.
func (s *fsys) renamed(m *mutation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unlinkLocked(m.newDir, m.newName)
	s.unlinkLocked(m.dir, m.name)
	s.linkLocked(m.newDir, m.newName, m.node)
	if m.kind == mutateExchange {
		s.linkLocked(m.dir, m.name, m.replaced)
	}
	m.dir.changes++
	m.newDir.changes++
}
