package datadir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/tree"
)

// Lock makes this process the only one that serves or changes DIR, until Unlock,
// Close or its death. info says what for, mostly the mountpoint. Where another
// holds it, Lock fails with *LockedError at once. What a dead holder left in
// scratch is removed, but for unfinished restores.
func (d *Dir) Lock(info string) error {
	if d.lock != nil {
		return fmt.Errorf("lock %s: this process holds it already", d.path)
	}
	f, err := tree.OpenBeneath(d.state, lockName, unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		return fmt.Errorf("lock %s: %w", d.path, err)
	}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return d.lockedBy(f)
		}
		return fmt.Errorf("lock %s: %w", d.path, err)
	}
	err = d.writeHolder(f, info)
	if err == nil {
		err = d.clearScratch()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("lock %s: %w", d.path, err), f.Close())
	}
	d.lock = f
	return nil
}

// Unlock gives the lock back.
func (d *Dir) Unlock() error {
	if d.lock == nil {
		return nil
	}
	err := d.lock.Close()
	d.lock = nil
	return err
}

// Holder returns who holds DIR's lock, nil where nobody does.
func (d *Dir) Holder() (*LockedError, error) {
	if d.state == nil {
		return nil, nil
	}
	f, err := tree.OpenBeneath(d.state, lockName, unix.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at the lock of %s: %w", d.path, err)
	}
	defer f.Close()
	switch err := flock(f, unix.LOCK_SH|unix.LOCK_NB); {
	case err == nil:
		return nil, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		return d.lockedBy(f), nil
	default:
		return nil, fmt.Errorf("look at the lock of %s: %w", d.path, err)
	}
}

// writeHolder is allowed to fail on a full disk: the lock is the flock, the line
// only names its holder.
func (d *Dir) writeHolder(f *os.File, info string) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt(fmt.Appendf(nil, "%d %s\n", os.Getpid(), info), 0)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return nil
	}
	return err
}

func (d *Dir) lockedBy(f *os.File) *LockedError {
	e := &LockedError{Path: d.path}
	line, err := io.ReadAll(io.NewSectionReader(f, 0, 2*unix.PathMax))
	if err != nil {
		return e
	}
	pid, info, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
	if n, err := strconv.Atoi(pid); err == nil {
		e.PID, e.Info = n, info
	}
	return e
}

func (d *Dir) clearScratch() error {
	names, err := readNames(d.scratch, ".")
	if err != nil {
		return fmt.Errorf("clear scratch: %w", err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, RestorePrefix) {
			continue
		}
		if err := removeAll(d.scratch, name); err != nil {
			return fmt.Errorf("clear scratch: %w", err)
		}
	}
	return nil
}

// removeAll removes a name and all below it, through descriptors: a path through
// DIR may lead elsewhere by now. Folders without permissions are opened up first.
func removeAll(parent *os.File, name string) error {
	err := unix.Unlinkat(int(parent.Fd()), name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	dir, err := tree.OpenBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.EACCES) {
		if err := unix.Fchmodat(int(parent.Fd()), name, 0o700, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: name, Err: err}
		}
		dir, err = tree.OpenBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Fchmod(int(dir.Fd()), 0o700); err != nil {
		return &os.PathError{Op: "chmod", Path: name, Err: err}
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, child := range names {
		if err := removeAll(dir, child); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "rmdir", Path: name, Err: err}
	}
	return nil
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}
