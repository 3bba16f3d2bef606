// Package datadir holds DIR, the plain local directory that a mount serves, and
// its hidden folder .chromafs.
//
// The model: Open turns the path into descriptors once; from then on nothing here
// looks at a path string again, so DIR can be renamed, or have a mount laid over
// it (MOUNTPOINT may be DIR itself), and the descriptors still mean the same
// directory. One process at a time holds the lock of a DIR (DESIGN §3), which is
// what part of promise F5 rests on: the kernel gives the lock back when the holder
// dies, however it dies.
//
//	DIR/.chromafs/lock       flock, with a line that names the holder
//	DIR/.chromafs/scratch/   pre-images of a running cut, unfinished restores
//	DIR/.chromafs/backups/   local copies that a restore replaced
package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/mountinfo"
	"github.com/chromafs/chromafs/internal/tree"
)

// Names inside DIR.
const (
	StateName   = ".chromafs" // the hidden folder
	ScratchName = "scratch"   // in it
	BackupsName = "backups"   // in it
	lockName    = "lock"      // in it
)

// RestorePrefix begins the names in scratch that Lock leaves alone: what an
// interrupted restore has fetched so far. Everything else there died with the
// process that made it.
const RestorePrefix = "restore"

// Dir is an open DIR. Its descriptors stay the same from Open to Close; only Lock
// and Unlock change it, and those are not for concurrent use.
type Dir struct {
	path                          string
	key                           string
	root, state, scratch, backups *os.File
	lock                          *os.File // nil: not locked
}

// Open opens DIR, making it and its hidden folder where they are missing. It
// fails with *IsMountError where DIR lies on a chromafs mount.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil && !isMountTrouble(err) {
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	d, err := openRoot(path)
	if err != nil {
		return nil, err
	}
	if err := d.openState(true); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// OpenReadOnly opens a DIR that exists and makes nothing. Where DIR has no hidden
// folder yet, State, Scratch and Backups are nil.
func OpenReadOnly(path string) (*Dir, error) {
	d, err := openRoot(path)
	if err != nil {
		return nil, err
	}
	if err := d.openState(false); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// isMountTrouble reports whether a dead mount may be why a path could not be
// looked at; openRoot then names it.
func isMountTrouble(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EEXIST)
}

func openRoot(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if m, err := mountinfo.Of(abs); err != nil {
		return nil, err
	} else if key, ok := m.Key(); ok {
		return nil, &IsMountError{Path: path, Mountpoint: m.Mountpoint, Key: key}
	}
	root, err := os.OpenFile(abs, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	key, err := KeyOf(root)
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &Dir{path: abs, key: key, root: root}, nil
}

func (d *Dir) openState(create bool) error {
	for _, f := range []struct {
		file   **os.File
		parent func() *os.File
		name   string
	}{
		{&d.state, d.Root, StateName},
		{&d.scratch, d.State, ScratchName},
		{&d.backups, d.State, BackupsName},
	} {
		if create {
			err := unix.Mkdirat(int(f.parent().Fd()), f.name, 0o700)
			if err != nil && err != unix.EEXIST {
				return fmt.Errorf("make %s in %s: %w", f.name, d.path, err)
			}
		}
		file, err := tree.OpenBeneath(f.parent(), f.name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return fmt.Errorf("in %s: %w", d.path, err)
		}
		*f.file = file
	}
	return nil
}

// KeyOf returns the key of an open directory: what names its control socket and
// its mount.
func KeyOf(dir *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: dir.Name(), Err: err}
	}
	return fmt.Sprintf("%d-%d", st.Dev, st.Ino), nil
}

// Root returns the descriptor of DIR.
func (d *Dir) Root() *os.File { return d.root }

// State returns the descriptor of DIR/.chromafs.
func (d *Dir) State() *os.File { return d.state }

// Scratch returns the descriptor of DIR/.chromafs/scratch.
func (d *Dir) Scratch() *os.File { return d.scratch }

// Backups returns the descriptor of DIR/.chromafs/backups.
func (d *Dir) Backups() *os.File { return d.backups }

// Path returns the absolute path that was opened. It is for messages only.
func (d *Dir) Path() string { return d.path }

// Key returns "<dev>-<ino>" of DIR.
func (d *Dir) Key() string { return d.key }

// Empty reports whether DIR holds nothing of an application's: no entry but
// .chromafs, and the lost+found that mkfs leaves at the root of a new volume.
func (d *Dir) Empty() (bool, error) {
	names, err := readNames(d.root, ".")
	if err != nil {
		return false, fmt.Errorf("read %s: %w", d.path, err)
	}
	outside := Outside(d.root)
	for _, name := range names {
		if !outside(name) {
			return false, nil
		}
	}
	return true, nil
}

// Outside returns which paths of a DIR, of which root is a descriptor, are none of
// an application's and so part of no snapshot: the hidden folder, and the
// lost+found of a volume's root. The latter is known by name, owner and mode: an
// ordinary user may not even look inside.
func Outside(root *os.File) func(path string) bool {
	const lostAndFound = "lost+found"
	e, ok, err := tree.Stat(root, lostAndFound)
	lost := err == nil && ok && e.Type == tree.Dir && e.UID == 0 && e.Mode&0o077 == 0
	return func(path string) bool { return path == StateName || lost && path == lostAndFound }
}

// Free returns how many bytes an ordinary user can still write to DIR's file
// system.
func (d *Dir) Free() (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.root.Fd()), &st); err != nil {
		return 0, fmt.Errorf("ask free space of %s: %w", d.path, err)
	}
	return st.Bavail * uint64(st.Frsize), nil
}

// Close gives the lock back and closes every descriptor.
func (d *Dir) Close() error {
	var errs []error
	for _, f := range []*os.File{d.lock, d.scratch, d.backups, d.state, d.root} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// readNames lists a folder through a descriptor of its own, because reading
// moves a descriptor's position.
func readNames(parent *os.File, name string) ([]string, error) {
	dir, err := tree.OpenBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Readdirnames(-1)
}
