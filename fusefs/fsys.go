package fusefs

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
)

// rootID is the node id of the root in the FUSE protocol.
const rootID = fuse.FUSE_ROOT_ID

// cacheTime is how long the kernel may keep names, attributes and the absence of
// names: practically for ever, because every change comes through the kernel.
const cacheTime = time.Hour

// fsys is one served directory. It answers the requests of the kernel.
//
// Lock order: gate → trackers (busy, sync, views, push) → mu → touch. mu is held for map
// operations only: never during a system call, a mark or a wait.
type fsys struct {
	fuse.RawFileSystem // answers ENOSYS to what is not implemented here

	opts  Options
	log   *slog.Logger
	now   func() time.Time
	root  *os.File // the backing root, opened before mounting
	state inodeKey // of the hidden folder
	creds credentials

	server    *fuse.Server // set before the first request is served
	pushMode  pushMode     // how to push; set before mounting
	writeback bool         // the kernel caches writes; set before mounting

	gate  *gate
	busy  *busyTracker
	push  *pusher
	sync  *syncState
	views *viewSet
	undo  *undoLogs
	touch *touchTracker

	cutNumber    atomic.Uint64
	lastMutation atomic.Int64 // nanoseconds since the epoch; 0: none yet
	markFailed   atomic.Bool  // the last mark failed: log only the first of a row
	marks        markSet

	rootNode *inode

	onWrite  atomic.Pointer[func(*mutation) syscall.Errno] // set by tests: delays or fails a WRITE
	onFreeze atomic.Pointer[func()]                        // set by tests: runs with the gate held, when the instant is recorded

	mu         sync.RWMutex
	nodes      map[uint64]*inode     // by node id
	inodes     map[inodeKey]*inode   // by backing identity
	files      map[uint64]*handle    // by handle number
	folders    map[uint64]*dirHandle // by handle number
	nextNode   uint64
	nextHandle uint64
}

// newFsys makes the file system over opts.Dir without mounting it.
func newFsys(opts Options) (*fsys, error) {
	s := &fsys{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		opts:          opts, log: opts.Log, now: opts.Now, root: opts.Dir.Root(),
		nodes: map[uint64]*inode{}, inodes: map[inodeKey]*inode{},
		files: map[uint64]*handle{}, folders: map[uint64]*dirHandle{},
		nextNode: rootID, nextHandle: 1,
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(opts.Dir.State().Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: opts.Dir.State().Name(), Err: err}
	}
	s.state = keyOf(&st)
	s.cutNumber.Store(opts.FirstCut)
	var err error
	if s.creds, err = daemonCredentials(); err != nil {
		return nil, err
	}
	fd, errno := openat(int(s.root.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY, 0)
	if errno != 0 {
		return nil, &os.PathError{Op: "open", Path: s.root.Name(), Err: errno}
	}
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "stat", Path: s.root.Name(), Err: err}
	}
	s.mu.Lock()
	s.rootNode = s.addLocked(fd, &st)
	s.mu.Unlock()
	s.gate = newGate()
	s.busy = newBusyTracker(s)
	s.push = newPusher(s)
	s.sync = newSyncState(s)
	s.views = newViewSet(s)
	s.undo = newUndoLogs(s)
	s.touch = newTouchTracker()
	return s, nil
}

// addLocked makes a new inode with one reference; it owns fd from now on.
func (s *fsys) addLocked(fd int, st *unix.Stat_t) *inode {
	n := &inode{
		fsys: s, id: s.nextNode, key: keyOf(st), kind: st.Mode & unix.S_IFMT, fd: fd,
		refs: 1, names: map[link]struct{}{}, handles: map[*handle]struct{}{},
	}
	n.mutations.Store(1)
	if n.isDir() {
		n.children = map[string]*inode{}
	}
	s.nextNode++
	s.nodes[n.id] = n
	s.inodes[n.key] = n
	return n
}

// node returns the inode with a node id. The kernel holds a reference while it
// asks, so nil is a broken protocol (or a mount that is being torn down).
func (s *fsys) node(id uint64) *inode {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.nodes[id]
}

// ref adds a reference to n.
func (s *fsys) ref(n *inode) {
	s.mu.Lock()
	n.refs++
	s.mu.Unlock()
}

