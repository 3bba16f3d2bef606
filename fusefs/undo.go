package fusefs

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/tree"
)

// ChromaDB rewrites the files of a segment in place, in several writes, and can
// only read all of them from one persist. On a bare disk, power that fails in the
// middle breaks the segment. Here it would be enough that the daemon is killed, so
// (F5) each persist has an undo log, as databases call it: before a block of a
// segment changes for the first time in a persist, what it held is appended to
// DIR/.chromafs/undo/<segment>. Recover puts it back at the next start.
//
// That is right because SQLite commits "these vectors are persisted" after the
// pickle's FLUSH was answered, and by then the log says that it is complete: rows
// of a persist that was undone replay. A complete log is kept until a barrier has
// synced the segment, for the case that the power failed: then, and only then, a
// complete one is undone too.
//
// For that case the log has to be on disk before what it undoes can be. Bytes written
// in place stay in the page cache until a barrier syncs them, so two instants need
// a sync of the log: before what changes a file's metadata (the pickle's truncation
// is on disk with the next fsync of any program), and for bytes that arrive while a
// barrier is syncing. What the kernel writes by itself, because it is half a minute
// old or memory is short, is not waited for.
//
// And the end of the log has to be on disk before anything that relies on the persist
// (one fsync of a write-ahead log can be SQLite's whole commit), or the log would undo
// what was committed. So whoever ends a log settles it: the segment is synced, then a
// record says so in the log, and that is synced. A barrier does this first of all.
//
// The log of a persist that was never completed is dropped when nobody has a file of
// the segment open for writing any more: whoever wrote is gone, and the files are as
// on a bare disk.
const undoName = "undo" // folder in DIR/.chromafs

const undoBlock = 64 << 10 // bytes that are saved at once

// undoLogs are the logs of the persists that are under way.
//
// Locks: mu is taken inside the gate (before) and outside of it, and before an
// undoLog's and those of the other trackers and fsys.mu.
type undoLogs struct {
	s *fsys

	syncing atomic.Bool // a barrier may be syncing what the logs undo

	mu     sync.Mutex
	boot   string
	logs   map[inodeKey]*undoLog // by the segment's folder
	folder *os.File              // of the logs; nil: not made yet
}

// undoLog is the log of one persist.
type undoLog struct {
	name   string
	dir    *inode   // the segment, held by a reference
	folder *os.File // of the logs; nil: there is none

	mu       sync.Mutex // held while the log is written
	fd       int        // -1: the persist cannot be undone
	end      int64
	unsynced bool
	named    bool // its name is on disk
	complete bool
	files    map[inodeKey]*undoFile
}

// undoFile is a file as it was when the persist began.
type undoFile struct {
	index uint32
	fd    int
	size  int64
	saved bitmap // blocks
}

func newUndoLogs(s *fsys) *undoLogs {
	return &undoLogs{s: s, boot: bootID(), logs: map[inodeKey]*undoLog{}}
}

// before saves what a mutation is about to change of a segment. It never fails the
// mutation (F4): without room, this persist is as safe as on a bare disk.
func (u *undoLogs) before(m *mutation) {
	switch m.kind {
	case mutateCreate:
		if m.name == pickleName {
			g := u.begin(m.dir)
			u.note(g, u.first(g, m))
		}
	case mutateWrite, mutateTruncate, mutateAllocate, mutateCopy:
		for _, l := range u.s.links(m.node) {
			if !u.s.busy.isSegment(l.dir) {
				continue
			}
			g := u.begin(l.dir)
			err := g.save(m)
			if err == nil {
				err = u.first(g, m)
			}
			u.note(g, err)
		}
	}
}

// first syncs a log if m could reach the disk before the next barrier syncs it.
func (u *undoLogs) first(g *undoLog, m *mutation) error {
	// A barrier that begins after this look finds what was saved.
	if m.kind == mutateWrite && !u.syncing.Load() || failpoint.Off("fusefs/undo-first") {
		return nil
	}
	_, err := g.sync()
	return err
}

