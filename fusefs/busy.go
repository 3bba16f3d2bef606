package fusefs

import (
	"context"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/failpoint"
)

// This file is all that fusefs knows of databases: when one is in the middle of
// something that a snapshot should not cut through.
//
// A SQLite database in a rollback-journal mode is busy while its journal is hot:
// it has a header, and was synced or the database was written since it began,
// until it is unlinked, truncated or its header zeroed. If no process has the database
// open for writing any more, that is no reason to wait: nothing will change until
// somebody opens it and rolls it back. (SQLite closes a journal before it unlinks it:
// of several databases in one transaction, some are committed then and some not.) In
// WAL mode no moment is bad: the frames carry their own consistency.
//
// A segment folder of ChromaDB, which is one that holds a pickle, is busy from a
// create, write or truncate of any of its files until the pickle is flushed. If
// instead the last writable handle in it is closed, the writer died: nobody will
// finish, so nobody waits, but a view of it is not quiescent (torn).

const (
	pickleName    = "index_metadata.pickle"
	journalSuffix = "-journal"
	shmSuffix     = "-shm"
	journalMagic  = "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
)

// nameKey is a name in a folder.
type nameKey struct {
	dir  inodeKey
	name string
}

// journalState is what is known of a database's rollback journal. The zero value
// is that of one that was just created.
type journalState struct {
	exists    bool
	live      bool // has a header: SQLite would roll it back
	synced    bool // since it began: the database may change from now on
	dbWritten bool // the database was written since the journal began
}

// begun resets what belongs to one transaction.
func (j *journalState) begun() { *j = journalState{exists: j.exists} }

func (j *journalState) hot() bool { return j.exists && j.live && (j.synced || j.dbWritten) }

type segmentState struct {
	known bool // whether there is a pickle was looked up
	live  bool // there is a pickle
	busy  bool
	torn  bool // left in the middle
}

// busyTracker watches the mutations, FSYNCs, FLUSHes and RELEASEs.
//
// Locks: mu is taken inside the gate (after) and outside of it, and before
// fsys.mu. Under it only the first look at a name costs a system call.
type busyTracker struct {
	s *fsys

	mu       sync.Mutex
	journals map[nameKey]*journalState // by the database's name
	segments map[inodeKey]*segmentState
	changes  uint64        // mutations that a cut must not fall between a push and
	relaxed  chan struct{} // closed when something may have come to rest
}

func newBusyTracker(s *fsys) *busyTracker {
	return &busyTracker{
		s: s, journals: map[nameKey]*journalState{}, segments: map[inodeKey]*segmentState{}, relaxed: make(chan struct{}),
	}
}

// after takes note of a mutation that was applied. It runs inside the gate.
func (b *busyTracker) after(m *mutation, errno syscall.Errno) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if errno != 0 && m.kind != mutateWrite {
		return
	}
	counts := m.kind != mutateAttr // see attributesSet
	switch m.kind {
	case mutateWrite, mutateTruncate, mutateAllocate, mutateCopy:
		counts = b.contentLocked(m)
	case mutateCreate, mutateMknod:
		counts = b.appearedLocked(m.dir, m.name, true)
	case mutateLink:
		m.node.syncedByOwner.Store(false)
		b.appearedLocked(m.newDir, m.newName, false)
	case mutateUnlink:
		counts = b.vanishedLocked(m.dir, m.name)
	case mutateRename, mutateExchange:
		m.node.syncedByOwner.Store(false)
		if m.replaced != nil {
			m.replaced.syncedByOwner.Store(false)
		}
		b.vanishedLocked(m.dir, m.name)
		b.vanishedLocked(m.newDir, m.newName)
		b.appearedLocked(m.newDir, m.newName, false)
		if m.kind == mutateExchange {
			b.appearedLocked(m.dir, m.name, false)
		}
	case mutateRmdir:
		delete(b.segments, m.replaced.key)
	}
	if counts {
		b.changes++
	}
}

// attributesSet is told, inside the gate, that an application set a mode, an owner or
// times: a view that shows that shows what was written before.
func (b *busyTracker) attributesSet() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changes++
}

// contentLocked handles a change of a file's bytes and reports whether a cut may
// not fall between a push and it.
func (b *busyTracker) contentLocked(m *mutation) (counts bool) {
	for _, l := range b.s.links(m.node) {
		if b.nameLocked(m, l) {
			counts = true
		}
	}
	return counts // a file without a name is in no view
}

