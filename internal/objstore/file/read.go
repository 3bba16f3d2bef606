package file

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// Get implements objstore.Store.
func (s *Store) Get(ctx context.Context, key string, o objstore.GetOptions) (io.ReadCloser, objstore.Object, error) {
	body, found, err := s.get(ctx, key, o)
	if err != nil {
		return nil, objstore.Object{}, s.fail(ctx, "get", key, err)
	}
	return body, found, nil
}

func (s *Store) get(ctx context.Context, key string, o objstore.GetOptions) (_ io.ReadCloser, found objstore.Object, err error) {
	if err := checkKey(key); err != nil {
		return nil, found, err
	}
	if err := objstore.Ended(ctx); err != nil {
		return nil, found, err
	}
	root, err := s.root(false)
	if err != nil {
		return nil, found, err
	}
	defer root.Close()
	f, st, err := openObject(root, key)
	if err != nil {
		return nil, found, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	found = objectOf(key, st)
	switch {
	case o.IfMatch != "" && o.IfMatch != found.ETag:
		return nil, found, objstore.ErrPrecondition
	case o.IfNoneMatch != "" && o.IfNoneMatch == found.ETag:
		return nil, found, objstore.ErrNotModified
	}
	length, err := o.CheckRange(found.Size)
	if err != nil {
		return nil, found, err
	}
	return &reader{s: s, ctx: ctx, key: key, f: f, off: o.Offset, r: io.NewSectionReader(f, o.Offset, length), left: length}, found, nil
}

// reader is the body of an object.
type reader struct {
	s    *Store
	ctx  context.Context // of the operation that the body belongs to, as in net/http
	key  string
	f    *os.File
	off  int64 // where it began to read
	r    io.Reader
	left int64
}

// Zeros implements objstore.Sparse.
func (r *reader) Zeros() bool {
	return r.left > 0 && tree.NextData(r.f, r.off, r.off+r.left) == r.off+r.left
}

// Read implements io.Reader. A file that someone cuts short meanwhile is no EOF (O5).
func (r *reader) Read(p []byte) (int, error) {
	if err := objstore.Ended(r.ctx); err != nil {
		return 0, r.s.fail(r.ctx, "read", r.key, err)
	}
	n, err := r.r.Read(p)
	r.left -= int64(n)
	if err == io.EOF && r.left > 0 {
		err = fmt.Errorf("%d bytes short: %w", r.left, io.ErrUnexpectedEOF)
	}
	if err == nil || err == io.EOF {
		return n, err
	}
	return n, r.s.fail(r.ctx, "read", r.key, err)
}

// Close implements io.Closer.
func (r *reader) Close() error { return r.f.Close() }

// List implements objstore.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[objstore.Object, error] {
	return func(yield func(objstore.Object, error) bool) {
		err := s.list(ctx, prefix, func(o objstore.Object) bool { return yield(o, nil) })
		if err != nil && err != errStop {
			yield(objstore.Object{}, s.fail(ctx, "list", prefix, err))
		}
	}
}

// errStop: the caller of List wants no more.
var errStop = errors.New("stop")

func (s *Store) list(ctx context.Context, prefix string, yield func(objstore.Object) bool) error {
	if err := objstore.Ended(ctx); err != nil {
		return err
	}
	start := strings.TrimSuffix(prefix[:strings.LastIndexByte(prefix, '/')+1], "/")
	if strings.Contains(prefix, "/") {
		if err := checkKey(start); err != nil {
			return err
		}
	}
	root, err := s.root(false)
	if err == errAbsent {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	folder, err := tree.OpenBeneath(root, cmp.Or(start, "."), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return ignore(err, unix.ENOENT, unix.ENOTDIR)
	}
	defer folder.Close()
	return walk(ctx, folder, start, prefix, yield)
}

// walk yields the objects in a folder, and below it, in the order of their keys.
func walk(ctx context.Context, folder *os.File, at, prefix string, yield func(objstore.Object) bool) error {
	entries, err := folder.ReadDir(-1)
	if err != nil {
		return err
	}
	// A folder's keys go on with a slash, so "a-b" precedes what is in "a".
	sortKey := func(e os.DirEntry) string {
		if e.IsDir() {
			return e.Name() + "/"
		}
		return e.Name()
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return cmp.Compare(sortKey(a), sortKey(b)) })
	for _, e := range entries {
		if err := objstore.Ended(ctx); err != nil {
			return err
		}
		key := path.Join(at, e.Name())
		switch {
		case at == "" && (e.Name() == area || e.Name() == "lost+found"):
		case e.IsDir():
			if !strings.HasPrefix(key+"/", prefix) && !strings.HasPrefix(prefix, key+"/") {
				continue
			}
			below, err := tree.OpenBeneath(folder, e.Name(), unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) { // changed meanwhile
				continue
			}
			if err != nil {
				return fmt.Errorf("folder %s: %w", key, err)
			}
			err = walk(ctx, below, key, prefix, yield)
			below.Close()
			if err != nil {
				return err
			}
		case strings.HasPrefix(key, prefix):
			st, err := statAt(folder, e.Name())
			if errors.Is(err, objstore.ErrNotFound) || errors.Is(err, objstore.ErrRefused) { // gone, or no object
				continue
			}
			if err != nil {
				return err
			}
			if !yield(objectOf(key, st)) {
				return errStop
			}
		}
	}
	return nil
}