// begin returns the log of the persist that is under way in a folder, a new one if
// none is.
func (u *undoLogs) begin(dir *inode) *undoLog {
	u.mu.Lock()
	defer u.mu.Unlock()
	g := u.logs[dir.key]
	if g != nil && !g.isComplete() {
		return g
	}
	if g != nil { // no barrier came since
		u.note(g, u.settle(g))
		u.removeLocked(g)
	}
	g = &undoLog{name: fmt.Sprintf("%d-%d", dir.key.dev, dir.key.ino), dir: dir, fd: -1, files: map[inodeKey]*undoFile{}}
	u.s.ref(dir)
	u.logs[dir.key] = g
	err := u.openFolderLocked()
	if err == nil {
		g.folder = u.folder
		err = g.create(dir, undoHeader{Boot: u.boot, Folder: u.s.paths(dir), Inode: dir.key.ino})
	}
	u.note(g, err)
	return g
}

// note gives up a log that cannot be written.
func (u *undoLogs) note(g *undoLog, err error) {
	if err == nil {
		return
	}
	u.s.log.Warn("a persist cannot be undone if the daemon is killed during it", "paths", u.s.paths(g.dir), "error", err)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closeLocked()
	if g.folder == nil {
		return // none could be made
	}
	if err := removeIn(g.folder, g.name); err != nil {
		u.s.log.Error("an undo log that is not whole stays: remove it before the next mount", "name", g.name, "error", err)
	}
}

func (u *undoLogs) openFolderLocked() (err error) {
	if u.folder == nil {
		u.folder, err = openUndoFolder(u.s.opts.Dir.State())
	}
	return err
}

// openUndoFolder opens the folder of the logs, and makes it if need be.
func openUndoFolder(state *os.File) (*os.File, error) {
	err := unix.Mkdirat(int(state.Fd()), undoName, 0o700)
	if err != nil && err != unix.EEXIST {
		return nil, &os.PathError{Op: "mkdir", Path: undoName, Err: err}
	}
	return tree.OpenBeneath(state, undoName, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// persisted marks a segment's log as complete. The segment's new files are all in
// the backing directory.
func (u *undoLogs) persisted(dir *inode) {
	u.mu.Lock()
	g := u.logs[dir.key]
	u.mu.Unlock()
	if g != nil {
		u.note(g, g.append(undoComplete))
	}
}

// released drops the logs of the segments of n that nobody writes any more, unless
// their persists are over: those are for the next barrier.
func (u *undoLogs) released(n *inode) {
	for _, l := range u.s.links(n) {
		if len(u.s.writtenIn(l.dir)) > 0 {
			continue
		}
		u.mu.Lock()
		if g := u.logs[l.dir.key]; g != nil && !g.isComplete() {
			u.removeLocked(g)
		}
		u.mu.Unlock()
	}
}

// none reports whether there is no log.
func (u *undoLogs) none() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.logs) == 0
}

// sync begins a barrier. It syncs the logs, which have to be on disk before what
// they undo, and returns those of persists that are over. Until end is told of
// success, every change of a segment waits for its log.
func (u *undoLogs) sync() (complete []*undoLog, errno syscall.Errno) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.syncing.Store(true)
	for _, g := range u.logs {
		done, err := g.sync()
		if err != nil {
			u.note(g, err)
			errno = errnoOf(err)
		} else if done {
			complete = append(complete, g)
		}
	}
	return complete, errno
}

// settle makes a persist that is over durable, after the log that would undo it, and
// then the end of that log.
func (u *undoLogs) settle(g *undoLog) error {
	if _, err := g.sync(); err != nil {
		return err
	}
	if errno := u.s.sync.syncFolder(g.dir); errno != 0 {
		return fmt.Errorf("sync a segment: %w", errno)
	}
	if err := g.append(undoSettled); err != nil {
		return err
	}
	_, err := g.sync()
	return err
}

// end ends a barrier that succeeded, and removes the logs that it settled.
func (u *undoLogs) end(settled []*undoLog) {
	u.syncing.Store(false)
	if len(settled) == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, g := range settled {
		if u.logs[g.dir.key] == g {
			u.removeLocked(g)
		}
	}
}

func (u *undoLogs) removeLocked(g *undoLog) {
	delete(u.logs, g.dir.key)
	defer u.s.unref(g.dir, 1)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fd < 0 {
		return
	}
	g.closeLocked()
	if err := removeIn(g.folder, g.name); err != nil {
		u.s.log.Error("a needless undo log stays: remove it before the next mount", "name", g.name, "error", err)
	}
}

// close ends the logs with the mount. One that is not complete is of a persist that
// the end of the connection cut off: Recover undoes it.
func (u *undoLogs) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, g := range u.logs {
		if g.isComplete() {
			u.note(g, u.settle(g))
			u.removeLocked(g)
			continue
		}
		g.mu.Lock()
		g.closeLocked()
		g.mu.Unlock()
	}
	if u.folder != nil {
		u.folder.Close()
	}
}

