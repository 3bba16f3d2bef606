package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/tree"
)

// viewSet is where mutations meet the view of a cut. There is one view at a time.
type viewSet struct {
	s      *fsys
	turn   chan struct{} // holds a token while a cut or its view lives
	active atomic.Pointer[View]
	rec    atomic.Pointer[recording]

	mu    sync.Mutex
	stats CutStats
}

// CutStats is what cuts have cost so far.
type CutStats struct {
	Cuts        uint64        `json:"cuts"`
	Abandoned   uint64        `json:"abandoned"`    // views given up so that writing could go on
	LastWait    time.Duration `json:"last_wait"`    // from the call to the instant
	LongestHold time.Duration `json:"longest_hold"` // of the gate, by a cut
	LongestWait time.Duration `json:"longest_wait"` // of a mutation, at the gate
}

func newViewSet(s *fsys) *viewSet { return &viewSet{s: s, turn: make(chan struct{}, 1)} }

// CutStats returns what cuts have cost so far.
func (f *FS) CutStats() CutStats {
	vs := f.fsys.views
	vs.mu.Lock()
	defer vs.mu.Unlock()
	stats := vs.stats
	stats.LongestWait = f.fsys.gate.longestWait()
	return stats
}

func (vs *viewSet) note(waited, held time.Duration) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	vs.stats.Cuts++
	vs.stats.LastWait = waited
	vs.stats.LongestHold = max(vs.stats.LongestHold, held)
}

func (vs *viewSet) acquire(ctx context.Context) error {
	select {
	case vs.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (vs *viewSet) yield() { <-vs.turn }

// record begins to note what changes. It passes the gate, so that no mutation is
// under way that was not told.
func (vs *viewSet) record() *recording {
	r := &recording{s: vs.s, outside: datadir.Outside(vs.s.root), folders: map[*inode]struct{}{}, touched: map[*inode]struct{}{}}
	vs.s.gate.hold()
	vs.rec.Store(r)
	vs.s.gate.release()
	return r
}

func (vs *viewSet) endRecord(r *recording) {
	vs.s.gate.hold()
	vs.rec.Store(nil)
	vs.s.gate.release()
	r.end()
}

// before runs inside the gate before a mutation is applied: it saves what the
// mutation would take from the view.
func (vs *viewSet) before(m *mutation) {
	if r := vs.rec.Load(); r != nil {
		r.before(m)
	}
	v := vs.active.Load()
	if v == nil || failpoint.Off("fusefs/copy-before-write") {
		return
	}
	switch m.kind {
	case mutateWrite, mutateCopy, mutateAllocate:
		v.preserve(m.node, m.off, m.off+m.length)
	case mutateTruncate:
		v.preserve(m.node, m.length, maxOffset)
	case mutateAttr:
		if vs.s.creds.uid != 0 { // whom the new mode may forbid to open it
			v.pin(m.node)
		}
	case mutateUnlink, mutateRmdir:
		v.pin(m.replaced)
	case mutateRename, mutateExchange:
		v.pin(m.node)
		v.pin(m.replaced)
	}
}

// View is the directory at the instant of a cut. It shows that instant whatever
// happens to the directory: a file is known by its inode and held by a descriptor
// before it is renamed or unlinked, and a block is saved to scratch before it is
// overwritten for the first time. If there is no room for that, or one request
// would have to wait for too much of it, the view is given up, never the write (F4):
// Open and reads fail with ErrViewAbandoned from then on.
//
// Locks: mu, then a file's mu; both may be taken inside the gate, and then
// fsys.mu. Under mu files are opened; under a file's mu it is read and written.
type View struct {
	s           *fsys
	number      uint64
	created     time.Time
	consistency string
	needless    map[nameKey]struct{} // journals left out
	entries     []tree.Entry

	ended *generation // until assembled: what was touched before the cut
	base  *reference  // what was at the cut of the snapshot that is the journal's base; may be nil
	since *generation // touched between that and this cut
	own   *reference  // what the view itself shows

	abandoned atomic.Pointer[error]
	scratch   atomic.Int64 // bytes that its files have in scratch
	limit     int64        // of scratch

	mu      sync.Mutex
	index   map[string]inodeKey    // path to inode; nil until the entries are known
	sizes   map[inodeKey]int64     // of the files
	files   map[inodeKey]*viewFile // touched, opened or pinned
	folders map[inodeKey]int       // O_PATH descriptors of folders that were moved or removed
	closed  bool
}

func newView(s *fsys) *View {
	return &View{s: s, files: map[inodeKey]*viewFile{}, folders: map[inodeKey]int{}}
}

// ready is told what the view holds. What mutations pinned before that was known,
// and is not in it, is let go.
func (v *View) ready(index map[string]inodeKey, sizes map[inodeKey]int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.index, v.sizes = index, sizes
	for key, f := range v.files {
		if _, ok := sizes[key]; !ok {
			f.release()
			delete(v.files, key)
		}
	}
}

// Number is the number of the cut: marks with a smaller one precede it.
func (v *View) Number() uint64 { return v.number }

// Created is the instant that the view shows.
func (v *View) Created() time.Time { return v.created }

// Consistency is "quiescent" if nothing was busy at the cut, or "crash-consistent"
// if a persist or unwritten data was cut through.
func (v *View) Consistency() string { return v.consistency }

// Entries lists the view, sorted by path. The slice belongs to the caller. A file
// ends where its entry says.
func (v *View) Entries() []tree.Entry { return append([]tree.Entry(nil), v.entries...) }

// Open opens a file of the view.
func (v *View) Open(path string) (tree.Reader, error) {
	if err := v.err(); err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrClosed}
	}
	key, ok := v.index[path]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	size, ok := v.sizes[key]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: errNotFile}
	}
	f := v.fileLocked(key, size)
	if err := f.openOnce(func() (int, error) { return v.openLocked(path, key) }); err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f.readers++
	return &viewReader{v: v, f: f, path: path}, nil
}

