// Package file is an object store in a plain folder: the embedded default, and the
// right one for a disk that outlives the machine (a volume, a network share).
//
// The model: the object with key a/b is the file DIR/a/b, whole and plain, so that a
// snapshot is restored by cp. DIR/.chromafs-store holds what is not an object and is
// never listed: a lock, files being written, unfinished uploads. Everything is
// reached relative to descriptors, and no symbolic link is followed (DESIGN §3).
//
//   - O1: an object is written to a temporary file, synced, renamed, and its folder
//     synced. A reader, and a crash, sees the old or the new one. No file is ever
//     modified in place.
//   - O2: whatever gives a key another state holds a flock while it compares and
//     renames, so conditions hold between processes too.
//   - The ETag is inode, size and modification time. Every file gets a time of its
//     own, to the nanosecond, so that replaced content has another ETag even where
//     the inode number comes back. A file edited in place by someone else has
//     another one as well.
//   - R4: DIR may be absent or empty if the folder it lies in exists. If that is
//     missing too, or DIR vanishes while in use, a disk is not mounted: refused.
//
// Copies are reflinks where the file system can; else, of immutable objects, second
// names of one file; else copies made by the kernel.
//
// Lock order: Store.gate, then the flock of DIR/.chromafs-store/lock. No caller's
// code and no data transfer runs under them, only names are changed.
package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// area is the folder inside DIR that holds what is not an object.
const area = ".chromafs-store"

// Files and folders are the owner's only: they hold a database.
const (
	filePerm = 0o600
	dirPerm  = 0o700
)

// Store is an object store in a folder. It is safe for concurrent use, also by
// several processes.
type Store struct {
	dir   string
	now   func() time.Time
	gate  chan struct{} // holds one token; taken before the flock, so that one goroutine per process polls it
	swept bool          // what dead processes left was removed; guarded by gate
	seen  atomic.Bool   // dir was there; its absence now means that a disk went away
	last  atomic.Int64  // the youngest modification time given to a file, nanoseconds
}

var _ objstore.Store = (*Store)(nil)

// New returns the store in the folder dir, an absolute path. Nothing is made or
// opened yet: dir is made by the first write.
func New(dir string) (*Store, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("the folder %q is not an absolute path", dir)
	}
	s := &Store{dir: filepath.Clean(dir), now: time.Now, gate: make(chan struct{}, 1)}
	s.gate <- struct{}{}
	return s, nil
}

// String implements objstore.Store.
func (s *Store) String() string { return (&url.URL{Scheme: "file", Path: s.dir}).String() }

// errAbsent: DIR is not there, and need not be.
var errAbsent = fmt.Errorf("%w: the store's folder does not exist yet", objstore.ErrNotFound)

// root opens DIR. Where it is absent and its parent is not, it makes it or returns
// errAbsent.
func (s *Store) root(create bool) (*os.File, error) {
	for {
		root, err := os.OpenFile(s.dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
		if err == nil {
			s.seen.Store(true)
			return root, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		parent, err := os.OpenFile(filepath.Dir(s.dir), os.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, &missingError{what: filepath.Dir(s.dir), err: err}
		}
		defer parent.Close()
		switch {
		case s.seen.Load():
			return nil, &missingError{what: s.dir, err: fmt.Errorf("%s was there before: %w", s.dir, unix.ENOENT)}
		case !create:
			return nil, errAbsent
		}
		if err := unix.Mkdirat(int(parent.Fd()), filepath.Base(s.dir), dirPerm); err != nil && err != unix.EEXIST {
			return nil, &os.PathError{Op: "mkdir", Path: s.dir, Err: err}
		}
		if err := parent.Sync(); err != nil {
			return nil, err
		}
	}
}

// checkKey refuses keys that no store can name, and those inside the area.
func checkKey(key string) error {
	if err := objstore.CheckKey(key); err != nil {
		return err
	}
	if first, _, _ := strings.Cut(key, "/"); first == area {
		return fmt.Errorf("%w: the key %q lies in the store's own area", objstore.ErrRefused, key)
	}
	return nil
}

// etagOf names the state of a file. A hard link has that of its source: it is the
// same content.
func etagOf(st *unix.Stat_t) string {
	return fmt.Sprintf("%x-%x-%x", st.Ino, st.Size, st.Mtim.Nano())
}

func objectOf(key string, st *unix.Stat_t) objstore.Object {
	return objstore.Object{Key: key, Size: st.Size, ETag: etagOf(st), Modified: time.Unix(st.Mtim.Unix())}
}

// statAt describes the object with this base name in a folder: ErrNotFound if there
// is none.
func statAt(folder *os.File, base string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(folder.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == unix.ENOENT || err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil, objstore.ErrNotFound
	case err != nil:
		return nil, &os.PathError{Op: "stat", Path: base, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("%w: not a plain file", objstore.ErrRefused)
	}
	return &st, nil
}

// openObject opens the file of a key for reading, and describes it.
func openObject(root *os.File, key string) (*os.File, *unix.Stat_t, error) {
	f, err := tree.OpenBeneath(root, key, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil, objstore.ErrNotFound
	}
	if err != nil {
		return nil, nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, nil, &os.PathError{Op: "stat", Path: key, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return f, &st, nil
	case unix.S_IFDIR:
		err = objstore.ErrNotFound
	default:
		err = fmt.Errorf("%w: not a plain file", objstore.ErrRefused)
	}
	f.Close()
	return nil, nil, err
}

// stamp returns a modification time that no other file of this process got.
func (s *Store) stamp() unix.Timespec {
	for {
		last := s.last.Load()
		next := max(s.now().UnixNano(), last+1)
		if s.last.CompareAndSwap(last, next) {
			return unix.NsecToTimespec(next)
		}
	}
}

// finish gives a file that is written its time, makes it durable and describes it.
func (s *Store) finish(folder *os.File, base string, f *os.File) (*unix.Stat_t, error) {
	at := s.stamp()
	if err := unix.UtimesNanoAt(int(folder.Fd()), base, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &os.PathError{Op: "set the time of", Path: base, Err: err}
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: base, Err: err}
	}
	return &st, nil
}

// fail makes an error of an operation one of objstore's.
func (s *Store) fail(ctx context.Context, op, key string, err error) error {
	if err == nil {
		return nil
	}
	e := &objstore.Error{Op: op, Store: s.String(), Key: key, Err: err}
	if ended := objstore.Ended(ctx); ended != nil {
		e.Err = ended
		return e
	}
	e.Next, e.Kind = kindOf(err)
	if e.Kind == objstore.ErrRefused && e.Next == "" {
		e.Next = "check --store: " + s.dir + " must be a folder that this user may read and write"
	}
	return e
}
