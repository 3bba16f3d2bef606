package sqlitelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/tree"
)

// ErrBusy is what errors.Is finds in a *BusyError.
var ErrBusy = errors.New("database is locked by another process")

// BusyError says that another process uses a database in a way that keeps a lock
// from being had.
type BusyError struct {
	Path string
	PID  int // 0: not known
	WAL  bool
}

// Error implements error.
func (e *BusyError) Error() string {
	if e.PID > 0 {
		return fmt.Sprintf("lock %s: %v (pid %d)", e.Path, ErrBusy, e.PID)
	}
	return fmt.Sprintf("lock %s: %v", e.Path, ErrBusy)
}

// Is reports whether target is ErrBusy.
func (e *BusyError) Is(target error) bool { return target == ErrBusy }

// Hint returns the next step.
func (e *BusyError) Hint() string {
	if e.WAL {
		return "a database in WAL mode can only be copied while nobody has it open: stop the application, or run it on a chromafs mount"
	}
	return "try again when the application is idle, or run it on a chromafs mount"
}

// Locks is a set of held locks.
type Locks struct{ files []*os.File }

// retryEvery is how often a lock that is taken is tried again: SQLite transactions
// last milliseconds.
const retryEvery = 20 * time.Millisecond

// Freeze keeps every one of the databases as it is until Close. It waits for
// transactions under way until ctx ends, then fails with *BusyError.
func Freeze(ctx context.Context, root *os.File, databases []Database) (*Locks, error) {
	l := &Locks{}
	for _, db := range databases {
		f, err := freeze(ctx, root, db)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l.files = append(l.files, f)
	}
	return l, nil
}

func freeze(ctx context.Context, root *os.File, db Database) (*os.File, error) {
	mode, kind := unix.O_RDONLY, int16(unix.F_RDLCK)
	if db.WAL {
		mode, kind = unix.O_RDWR, unix.F_WRLCK
	}
	f, err := tree.OpenBeneath(root, db.Path, mode|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("lock a database: %w", err)
	}
	for {
		err := setLock(f, kind, sharedFirst, sharedSize)
		if err == nil {
			return f, nil
		}
		if !isTaken(err) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", db.Path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			busy := &BusyError{Path: db.Path, PID: holder(f, kind, sharedFirst, sharedSize), WAL: db.WAL}
			return nil, errors.Join(busy, f.Close())
		case <-time.After(retryEvery):
		}
	}
}

// Close gives the locks back.
func (l *Locks) Close() error {
	var errs []error
	for _, f := range l.files {
		errs = append(errs, f.Close())
	}
	l.files = nil
	return errors.Join(errs...)
}

func setLock(f *os.File, kind int16, start, length int64) error {
	lk := unix.Flock_t{Type: kind, Whence: unix.SEEK_SET, Start: start, Len: length}
	for {
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != unix.EINTR {
			return err
		}
	}
}

func isTaken(err error) bool { return err == unix.EAGAIN || err == unix.EACCES }

// holder returns the process in the way of a lock, 0 where the kernel does not
// know one (OFD locks have no owner).
func holder(f *os.File, kind int16, start, length int64) int {
	lk := unix.Flock_t{Type: kind, Whence: unix.SEEK_SET, Start: start, Len: length}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil || lk.Type == unix.F_UNLCK || lk.Pid < 0 {
		return 0
	}
	return int(lk.Pid)
}
