package fusefs

import (
	"context"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// mutationKind says what a request changes.
type mutationKind uint8

const (
	mutateWrite    mutationKind = iota + 1 // bytes [off, off+length) of node
	mutateTruncate                         // the size of node becomes length
	mutateAllocate                         // fallocate(2) on [off, off+length) of node
	mutateCopy                             // copy_file_range(2) into [off, off+length) of node
	mutateAttr                             // mode, owner or times of node
	mutateCreate                           // dir/name becomes a new regular file
	mutateTmpfile                          // a new regular file without a name in dir
	mutateMkdir                            // dir/name becomes a new folder
	mutateSymlink                          // dir/name becomes a new symbolic link
	mutateMknod                            // dir/name becomes a new special or regular file
	mutateLink                             // node gets the name newDir/newName
	mutateUnlink                           // dir/name, which was replaced, goes
	mutateRmdir                            // the folder dir/name, which was replaced, goes
	mutateRename                           // node moves from dir/name to newDir/newName, over replaced if not nil
	mutateExchange                         // node at dir/name and replaced at newDir/newName change places
)

// mutation describes one change of the backing directory. Inodes in it are held
// by references until mutate returns.
type mutation struct {
	kind         mutationKind
	node         *inode // what changes; for new objects nil until applied
	dir          *inode // folder and name that change
	name         string
	newDir       *inode // the second folder and name, of rename and link
	newName      string
	replaced     *inode // what loses the name
	off, length  int64
	handle       *handle // through which, or nil
	cacheFlushed bool    // a WRITE of the kernel's cache: nobody waits for its result
}

// namesOnly reports whether m moves names of inodes and changes nothing in them. Then
// a name that it does not touch shows what it showed, and the names that were never
// looked up need not be found: that takes a walk of the whole tree, and removing a
// copy made of n hard links would take n of them.
func (m *mutation) namesOnly() bool { return m.kind >= mutateLink }

// mutate applies one mutation: its marks are durable first (F2, J1), a cut is
// either before it or after it (S1), and apply runs with the gate held open.
//
// The marks are made outside the gate, so no cut waits for the journal's disk. A
// cut that came between makes them worthless, since they carry the number of the
// cut before (J2): then they are made again.
func (s *fsys) mutate(ctx context.Context, m *mutation, apply func() syscall.Errno) syscall.Errno {
	for {
		cut := s.cutNumber.Load()
		if errno := s.mark(cut, m); errno != 0 {
			if m.cacheFlushed { // write(2) has said yes already
				s.sync.recordFailure(m.node, m.off, m.off+m.length, errno)
			}
			return errno
		}
		s.gate.enter(ctx)
		if s.cutNumber.Load() != cut {
			s.gate.leave()
			continue
		}
		s.views.before(m)
		s.touch.before(m)
		s.undo.before(m)
		errno := apply()
		s.busy.after(m, errno)
		s.sync.after(m, errno)
		s.lastMutation.Store(s.now().UnixNano())
		s.gate.leave()
		if errno == 0 && m.kind == mutateTruncate {
			errno = s.hitNames("fusefs/truncated/", m.node)
		}
		return errno
	}
}

// mark makes every path that m touches durable in the journal, if it was not yet
// since the cut. It is EIO, and nothing may be applied, where that fails.
func (s *fsys) mark(cut uint64, m *mutation) syscall.Errno {
	var need []string
	inodes := [...]*inode{m.node, m.replaced}
	for i, n := range inodes {
		if n == nil || n.markedCut.Load() == cut {
			inodes[i] = nil
			continue
		}
		if m.namesOnly() {
			inodes[i] = nil // a later write to it still marks all its names
			need = append(need, s.paths(n)...)
			continue
		}
		need = append(need, s.everyPath(n)...)
	}
	for _, l := range [...]link{{m.dir, m.name}, {m.newDir, m.newName}} {
		if l.dir == nil || l.name == "" {
			continue
		}
		if p, ok := s.pathAt(l.dir, l.name); ok {
			need = append(need, p)
		}
		// A folder without a path was removed: nothing can be made in it.
	}
	need = s.marks.missing(cut, need)
	if len(need) > 0 {
		if err := s.opts.Recorder.Mark(cut, need...); err != nil {
			if !s.markFailed.Swap(true) {
				s.log.Error("the journal cannot record changes: refusing them until it can", "paths", need, "error", err)
			}
			return syscall.EIO
		}
		s.markFailed.Store(false)
		s.marks.add(cut, need)
	}
	for _, n := range inodes {
		if n != nil {
			n.markedCut.Store(cut)
		}
	}
	return 0
}

// everyPath returns all paths of n. Names that the kernel never looked up are
// found by walking the tree, which only files with several links need; where a
// name cannot be found, the mark on "." covers it.
func (s *fsys) everyPath(n *inode) []string {
	known := s.paths(n)
	var st unix.Stat_t
	if errno := n.stat(&st); errno != 0 {
		return []string{"."}
	}
	switch {
	case n.isDir() && len(known) > 0, st.Nlink == 0:
		return known
	case !n.isDir() && uint64(len(known)) >= uint64(st.Nlink):
		return known
	case n.isDir():
		return []string{"."}
	}
	found, err := s.findNames(n.key)
	if err != nil || uint64(len(found)) < uint64(st.Nlink) {
		// Unreadable, or moved while the walk went on, or linked from .chromafs.
		return append(known, ".")
	}
	return found
}

// markSet remembers which paths were marked since the last cut.
type markSet struct {
	mu    sync.Mutex
	cut   uint64              // the cut that paths belong to
	paths map[string]struct{} // marked durably
}

// missing returns those of paths that are not marked in this cut yet. A mark on a
// folder covers what is below it, as in the journal.
func (k *markSet) missing(cut uint64, paths []string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cut != cut {
		return paths
	}
	var need []string
	for _, p := range paths {
		if !k.coversLocked(p) {
			need = append(need, p)
		}
	}
	return need
}

func (k *markSet) coversLocked(p string) bool {
	for {
		if _, ok := k.paths[p]; ok {
			return true
		}
		i := strings.LastIndexByte(p, '/')
		if i < 0 {
			break
		}
		p = p[:i]
	}
	_, ok := k.paths["."]
	return ok
}

// add records that paths are marked, unless a cut came between.
func (k *markSet) add(cut uint64, paths []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if cut > k.cut || k.paths == nil {
		k.cut, k.paths = cut, map[string]struct{}{}
	}
	if cut == k.cut {
		for _, p := range paths {
			k.paths[p] = struct{}{}
		}
	}
}
