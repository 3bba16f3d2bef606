package fusefs

import (
	"context"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/failpoint"
)

const (
	// syncEach is how many changed files a barrier syncs one by one. Beyond, one
	// syncfs of the backing file system is twice as fast (measured), but also
	// writes what other programs have there.
	syncEach     = 64
	syncParallel = 4
)

// syncState knows what has to be done before an FSYNC may be answered: which
// backing files and folders changed since they were synced last, and which data
// the backing directory refused after write(2) had said yes (F3).
//
// Barriers that come while one is at work share the next one.
//
// Locks: mu is taken inside the gate (after) and outside of it, and before
// fsys.mu; nothing blocks under it.
type syncState struct {
	s *fsys

	mu      sync.Mutex
	changed map[*inode]struct{} // files and folders, each held by a reference
	all     bool                // too many: everything on the root's file system
	failed  map[*inode]*failures
	running bool          // a barrier is at work
	next    *barrierBatch // joined by those who came meanwhile; nil: none yet
}

// barrierBatch is one barrier and who shares it.
type barrierBatch struct {
	nodes map[*inode]syncKind // whose FSYNC asked, and how much of each to sync
	done  chan struct{}
	errno syscall.Errno
}

type syncKind uint8

const (
	syncData syncKind = iota // fdatasync(2)
	syncAll                  // fsync(2)
)

func newSyncState(s *fsys) *syncState {
	return &syncState{s: s, changed: map[*inode]struct{}{}, failed: map[*inode]*failures{}}
}

// barrier answers FSYNC and FSYNCDIR of n: when it returns 0, everything written
// before, in any file, is on disk (F3). The kernel has handed over n's own pages.
func (s *fsys) barrier(_ context.Context, n *inode, kind syncKind) syscall.Errno {
	s.push.fsyncBegins(n)
	defer s.push.fsyncEnds(n)
	s.busy.fsync(n)

	y := s.sync
	y.mu.Lock()
	if y.next == nil {
		y.next = &barrierBatch{nodes: map[*inode]syncKind{}, done: make(chan struct{})}
	}
	b := y.next
	b.nodes[n] = max(b.nodes[n], kind)
	lead := !y.running
	if lead {
		y.running, y.next = true, nil
	}
	y.mu.Unlock()
	if lead {
		y.lead(b)
	}
	<-b.done
	return b.errno
}

// lead carries out a barrier and sees to the one that gathered meanwhile.
func (y *syncState) lead(b *barrierBatch) {
	b.errno = y.run(b)
	close(b.done)
	y.mu.Lock()
	defer y.mu.Unlock()
	if next := y.next; next != nil {
		y.next = nil
		go y.lead(next)
		return
	}
	y.running = false
}

// run carries out a barrier. While the kernel hands over what it caches of other
// files, which takes two changes of threads even if that is nothing, what is here
// already is synced; then what has come. Not while there is an undo log, whose order
// matters more (undo.go).
func (y *syncState) run(b *barrierBatch) syscall.Errno {
	var push *pushJob
	if !failpoint.Off("fusefs/barrier-push") {
		push = y.s.push.begin(b.handedOver(y.s.pushMode))
	}
	nodes, early := b.nodes, syscall.Errno(0)
	if push != nil && y.s.undo.none() {
		_, early = y.settle(nodes, 0)
		nodes = nil
	}
	pushed := push.wait()
	trouble := firstErrno(y.failure(b.nodes), pushed, early)
	settled, late := y.settle(nodes, trouble)
	if errno := firstErrno(y.failure(b.nodes), trouble, late); errno != 0 {
		return errno
	}
	y.s.undo.end(settled)
	return 0
}

// handedOver returns which inodes' pages the kernel has handed over already: whose
// FSYNC this is, and journals that their owners sync. Of several that share a barrier
// one may have been stored to through a memory map since its FSYNC was sent, so all
// are pushed, unless that would wait for the very FSYNC.
func (b *barrierBatch) handedOver(mode pushMode) func(*inode) bool {
	return func(n *inode) bool {
		_, asked := b.nodes[n]
		return asked && (len(b.nodes) == 1 || mode == pushFsync) || n.syncedByOwner.Load()
	}
}

func firstErrno(all ...syscall.Errno) syscall.Errno {
	for _, errno := range all {
		if errno != 0 {
			return errno
		}
	}
	return 0
}