// unref drops count references to n.
func (s *fsys) unref(n *inode, count uint64) {
	s.mu.Lock()
	n.refs -= min(count, n.refs)
	fds := s.releaseLocked(n, nil)
	s.mu.Unlock()
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// releaseLocked forgets n if nothing holds it, and then folders above it that
// only their children held. It returns the descriptors to close.
func (s *fsys) releaseLocked(n *inode, fds []int) []int {
	if n.refs > 0 || len(n.children) > 0 || n.isRoot() {
		return fds
	}
	if s.nodes[n.id] != n {
		return fds // forgotten already
	}
	delete(s.nodes, n.id)
	if s.inodes[n.key] == n {
		delete(s.inodes, n.key)
	}
	fds = append(fds, n.fd)
	for l := range n.names {
		delete(n.names, l)
		delete(l.dir.children, l.name)
		fds = s.releaseLocked(l.dir, fds)
	}
	return fds
}

// linkLocked records that dir/name is n.
func (s *fsys) linkLocked(dir *inode, name string, n *inode) {
	if old := dir.children[name]; old == n {
		return
	} else if old != nil {
		delete(old.names, link{dir, name})
	}
	if n.isDir() {
		for l := range n.names { // a folder has one name
			delete(n.names, l)
			delete(l.dir.children, l.name)
		}
	}
	dir.children[name] = n
	n.names[link{dir, name}] = struct{}{}
}

// unlinkLocked records that dir/name is gone and returns what it was.
func (s *fsys) unlinkLocked(dir *inode, name string) *inode {
	n := dir.children[name]
	if n != nil {
		delete(dir.children, name)
		delete(n.names, link{dir, name})
	}
	return n
}

// child finds dir/name and returns it with one more reference, and its
// attributes. What the hidden folder holds is not there.
func (s *fsys) child(dir *inode, name string, st *unix.Stat_t) (*inode, syscall.Errno) {
	if errno := s.checkName(dir, name); errno != 0 {
		if errno == syscall.EPERM {
			errno = syscall.ENOENT
		}
		return nil, errno
	}
	for {
		s.mu.RLock()
		seen := dir.changes
		s.mu.RUnlock()
		fd, errno := openat(dir.fd, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if errno != 0 {
			return nil, errno
		}
		if err := unix.Fstat(fd, st); err != nil {
			unix.Close(fd)
			return nil, errnoOf(err)
		}
		if keyOf(st) == s.state {
			unix.Close(fd)
			return nil, syscall.ENOENT // also under another spelling, where names fold case
		}
		n, fresh := s.adopt(fd, st, func(n *inode) bool {
			if dir.changes != seen {
				return false
			}
			s.linkLocked(dir, name, n)
			return true
		})
		if fresh {
			return n, 0
		}
	}
}

// adopt returns the inode of an O_PATH descriptor with one more reference, making
// it if it is not known yet, provided that ok agrees to it (under mu). The
// descriptor belongs to the inode, or is closed.
func (s *fsys) adopt(fd int, st *unix.Stat_t, ok func(*inode) bool) (*inode, bool) {
	s.mu.Lock()
	n := s.inodes[keyOf(st)]
	known := n != nil && n.kind == st.Mode&unix.S_IFMT
	if known {
		n.refs++
	} else {
		n = s.addLocked(fd, st)
	}
	agreed := ok(n)
	var fds []int
	if known {
		fds = append(fds, fd)
	}
	if !agreed {
		n.refs--
		fds = s.releaseLocked(n, fds)
		n = nil
	}
	s.mu.Unlock()
	for _, fd := range fds {
		unix.Close(fd)
	}
	return n, agreed
}

// checkName refuses names that cannot be in a folder, and the hidden folder.
func (s *fsys) checkName(dir *inode, name string) syscall.Errno {
	switch {
	case name == "" || name == "." || name == ".." || slices.Contains([]byte(name), '/'):
		return syscall.EINVAL // the kernel never asks for these
	case dir == s.rootNode && name == datadir.StateName:
		return syscall.EPERM
	}
	return 0
}

// paths returns the known paths of n, relative to the root; "." for the root.
func (s *fsys) paths(n *inode) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.pathsLocked(n)
}

func (s *fsys) pathsLocked(n *inode) []string {
	if n.isRoot() {
		return []string{"."}
	}
	var paths []string
	for l := range n.names {
		if p, ok := s.joinLocked(l.dir, l.name); ok {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	return paths
}

// pathAt returns the path of dir/name; ok is false where dir has no path, being
// removed.
func (s *fsys) pathAt(dir *inode, name string) (p string, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.joinLocked(dir, name)
}

func (s *fsys) joinLocked(dir *inode, name string) (string, bool) {
	p := name
	for !dir.isRoot() {
		var up link
		for up = range dir.names { // a folder has one name
		}
		if up.dir == nil {
			return "", false
		}
		p = up.name + "/" + p
		dir = up.dir
	}
	return p, true
}

// requestContext is the context of one request: it ends when the caller is
// interrupted.
func requestContext(cancel <-chan struct{}, h *fuse.InHeader) context.Context {
	return &fuse.Context{Caller: h.Caller, Cancel: cancel}
}