func removeIn(folder *os.File, name string) error {
	err := unix.Unlinkat(int(folder.Fd()), name, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// create begins the log with what files the folder holds.
func (g *undoLog) create(dir *inode, head undoHeader) error {
	if len(head.Folder) == 0 {
		return errors.New("the segment has no path")
	}
	fd, errno := openat(dir.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errno != 0 {
		return errno
	}
	names, err := readNames(fd)
	unix.Close(fd)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range names {
		l, ok, err := lstatName(dir.fd, name)
		if err != nil {
			return err
		}
		if !ok || l.Type != tree.File {
			continue
		}
		fd, errno := openat(dir.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
		if errno != 0 {
			return fmt.Errorf("open %s: %w", name, errno)
		}
		g.files[l.key] = &undoFile{index: uint32(len(head.Files)), fd: fd, size: l.Size}
		head.Files = append(head.Files, undoEntry{Name: name, Inode: l.key.ino, Size: l.Size})
	}
	g.fd, errno = openat(int(g.folder.Fd()), g.name, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if errno != 0 {
		g.fd = -1
		return &os.PathError{Op: "create", Path: g.name, Err: errno}
	}
	return g.appendLocked(undoBegin, 0, 0, head.encode())
}

// save appends what a mutation is about to change, and notes that it happens now.
func (g *undoLog) save(m *mutation) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.files[m.node.key]
	if g.fd < 0 {
		return nil
	}
	// Recover tells by this time whether somebody wrote to the segment later.
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, procPath(g.fd), nil, 0); err != nil {
		return fmt.Errorf("touch the undo log: %w", err)
	}
	if f == nil {
		return nil // made during this persist
	}
	from, to := m.off, f.size
	switch m.kind {
	case mutateWrite, mutateCopy:
		to = min(to, m.off+m.length)
	case mutateTruncate:
		from = m.length
	}
	block := make([]byte, undoBlock)
	for b := from / undoBlock; b*undoBlock < to; b++ {
		if f.saved.has(b) {
			continue
		}
		off := b * undoBlock
		n, err := preadAll(f.fd, block[:min(undoBlock, f.size-off)], off)
		if err != nil {
			return fmt.Errorf("read what a persist is about to change: %w", err)
		}
		if err := g.appendLocked(undoData, f.index, off, block[:n]); err != nil {
			return err
		}
		f.saved.set(b, b+1)
	}
	return nil
}

func (g *undoLog) appendLocked(kind uint8, file uint32, off int64, data []byte) error {
	if err := failpoint.Hit("fusefs/undo"); err != nil {
		return err
	}
	record := encodeUndo(kind, file, off, data)
	if _, errno := writeAll(g.fd, [][]byte{record}, g.end); errno != 0 {
		return fmt.Errorf("write the undo log: %w", errno)
	}
	g.end += int64(len(record))
	g.unsynced = true
	return nil
}

// append notes how far the persist came: undoComplete or undoSettled.
func (g *undoLog) append(end uint8) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.complete = true
	if g.fd < 0 {
		return nil
	}
	return g.appendLocked(end, 0, 0, nil)
}

func (g *undoLog) isComplete() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.complete
}

// sync makes the log durable and reports whether its persist is over.
func (g *undoLog) sync() (complete bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fd < 0 || !g.unsynced {
		return g.complete, nil
	}
	if errno := again(func() error { return unix.Fdatasync(g.fd) }); errno != 0 {
		return g.complete, fmt.Errorf("sync the undo log: %w", errno)
	}
	if !g.named {
		if err := g.folder.Sync(); err != nil {
			return g.complete, fmt.Errorf("sync the undo log's folder: %w", err)
		}
		g.named = true
	}
	g.unsynced = false
	return g.complete, nil
}

func (g *undoLog) closeLocked() {
	if g.fd >= 0 {
		unix.Close(g.fd)
		g.fd = -1
	}
	for key, f := range g.files {
		unix.Close(f.fd)
		delete(g.files, key)
	}
}

// bootID tells one run of the machine from the next; "" where nobody knows.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(id[:min(len(id), 36)])
}

// undoSlack is how much later than its log's last use a segment may have changed
// by the persist itself: a WRITE that was being applied.
const undoSlack = 5 * time.Second
