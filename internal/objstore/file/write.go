package file

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// folders are the open folders of one writing operation.
type folders struct {
	root, area, tmp, uploads *os.File
}

func (f *folders) Close() {
	for _, folder := range []*os.File{f.root, f.area, f.tmp, f.uploads} {
		if folder != nil {
			folder.Close()
		}
	}
}

// open opens DIR and the folders of the area, making what is missing.
func (s *Store) open() (_ *folders, err error) {
	f := &folders{}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if f.root, err = s.root(true); err != nil {
		return nil, err
	}
	if f.area, err = makeFolder(f.root, area); err != nil {
		return nil, err
	}
	if f.tmp, err = makeFolder(f.area, "tmp"); err != nil {
		return nil, err
	}
	f.uploads, err = makeFolder(f.area, "uploads")
	return f, err
}

// makeFolder opens a folder, after making it durably if it is missing.
func makeFolder(parent *os.File, base string) (*os.File, error) {
	for {
		folder, err := tree.OpenBeneath(parent, base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if !errors.Is(err, unix.ENOENT) {
			return folder, err
		}
		if err := unix.Mkdirat(int(parent.Fd()), base, dirPerm); err != nil && err != unix.EEXIST {
			return nil, &os.PathError{Op: "mkdir", Path: base, Err: err}
		}
		if err := parent.Sync(); err != nil {
			return nil, err
		}
	}
}

// withLock runs change while this process and goroutine alone may change names.
func (s *Store) withLock(ctx context.Context, f *folders, change func() error) error {
	select {
	case <-s.gate:
		defer func() { s.gate <- struct{}{} }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	lock, err := tree.OpenBeneath(f.area, "lock", unix.O_RDWR|unix.O_CREAT, filePerm)
	if err != nil {
		return err
	}
	defer lock.Close()
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return &os.PathError{Op: "flock", Path: area + "/lock", Err: err}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if !s.swept {
		if err := sweep(f.tmp); err != nil {
			return err
		}
		s.swept = true
	}
	return change()
}

// sweep removes what dead processes left in tmp. A living one holds a flock on its
// temporary file, or holds the store's lock, as the caller does.
func sweep(tmp *os.File) error {
	names, err := tmp.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		f, err := tree.OpenBeneath(tmp, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = removeAll(tmp, name)
		}
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// removeAll removes a file, or a folder of files.
func removeAll(parent *os.File, name string) error {
	err := unix.Unlinkat(int(parent.Fd()), name, 0)
	if err == unix.EISDIR {
		folder, err := tree.OpenBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return ignore(err, unix.ENOENT)
		}
		defer folder.Close()
		names, err := folder.Readdirnames(-1)
		if err != nil {
			return err
		}
		for _, base := range names {
			if err := unix.Unlinkat(int(folder.Fd()), base, 0); err != nil && err != unix.ENOENT {
				return &os.PathError{Op: "remove", Path: name + "/" + base, Err: err}
			}
		}
		if err := unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
			return &os.PathError{Op: "remove", Path: name, Err: err}
		}
		return nil
	}
	if err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// ignore returns err unless it is one of those that do not matter.
func ignore(err error, harmless ...error) error {
	for _, h := range harmless {
		if errors.Is(err, h) {
			return nil
		}
	}
	return err
}

func newName() string {
	var b [12]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// temporary is a file in tmp that becomes an object, or is removed by discard.
type temporary struct {
	*os.File
	folder *os.File
	name   string
}

// newTemporary makes a temporary file and takes its flock, which keeps it from the
// sweep of another process.
func newTemporary(tmp *os.File) (*temporary, error) {
	for {
		name := newName()
		f, err := tree.OpenBeneath(tmp, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, filePerm)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
		}
		switch {
		case err == nil && st.Nlink > 0:
			return &temporary{f, tmp, name}, nil
		case err == nil || err == unix.EWOULDBLOCK: // swept away in between
			f.Close()
			continue
		}
		f.Close()
		unix.Unlinkat(int(tmp.Fd()), name, 0)
		return nil, &os.PathError{Op: "lock", Path: name, Err: err}
	}
}

// discard removes the file, if it did not become an object.
func (t *temporary) discard() {
	unix.Unlinkat(int(t.folder.Fd()), t.name, 0)
	t.Close()
}

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o objstore.PutOptions) (objstore.Object, error) {
	made, err := s.put(ctx, key, body, size, o)
	return made, s.fail(ctx, "put", key, err)
}

func (s *Store) put(ctx context.Context, key string, body io.ReaderAt, size int64, o objstore.PutOptions) (none objstore.Object, err error) {
	if err := checkKey(key); err != nil {
		return none, err
	}
	if err := objstore.Ended(ctx); err != nil {
		return none, err
	}
	f, err := s.open()
	if err != nil {
		return none, err
	}
	defer f.Close()
	t, err := newTemporary(f.tmp)
	if err != nil {
		return none, err
	}
	defer t.discard()
	if err := t.Truncate(size); err != nil {
		return none, err
	}
	if err := write(ctx, t.File, 0, body, 0, size); err != nil {
		return none, err
	}
	st, err := s.finish(f.tmp, t.name, t.File)
	if err != nil {
		return none, err
	}
	if err := failpoint.Hit("objstore/file-written"); err != nil {
		return none, err
	}
	if err := s.install(ctx, f, f.tmp, t.name, key, o); err != nil {
		return none, err
	}
	return objectOf(key, st), nil
}

// write copies size bytes of a caller's body into a file that is long enough already,
// or is made so by whoever completes it. Holes stay holes.
func write(ctx context.Context, f *os.File, at int64, body io.ReaderAt, off, size int64) error {
	for end := off + size; off < end; {
		if err := objstore.Ended(ctx); err != nil {
			return err
		}
		data := tree.NextData(body, off, end)
		if err := tree.MakeZeros(f, at, data-off); err != nil {
			return err
		}
		at, off = at+data-off, data
		src := objstore.NewBody(body, off, min(end-off, look))
		n, err := io.Copy(io.NewOffsetWriter(f, at), endsWith{ctx, src})
		if src.Err() != nil {
			return &callerError{src.Err()}
		}
		if err != nil {
			return err
		}
		at, off = at+n, off+n
	}
	return nil
}

// look is how much is written until the next hole is looked for.
const look = 1 << 20

// endsWith reads until its context ends.
type endsWith struct {
	ctx context.Context
	r   io.Reader
}

func (r endsWith) Read(p []byte) (int, error) {
	if err := objstore.Ended(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// install makes the file base in folder the object with this key, if the condition
// holds, durably.
func (s *Store) install(ctx context.Context, f *folders, folder *os.File, base, key string, o objstore.PutOptions) error {
	var parent *os.File
	err := s.withLock(ctx, f, func() (err error) {
		if parent, err = openParent(f.root, key, o.IfMatch == ""); err != nil {
			return err
		}
		return installLocked(parent, folder, base, key, o)
	})
	if parent == nil {
		return err
	}
	defer parent.Close()
	if err != nil {
		return err
	}
	if err := failpoint.Hit("objstore/file-renamed"); err != nil {
		return err
	}
	return parent.Sync()
}

// openParent opens the folder that holds the file of a key. With create it makes
// it, else its absence means that the object is not in the state to be replaced.
func openParent(root *os.File, key string, create bool) (*os.File, error) {
	dir := path.Dir(key)
	if !create {
		parent, err := tree.OpenBeneath(root, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil, objstore.ErrPrecondition
		}
		return parent, err
	}
	parent, err := tree.OpenBeneath(root, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil || dir == "." {
		return parent, err
	}
	for segment := range strings.SplitSeq(dir, "/") {
		next, err := makeFolder(parent, segment)
		parent.Close()
		if err != nil {
			return nil, err
		}
		parent = next
	}
	return parent, nil
}

func installLocked(parent, folder *os.File, base, key string, o objstore.PutOptions) error {
	name := path.Base(key)
	if o.IfAbsent || o.IfMatch != "" {
		st, err := statAt(parent, name)
		switch {
		case errors.Is(err, objstore.ErrNotFound):
			if o.IfMatch != "" {
				return objstore.ErrPrecondition
			}
		case err != nil:
			return err
		case o.IfAbsent || etagOf(st) != o.IfMatch:
			return objstore.ErrPrecondition
		}
	}
	rename := func() error {
		return unix.Renameat(int(folder.Fd()), base, int(parent.Fd()), name)
	}
	err := rename()
	if err == unix.EISDIR && unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR) == nil { // a folder left empty by a crash
		err = rename()
	}
	if err != nil {
		return fmt.Errorf("rename to %s: %w", key, err)
	}
	return nil
}