func (b *busyTracker) nameLocked(m *mutation, l link) (counts bool) {
	b.touchedLocked(l.dir)
	if base, ok := strings.CutSuffix(l.name, journalSuffix); ok {
		j := b.journalLocked(l.dir, base)
		written := j.dbWritten
		j.exists = true
		switch {
		case m.kind == mutateTruncate && m.length == 0:
			j.begun()
			b.relaxedLocked()
		case m.kind == mutateWrite && m.off == 0:
			if live := journalIsLive(l.dir, l.name); live != j.live {
				j.live = live
				if !live { // zeroed: the transaction is over
					j.begun()
					b.relaxedLocked()
				}
			}
		}
		// While the database is untouched a view leaves its journal out.
		return written
	}
	if strings.HasSuffix(l.name, shmSuffix) {
		return false // rebuilt from the log at the next start
	}
	if j := b.journalLocked(l.dir, l.name); j.exists {
		j.dbWritten = true
	}
	return true
}

// appearedLocked handles a new name. fresh says that the file is new and empty.
func (b *busyTracker) appearedLocked(dir *inode, name string, fresh bool) (counts bool) {
	if name == pickleName {
		delete(b.segments, dir.key) // looked up anew
	}
	if fresh {
		b.touchedLocked(dir)
	}
	base, ok := strings.CutSuffix(name, journalSuffix)
	if !ok {
		delete(b.journals, nameKey{dir.key, name}) // of another file of this name: looked up anew
		return true
	}
	key := nameKey{dir.key, base}
	if fresh {
		b.journals[key] = &journalState{exists: true}
		return false
	}
	delete(b.journals, key)
	b.journalLocked(dir, base)
	return true
}

// vanishedLocked handles a name that is gone.
func (b *busyTracker) vanishedLocked(dir *inode, name string) (counts bool) {
	if name == pickleName {
		b.segments[dir.key] = &segmentState{known: true}
		b.relaxedLocked()
	}
	base, ok := strings.CutSuffix(name, journalSuffix)
	if !ok {
		delete(b.journals, nameKey{dir.key, name})
		return true
	}
	counts = b.journalLocked(dir, base).dbWritten
	b.journals[nameKey{dir.key, base}] = &journalState{}
	b.relaxedLocked()
	return counts
}

// touchedLocked handles a change of a file in a folder.
func (b *busyTracker) touchedLocked(dir *inode) {
	if g := b.segmentLocked(dir); g.live {
		g.busy, g.torn = true, false
	}
}

// isSegment reports whether a folder is a segment: it holds a pickle.
func (b *busyTracker) isSegment(dir *inode) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.segmentLocked(dir).live
}