// settle syncs what changed, and nodes: first the undo logs, then, if there is no
// trouble, segments whose persists are over and the end of their logs, which it
// returns, and then what may rely on those.
func (y *syncState) settle(nodes map[*inode]syncKind, trouble syscall.Errno) (settled []*undoLog, errno syscall.Errno) {
	complete, errno := y.s.undo.sync()
	if err := failpoint.Hit("fusefs/barrier"); err != nil {
		return nil, errnoOf(err)
	}
	if trouble == 0 && errno == 0 {
		for _, g := range complete {
			if err := y.s.undo.settle(g); err != nil {
				y.s.log.Error("a persist could not be made durable", "paths", y.s.paths(g.dir), "error", err)
				return nil, errnoOf(err)
			}
		}
		settled = complete
	}
	return settled, firstErrno(errno, y.syncChanged(nodes))
}

// syncFolder syncs the files of a folder that are known, and the folder, as far as
// they are not on disk.
func (y *syncState) syncFolder(dir *inode) syscall.Errno {
	y.s.mu.Lock()
	files := make([]*inode, 0, len(dir.children))
	for _, n := range dir.children {
		n.refs++
		files = append(files, n)
	}
	y.s.mu.Unlock()
	var first syscall.Errno
	for _, n := range files {
		if n.isFile() && !n.onDisk(syncData) {
			first = firstErrno(first, y.syncOne(n, syncData))
		}
		y.s.unref(n, 1)
	}
	if first == 0 && !dir.onDisk(syncAll) {
		first = y.syncOne(dir, syncAll)
	}
	return first
}

// syncChanged syncs what changed, and those of nodes that are not on disk already.
func (y *syncState) syncChanged(nodes map[*inode]syncKind) syscall.Errno {
	y.mu.Lock()
	changed, all := y.changed, y.all
	y.changed, y.all = map[*inode]struct{}{}, false
	y.mu.Unlock()
	type work struct {
		n    *inode
		kind syncKind
		held bool // by a reference of y.changed
	}
	var list []work
	for n := range changed {
		kind, asked := nodes[n]
		if !asked && failpoint.Off("fusefs/barrier-sync") { // as a bare disk
			y.s.unref(n, 1)
			continue
		}
		if n.isDir() {
			kind = syncAll
		}
		if n.onDisk(kind) { // as part of a persist
			y.s.unref(n, 1)
			continue
		}
		list = append(list, work{n, kind, true})
	}
	for n, kind := range nodes {
		if _, ok := changed[n]; !ok && !n.onDisk(kind) {
			list = append(list, work{n, kind, false})
		}
	}
	var first errnoOnce
	if all {
		if errno := again(func() error { return unix.Syncfs(int(y.s.root.Fd())) }); errno != 0 {
			y.s.log.Error("syncing the backing file system failed", "error", errno)
			first.set(errno)
			y.mu.Lock()
			y.all = true
			y.mu.Unlock()
		}
	}
	queue := make(chan work, len(list))
	for _, w := range list {
		queue <- w
	}
	close(queue)
	var wg sync.WaitGroup
	each := func() {
		for w := range queue {
			first.set(y.syncOne(w.n, w.kind))
			if w.held {
				y.s.unref(w.n, 1)
			}
		}
	}
	for range min(syncParallel, len(list)) - 1 {
		wg.Go(each)
	}
	each()
	wg.Wait()
	return first.get()
}

// syncOne syncs a backing file or folder. What could not be synced is lost for
// later attempts too (the kernel reports it once), so it counts as a failed write.
func (y *syncState) syncOne(n *inode, kind syncKind) syscall.Errno {
	if !n.isFile() && !n.isDir() {
		return 0
	}
	var st unix.Stat_t
	if errno := n.stat(&st); errno != 0 {
		return errno
	}
	if st.Nlink == 0 {
		return 0 // no crash will show it
	}
	seen := n.mutations.Load()
	err := failpoint.Hit("fusefs/sync")
	errno := errnoOf(err)
	if err == nil {
		errno = syncBacking(n, kind)
	}
	if errno == syscall.EACCES || errno == syscall.EPERM { // an ordinary user's daemon and a file nobody may open
		errno = again(func() error { return unix.Syncfs(int(y.s.root.Fd())) })
	}
	if errno == 0 {
		n.synced[kind].Store(seen)
	}
	if errno == 0 || errno == syscall.ENOENT { // a folder that was removed meanwhile
		return 0
	}
	y.s.log.Error("syncing a backing file failed: its data may be lost", "paths", y.s.paths(n), "error", errno)
	if n.isDir() {
		y.mu.Lock()
		y.changedLocked(n)
		y.mu.Unlock()
	} else {
		y.recordFailure(n, 0, maxOffset, errno)
	}
	return errno
}