var errNotFile = errors.New("not a regular file")

// Close ends the view and frees what it saved.
func (v *View) Close() error {
	v.mu.Lock()
	done := v.closed
	v.closed = true
	v.mu.Unlock()
	if done {
		return nil
	}
	v.s.log.Debug("a cut's view is closed", "number", v.number, "longest_wait", time.Duration(v.s.gate.recent.Load()), "saved_bytes", v.scratch.Load())
	v.s.views.active.CompareAndSwap(v, nil)
	v.free()
	v.s.views.yield()
	return nil
}

func (v *View) free() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, f := range v.files {
		f.release()
	}
	for key, fd := range v.folders {
		unix.Close(fd)
		delete(v.folders, key)
	}
}

// err returns why the view was abandoned, or nil.
func (v *View) err() error {
	if p := v.abandoned.Load(); p != nil {
		return *p
	}
	return nil
}

// abandon gives the view up.
func (v *View) abandon(cause error) {
	err := error(&AbandonedError{Cut: v.number, Err: cause})
	if !v.abandoned.CompareAndSwap(nil, &err) {
		return
	}
	vs := v.s.views
	vs.active.CompareAndSwap(v, nil)
	vs.mu.Lock()
	vs.stats.Abandoned++
	vs.mu.Unlock()
	v.s.log.Warn("a snapshot was given up so that writing can go on", "cut", v.number, "scratch_bytes", v.scratch.Load(), "error", cause)
	go v.free()
}

// fileLocked returns the state of a file, making it.
func (v *View) fileLocked(key inodeKey, size int64) *viewFile {
	f := v.files[key]
	if f == nil {
		f = &viewFile{v: v, size: size, fd: -1, scratch: -1}
		v.files[key] = f
	}
	return f
}

// touched returns the state of a file that is about to change, or nil if it is not
// in the view. Its size now is its size at the cut: this is the first change since.
func (v *View) touched(n *inode) *viewFile {
	if !n.isFile() || v.err() != nil {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if f := v.files[n.key]; f != nil || v.closed {
		return f
	}
	size, known := v.sizes[n.key]
	if !known {
		var st unix.Stat_t
		if v.index != nil || n.stat(&st) != 0 || st.Nlink == 0 {
			return nil
		}
		size = st.Size
	}
	return v.fileLocked(n.key, size)
}

// preserve saves what [off, end) of n holds, before it changes.
func (v *View) preserve(n *inode, off, end int64) {
	f := v.touched(n)
	if f == nil || off >= f.size {
		return
	}
	if err := f.save(n, off, min(end, f.size)); err != nil {
		v.abandon(err)
	}
}

// pin holds n, before it loses a name.
func (v *View) pin(n *inode) {
	if n == nil {
		return
	}
	if n.isDir() {
		v.pinFolder(n)
		return
	}
	f := v.touched(n)
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.holdLocked(n); err != nil {
		v.abandon(fmt.Errorf("hold a file: %w", err))
	}
}

func (v *View) pinFolder(n *inode) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.folders[n.key]; ok || v.closed || v.err() != nil {
		return
	}
	fd, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		v.abandon(fmt.Errorf("hold a folder: %w", err))
		return
	}
	v.folders[n.key] = fd
}

// openLocked opens a file that no mutation has touched, from the nearest folder
// above it that was pinned: below that one no name has changed, or the file itself
// would be pinned.
func (v *View) openLocked(path string, key inodeKey) (int, error) {
	from, rest := int(v.s.root.Fd()), path
	for i := len(path) - 1; i > 0; i-- {
		if path[i] != '/' {
			continue
		}
		if fd, ok := v.folders[v.index[path[:i]]]; ok {
			from, rest = fd, path[i+1:]
			break
		}
	}
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := -1, error(unix.EINTR)
	for err == unix.EINTR || err == unix.EAGAIN {
		fd, err = unix.Openat2(from, rest, &how)
	}
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && keyOf(&st) != key {
		err = fmt.Errorf("it changed behind the mount's back: %w", syscall.ESTALE)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
