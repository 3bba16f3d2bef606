package file

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// Copy implements objstore.Store.
func (s *Store) Copy(ctx context.Context, dst string, src objstore.Object, o objstore.CopyOptions) (objstore.Object, error) {
	made, err := s.copy(ctx, dst, src, o)
	return made, s.fail(ctx, "copy "+src.Key+" to", dst, err)
}

func (s *Store) copy(ctx context.Context, dst string, src objstore.Object, o objstore.CopyOptions) (none objstore.Object, err error) {
	if err := checkKey(dst); err != nil {
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
	from, err := openSource(f.root, src)
	if err != nil {
		return none, err
	}
	defer from.Close()
	t, err := newTemporary(f.tmp)
	if err != nil {
		return none, err
	}
	defer t.discard()
	if err := unix.IoctlFileClone(int(t.Fd()), int(from.Fd())); err != nil {
		if o.Immutable {
			if st, err := s.link(ctx, f, src, dst); err == nil || !cannotLink(err) {
				return objectIf(dst, st, err)
			}
		}
		if err := t.Truncate(src.Size); err != nil {
			return none, err
		}
		if err := copyRange(ctx, t.File, 0, from, 0, src.Size); err != nil {
			return none, err
		}
	}
	if err := unchanged(from, src); err != nil {
		return none, err
	}
	st, err := s.finish(f.tmp, t.name, t.File)
	if err != nil {
		return none, err
	}
	if err := s.install(ctx, f, f.tmp, t.name, dst, objstore.PutOptions{}); err != nil {
		return none, err
	}
	return objectOf(dst, st), nil
}

func objectIf(key string, st *unix.Stat_t, err error) (objstore.Object, error) {
	if err != nil {
		return objstore.Object{}, err
	}
	return objectOf(key, st), nil
}

// openSource opens what a copy is pinned to (O3). The descriptor keeps its content,
// whatever becomes of the key.
func openSource(root *os.File, src objstore.Object) (*os.File, error) {
	if err := checkKey(src.Key); err != nil {
		return nil, err
	}
	f, st, err := openObject(root, src.Key)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", src.Key, err)
	}
	if etagOf(st) != src.ETag {
		f.Close()
		return nil, fmt.Errorf("source %s: %w", src.Key, objstore.ErrPrecondition)
	}
	return f, nil
}

// unchanged looks whether someone modified a source in place while it was copied.
func unchanged(from *os.File, src objstore.Object) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: src.Key, Err: err}
	}
	if etagOf(&st) != src.ETag {
		return fmt.Errorf("source %s was modified in place: %w", src.Key, objstore.ErrPrecondition)
	}
	return nil
}

// link makes dst a second name of the source's file, whose data is durable already.
func (s *Store) link(ctx context.Context, f *folders, src objstore.Object, dst string) (st *unix.Stat_t, err error) {
	var parent *os.File
	err = s.withLock(ctx, f, func() error {
		dir, err := tree.OpenBeneath(f.root, path.Dir(src.Key), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer dir.Close()
		name := newName()
		if err := unix.Linkat(int(dir.Fd()), path.Base(src.Key), int(f.tmp.Fd()), name, 0); err != nil {
			return &os.LinkError{Op: "link", Old: src.Key, New: dst, Err: err}
		}
		// Renaming one name of a file over another does nothing: remove what is left.
		defer unix.Unlinkat(int(f.tmp.Fd()), name, 0)
		if st, err = statAt(f.tmp, name); err != nil {
			return err
		}
		if etagOf(st) != src.ETag {
			return fmt.Errorf("source %s: %w", src.Key, objstore.ErrPrecondition)
		}
		if parent, err = openParent(f.root, dst, true); err != nil {
			return err
		}
		return installLocked(parent, f.tmp, name, dst, objstore.PutOptions{})
	})
	if parent == nil {
		return st, err
	}
	defer parent.Close()
	if err != nil {
		return nil, err
	}
	return st, parent.Sync()
}

// cannotLink tells a file system, or a file, that takes no second name from failures.
func cannotLink(err error) bool {
	return ignore(err, unix.EPERM, unix.EMLINK, unix.EXDEV, unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL) == nil
}

// chunk is how much is copied between two looks at the context, and for a hole.
const chunk = 16 << 20

// copyRange copies bytes between two files of the store. Reflinking file systems
// share them, others copy them in the kernel. Holes stay holes, as in write.
func copyRange(ctx context.Context, dst *os.File, at int64, src *os.File, off, size int64) error {
	for size > 0 {
		if err := objstore.Ended(ctx); err != nil {
			return err
		}
		if hole := tree.NextData(src, off, off+size) - off; hole > 0 {
			if err := tree.MakeZeros(dst, at, hole); err != nil {
				return err
			}
			off, at, size = off+hole, at+hole, size-hole
			continue
		}
		length := min(size, chunk)
		if hole, err := unix.Seek(int(src.Fd()), off, unix.SEEK_HOLE); err == nil && hole > off {
			length = min(length, hole-off)
		}
		from, to := off, at
		n, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(length), 0)
		if err != nil && ignore(err, unix.EXDEV, unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL, unix.EPERM) == nil {
			var copied int64
			copied, err = io.Copy(io.NewOffsetWriter(dst, at), io.NewSectionReader(src, off, length))
			n = int(copied)
		}
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("copy at %d: %w", off, err)
		case n == 0:
			return fmt.Errorf("%w: %d bytes at %d are missing", objstore.ErrPrecondition, size, off)
		}
		off, at, size = off+int64(n), at+int64(n), size-int64(n)
	}
	return nil
}