func (b *busyTracker) segmentLocked(dir *inode) *segmentState {
	g := b.segments[dir.key]
	if g == nil {
		g = &segmentState{}
		b.segments[dir.key] = g
	}
	if !g.known {
		g.known = true
		g.live = unix.Faccessat(dir.fd, pickleName, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil
	}
	return g
}

// journalLocked returns the state of a database's journal. One that was there
// before anything was seen of it may be in any state.
func (b *busyTracker) journalLocked(dir *inode, base string) *journalState {
	key := nameKey{dir.key, base}
	j := b.journals[key]
	if j == nil {
		j = &journalState{}
		b.journals[key] = j
		if unix.Faccessat(dir.fd, base+journalSuffix, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil {
			*j = journalState{exists: true, live: journalIsLive(dir, base+journalSuffix), synced: true, dbWritten: true}
		}
	}
	return j
}

// journalIsLive reports whether a journal has a header. One that cannot be read
// counts as live.
func journalIsLive(dir *inode, name string) bool {
	fd, errno := openat(dir.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errno != 0 {
		return errno != syscall.ENOENT
	}
	defer unix.Close(fd)
	head := make([]byte, len(journalMagic))
	n, err := unix.Pread(fd, head, 0)
	return err != nil || string(head[:n]) == journalMagic
}

// fsync handles the arrival of an FSYNC. A journal that is synced is left out of
// other barriers from then on: SQLite syncs what it appends before it changes the
// database, nobody else needs it, and to make the kernel hand over the pages of a
// file that lives for a millisecond takes six requests.
func (b *busyTracker) fsync(n *inode) {
	if !n.isFile() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.s.links(n) {
		if base, ok := strings.CutSuffix(l.name, journalSuffix); ok {
			b.journalLocked(l.dir, base).synced = true
			n.syncedByOwner.Store(true)
		}
	}
}

// flushed runs on FLUSH, before it is answered. The FLUSH of a pickle ends a
// persist: what the kernel still holds of the segment's other files comes down
// first. So a later WRITE to one of them is a new persist, and the vectors are
// here before SQLite can commit that they are.
func (s *fsys) flushed(_ context.Context, h *handle) syscall.Errno {
	errno := s.sync.failureOf(h.node)
	if !h.writable {
		return errno
	}
	for _, dir := range s.busy.pickleFolders(h.node) {
		var steps []pushStep
		for _, n := range s.writtenIn(dir) {
			if n != h.node && !failpoint.Off("fusefs/pickle-push") {
				steps = append(steps, pushStep{node: n})
			}
		}
		pushed := s.push.run(steps...)
		if pushed == 0 {
			s.undo.persisted(dir)
		}
		s.busy.persisted(dir)
		if errno == 0 {
			errno = pushed
		}
	}
	s.push.drop(h.node)
	return errno
}

// pickleFolders returns the folders in which n is the pickle.
func (b *busyTracker) pickleFolders(n *inode) (dirs []*inode) {
	for _, l := range b.s.links(n) {
		if l.name == pickleName {
			dirs = append(dirs, l.dir)
		}
	}
	return dirs
}

// persisted ends the busy time of a segment.
func (b *busyTracker) persisted(dir *inode) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if g := b.segments[dir.key]; g != nil {
		g.busy, g.torn = false, false
		b.relaxedLocked()
	}
}

// released handles the end of a handle, after it was taken off n.
func (b *busyTracker) released(n *inode, writable bool) {
	if !writable || !n.isFile() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.s.links(n) {
		if g := b.segments[l.dir.key]; g != nil && g.busy && len(b.s.writtenIn(l.dir)) == 0 {
			g.busy, g.torn = false, true
		}
	}
	b.relaxedLocked() // a hot journal may have lost its last writer
}

func (b *busyTracker) relaxedLocked() {
	close(b.relaxed)
	b.relaxed = make(chan struct{})
}

// rest is how far the databases are from rest.
type rest struct {
	hot     int           // databases in the middle of a transaction
	busy    int           // segments in the middle of a persist
	torn    int           // segments left in the middle of one
	changes uint64        // grows with every mutation that counts
	relaxed chan struct{} // closed when hot or busy may have become less
}

// look tells how far the databases are from rest.
func (b *busyTracker) look() rest {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := rest{changes: b.changes, relaxed: b.relaxed}
	for key, j := range b.journals {
		if j.hot() && b.s.hasWriter(key.dir, key.name) {
			r.hot++
		}
	}
	for _, g := range b.segments {
		if g.busy {
			r.busy++
		}
		if g.torn {
			r.torn++
		}
	}
	return r
}

// needless returns the names of the journals whose database was not written since
// they began: a view is the same without them, and SQLite has nothing to undo.
func (b *busyTracker) needless() map[nameKey]struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	names := map[nameKey]struct{}{}
	for key, j := range b.journals {
		if j.exists && !j.dbWritten {
			names[nameKey{key.dir, key.name + journalSuffix}] = struct{}{}
		}
	}
	return names
}

// links returns the known names of n.
func (s *fsys) links(n *inode) []link {
	s.mu.RLock()
	defer s.mu.RUnlock()
	links := make([]link, 0, len(n.names))
	for l := range n.names {
		links = append(links, l)
	}
	return links
}

// writtenIn returns the files of a folder that are open for writing. They are safe
// to use as long as those handles are.
func (s *fsys) writtenIn(dir *inode) (files []*inode) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, n := range dir.children {
		if n.writable > 0 {
			files = append(files, n)
		}
	}
	return files
}

// hasWriter reports whether a name's file is open for writing.
func (s *fsys) hasWriter(dir inodeKey, name string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	d := s.inodes[dir]
	return d != nil && d.children[name] != nil && d.children[name].writable > 0
}
