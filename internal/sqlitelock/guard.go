package sqlitelock

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/tree"
)

// Guard keeps SQLite out of every database of a directory that is being served
// elsewhere. It is not for concurrent use.
type Guard struct {
	root   *os.File
	skip   func(path string) bool
	log    *slog.Logger
	held   map[uint64]*os.File // by inode: a database may be renamed
	warned map[uint64]bool     // could not be locked, and that was said
}

// NewGuard returns a guard that holds nothing yet. The arguments are Find's.
func NewGuard(root *os.File, skip func(path string) bool, log *slog.Logger) *Guard {
	return &Guard{root: root, skip: skip, log: log, held: map[uint64]*os.File{}, warned: map[uint64]bool{}}
}

// Rescan locks the databases that are there now and were not before, and lets go
// of those that were deleted, whose space the lock's descriptor would hold. A
// database that cannot be locked is a warning, once, and tried again at the next
// Rescan: the mount works without it.
func (g *Guard) Rescan() ([]Database, error) {
	found, err := Find(g.root, g.skip)
	if err != nil {
		return nil, err
	}
	present := map[uint64]bool{}
	for _, db := range found {
		present[db.Inode] = true
		if g.held[db.Inode] != nil {
			continue
		}
		if err := g.lock(db); err != nil && !g.warned[db.Inode] {
			g.warned[db.Inode] = true
			g.log.Warn("a database is not protected from applications that open it in DIR instead of on the mount",
				"path", db.Path, "error", err)
		}
	}
	return found, g.release(func(inode uint64) bool { return !present[inode] })
}

func (g *Guard) lock(db Database) error {
	f, err := tree.OpenBeneath(g.root, db.Path, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err == nil {
		err = setLock(f, unix.F_WRLCK, pendingByte, allSize)
	}
	if isTaken(err) {
		err = &BusyError{Path: db.Path, PID: holder(f, unix.F_WRLCK, pendingByte, allSize), WAL: db.WAL}
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if g.held[st.Ino] != nil { // another name of a file that is locked already
		return f.Close()
	}
	delete(g.warned, st.Ino)
	g.held[st.Ino] = f
	return nil
}

func (g *Guard) release(which func(inode uint64) bool) error {
	var errs []error
	for inode, f := range g.held {
		if which(inode) {
			errs = append(errs, f.Close())
			delete(g.held, inode)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("unlock databases: %w", err)
	}
	return nil
}

// Close gives all locks back.
func (g *Guard) Close() error { return g.release(func(uint64) bool { return true }) }