func syncBacking(n *inode, kind syncKind) syscall.Errno {
	fd, errno := n.open(unix.O_RDONLY)
	if errno != 0 {
		return errno
	}
	defer unix.Close(fd)
	if kind == syncAll {
		return again(func() error { return unix.Fsync(fd) })
	}
	return again(func() error { return unix.Fdatasync(fd) })
}

// onDisk reports whether everything of n was synced that kind asks for: then there
// is nothing to do for an fsync, where the backing file system would still send the
// disk a flush.
func (n *inode) onDisk(kind syncKind) bool {
	now := n.mutations.Load()
	return n.synced[syncAll].Load() == now || kind == syncData && n.synced[syncData].Load() == now
}

// after notes what a mutation leaves to be synced. It runs inside the gate.
func (y *syncState) after(m *mutation, errno syscall.Errno) {
	for _, n := range []*inode{m.node, m.dir, m.newDir, m.replaced} {
		if n != nil {
			n.mutations.Add(1)
		}
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	switch {
	case errno != 0:
		if m.kind != mutateWrite {
			return
		}
		if m.cacheFlushed {
			y.recordFailureLocked(m.node, m.off, m.off+m.length, errno)
		}
		y.changedLocked(m.node) // a part may have been written
	case m.kind == mutateAttr:
		return // no data; who wants it on disk syncs that very file
	case m.kind == mutateWrite || m.kind == mutateCopy:
		y.writtenLocked(m.node, m.off, m.off+m.length)
		y.changedLocked(m.node)
	case m.kind == mutateTruncate:
		y.writtenLocked(m.node, m.length, maxOffset)
		y.changedLocked(m.node)
	case m.kind == mutateAllocate:
		y.changedLocked(m.node)
	default:
		for _, n := range []*inode{m.node, m.dir, m.newDir} {
			if n != nil {
				y.changedLocked(n)
			}
		}
		if m.replaced != nil {
			y.dropGoneLocked(m.replaced)
		}
	}
}

// dropGoneLocked lets go of a file that has no name any more: no crash will show
// it, and a reference would keep its space on the disk.
func (y *syncState) dropGoneLocked(n *inode) {
	if _, ok := y.changed[n]; !ok {
		return
	}
	var st unix.Stat_t
	if n.stat(&st) == 0 && (st.Nlink == 0 || n.isDir() && st.Nlink < 2) {
		delete(y.changed, n)
		y.s.unref(n, 1)
	}
}

// changedLocked adds n to what has to be synced.
func (y *syncState) changedLocked(n *inode) {
	here := n.key.dev == y.s.rootNode.key.dev
	if _, ok := y.changed[n]; ok || (y.all && here) || !(n.isFile() || n.isDir()) {
		return
	}
	if len(y.changed) >= syncEach && here {
		y.all = true
		for c := range y.changed {
			if c.key.dev == n.key.dev {
				delete(y.changed, c)
				defer y.s.unref(c, 1)
			}
		}
		return
	}
	y.s.ref(n)
	y.changed[n] = struct{}{}
}

// released forgets the failed writes of a file that nobody has open any more, and
// the file itself if it is gone.
func (y *syncState) released(n *inode) {
	y.s.mu.RLock()
	open := len(n.handles)
	y.s.mu.RUnlock()
	if open > 0 {
		return
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	delete(y.failed, n)
	y.dropGoneLocked(n)
}

// beforeWrite is where a test delays a WRITE, or has it fail as if the backing
// directory had refused it: any, or any of a file of some name.
func (s *fsys) beforeWrite(m *mutation) syscall.Errno {
	if err := failpoint.Hit("fusefs/write"); err != nil {
		return errnoOf(err)
	}
	if errno := s.hitNames("fusefs/write/", m.node); errno != 0 {
		return errno
	}
	if hook := s.onWrite.Load(); hook != nil {
		return (*hook)(m)
	}
	return 0
}

// hitNames reaches the failpoint of each name of a file.
func (s *fsys) hitNames(point string, n *inode) syscall.Errno {
	if !failpoint.Enabled {
		return 0
	}
	for _, l := range s.links(n) {
		if err := failpoint.Hit(point + l.name); err != nil {
			return errnoOf(err)
		}
	}
	return 0
}

// errnoOnce keeps the first errno that is not 0.
type errnoOnce struct {
	mu    sync.Mutex
	errno syscall.Errno
}

func (o *errnoOnce) set(errno syscall.Errno) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.errno == 0 {
		o.errno = errno
	}
}

func (o *errnoOnce) get() syscall.Errno {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.errno
}
