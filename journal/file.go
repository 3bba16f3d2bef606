package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// openat opens name in dir, never through a link.
func openat(dir *os.File, name string, flags int, mode uint32) (*os.File, error) {
	for {
		fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, mode)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// openLocked opens journal.db with an exclusive flock, for which it waits as
// long as ctx lets it.
func openLocked(ctx context.Context, dir *os.File) (*os.File, error) {
	for {
		f, err := openat(dir, fileName, unix.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		if err := flock(ctx, f); err != nil {
			f.Close()
			return nil, err
		}
		var opened, named unix.Stat_t
		err = unix.Fstat(int(f.Fd()), &opened)
		if err == nil {
			err = unix.Fstatat(int(dir.Fd()), fileName, &named, unix.AT_SYMLINK_NOFOLLOW)
		}
		if err == nil && opened.Dev == named.Dev && opened.Ino == named.Ino {
			return f, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, &os.PathError{Op: "stat", Path: fileName, Err: err}
		}
		// The one who held the lock replaced the file: open the new one.
	}
}

func flock(ctx context.Context, f *os.File) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
			continue
		case unix.EWOULDBLOCK:
		default:
			return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", f.Name(), ErrLocked)
		}
	}
}

// identity is what a copy of a file does not share with it: its inode and the
// time of its birth, 0 where the file system knows none.
func identity(f *os.File) (inode uint64, born int64, err error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		born = st.Btime.Sec*int64(time.Second) + int64(st.Btime.Nsec)
	}
	return st.Ino, born, nil
}

// setAside renames journal.db to a name that says why and when, and returns it.
func setAside(dir *os.File, why string, now time.Time) (string, error) {
	name := fileName + "." + why + "-" + now.UTC().Format("20060102T150405.000000000Z")
	if err := unix.Renameat2(int(dir.Fd()), fileName, int(dir.Fd()), name, unix.RENAME_NOREPLACE); err != nil {
		return "", &os.PathError{Op: "rename", Path: fileName, Err: err}
	}
	if err := dir.Sync(); err != nil {
		return "", fmt.Errorf("sync the folder of %s: %w", fileName, err)
	}
	return name, nil
}

// SetAside takes a journal that cannot be read (ErrDamaged, ErrNewerFormat) out
// of the way and returns the name in DIR/.chromafs that it has now. The next Open
// begins a fresh one, and whoever mounts then compares every file by content.
func SetAside(state *os.File, now time.Time) (string, error) {
	name, err := setAside(state, "damaged", now)
	if err != nil {
		return "", fmt.Errorf("set the journal aside: %w", err)
	}
	return name, nil
}
