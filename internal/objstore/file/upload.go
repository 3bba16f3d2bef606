package file

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// upload is an object being made of parts, in the folder uploads/<id>: a file "key",
// the file "data" that becomes the object, and a file "part.<n>" for each part that
// came before the size of parts was known.
type upload struct {
	s       *Store
	key, id string

	mu    sync.Mutex    // guards what follows; no I/O under it
	grid  int64         // the size of part 1, 0 while unknown
	sizes map[int]int64 // of the parts that are whole
	spool map[int]bool  // of these, the ones that lie in a file of their own
}

// NewUpload implements objstore.Store.
func (s *Store) NewUpload(ctx context.Context, key string) (objstore.Upload, error) {
	id := newName()
	if err := s.newUpload(ctx, key, id); err != nil {
		return nil, s.fail(ctx, "begin an upload to", key, err)
	}
	return &upload{s: s, key: key, id: id, sizes: map[int]int64{}, spool: map[int]bool{}}, nil
}

// newUpload makes the upload's folder, with its key in it from the first moment.
func (s *Store) newUpload(ctx context.Context, key, id string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if err := objstore.Ended(ctx); err != nil {
		return err
	}
	f, err := s.open()
	if err != nil {
		return err
	}
	defer f.Close()
	return s.withLock(ctx, f, func() error {
		folder, err := makeFolder(f.tmp, id)
		if err != nil {
			return err
		}
		defer folder.Close()
		if err := writeKey(folder, key); err != nil {
			return errors.Join(err, removeAll(f.tmp, id))
		}
		if err := unix.Renameat(int(f.tmp.Fd()), id, int(f.uploads.Fd()), id); err != nil {
			return errors.Join(&os.PathError{Op: "rename", Path: id, Err: err}, removeAll(f.tmp, id))
		}
		return f.uploads.Sync()
	})
}

func writeKey(folder *os.File, key string) error {
	f, err := tree.OpenBeneath(folder, "key", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, filePerm)
	if err != nil {
		return err
	}
	_, err = f.WriteString(key)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// ID implements objstore.Upload.
func (u *upload) ID() string { return u.id }

// errGone: the upload was aborted, or completed, by another.
var errGone = fmt.Errorf("%w: %w", objstore.ErrUnavailable, objstore.ErrNoUpload)

// open opens the store's folders and the upload's.
func (u *upload) open() (*folders, *os.File, error) {
	f, err := u.s.open()
	if err != nil {
		return nil, nil, err
	}
	folder, err := tree.OpenBeneath(f.uploads, u.id, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		f.Close()
		if errors.Is(err, unix.ENOENT) {
			err = errGone
		}
		return nil, nil, err
	}
	return f, folder, nil
}

// PutPart implements objstore.Upload.
func (u *upload) PutPart(ctx context.Context, n int, body io.ReaderAt, off, size int64) error {
	err := u.part(ctx, n, size, func(_ *folders, f *os.File, at int64) error {
		return write(ctx, f, at, body, off, size)
	})
	return u.s.fail(ctx, fmt.Sprintf("send part %d of", n), u.key, err)
}

// CopyPart implements objstore.Upload.
func (u *upload) CopyPart(ctx context.Context, n int, src objstore.Object, off, size int64) error {
	err := u.part(ctx, n, size, func(f *folders, to *os.File, at int64) error {
		from, err := openSource(f.root, src)
		if err != nil {
			return err
		}
		defer from.Close()
		if off < 0 || off+size > src.Size {
			return fmt.Errorf("%w: [%d, %d) of %d bytes", objstore.ErrRange, off, off+size, src.Size)
		}
		if err := copyRange(ctx, to, at, from, off, size); err != nil {
			return err
		}
		return unchanged(from, src)
	})
	return u.s.fail(ctx, fmt.Sprintf("copy part %d of", n), u.key, err)
}

// part lets fill write part n where it belongs: into "data", or into a file of its
// own while the size of parts is unknown.
func (u *upload) part(ctx context.Context, n int, size int64, fill func(f *folders, to *os.File, at int64) error) error {
	if err := objstore.Ended(ctx); err != nil {
		return err
	}
	at, spooled, err := u.place(n, size)
	if err != nil {
		return err
	}
	f, folder, err := u.open()
	if err != nil {
		return err
	}
	defer f.Close()
	defer folder.Close()
	name := "data"
	if spooled {
		name = spoolName(n)
	}
	to, err := tree.OpenBeneath(folder, name, unix.O_RDWR|unix.O_CREAT, filePerm)
	if err != nil {
		return err
	}
	if spooled {
		err = to.Truncate(size) // it may end in a hole
	}
	if err == nil {
		err = fill(f, to, at)
	}
	if err = errors.Join(err, to.Close()); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sizes[n], u.spool[n] = size, spooled
	return nil
}

func spoolName(n int) string { return "part." + strconv.Itoa(n) }

// place says where part n goes.
func (u *upload) place(n int, size int64) (at int64, spooled bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n == 1 && u.grid == 0 {
		u.grid = size
	}
	switch {
	case n < 1 || size < 1:
		return 0, false, fmt.Errorf("%w: part %d of %d bytes", objstore.ErrRefused, n, size)
	case n == 1 && size != u.grid || u.grid > 0 && size > u.grid:
		return 0, false, fmt.Errorf("%w: part %d has %d bytes, part 1 has %d", objstore.ErrRefused, n, size, u.grid)
	case u.grid == 0:
		return 0, true, nil
	}
	return int64(n-1) * u.grid, false, nil
}

// Complete implements objstore.Upload.
func (u *upload) Complete(ctx context.Context) (objstore.Object, error) {
	made, err := u.complete(ctx)
	return made, u.s.fail(ctx, "complete the upload to", u.key, err)
}

func (u *upload) complete(ctx context.Context) (none objstore.Object, err error) {
	if err := objstore.Ended(ctx); err != nil {
		return none, err
	}
	u.mu.Lock()
	sizes, spool, grid := maps.Clone(u.sizes), maps.Clone(u.spool), u.grid
	u.mu.Unlock()
	if err := objstore.CheckParts(sizes); err != nil {
		return none, err
	}
	f, folder, err := u.open()
	if err != nil {
		return none, err
	}
	defer f.Close()
	defer folder.Close()
	data, err := tree.OpenBeneath(folder, "data", unix.O_RDWR, 0)
	if err != nil {
		return none, err
	}
	defer data.Close()
	total := int64(0)
	for n, size := range sizes {
		total += size
		if !spool[n] {
			continue
		}
		if err := joinSpooled(ctx, folder, data, n, int64(n-1)*grid, size); err != nil {
			return none, err
		}
	}
	if err := data.Truncate(total); err != nil {
		return none, err
	}
	st, err := u.s.finish(folder, "data", data)
	if err != nil {
		return none, err
	}
	if err := u.s.install(ctx, f, folder, "data", u.key, objstore.PutOptions{}); err != nil {
		return none, err
	}
	return objectOf(u.key, st), removeAll(f.uploads, u.id)
}

func joinSpooled(ctx context.Context, folder, data *os.File, n int, at, size int64) error {
	part, err := tree.OpenBeneath(folder, spoolName(n), unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer part.Close()
	return copyRange(ctx, data, at, part, 0, size)
}

// Abort implements objstore.Upload.
func (u *upload) Abort(ctx context.Context) error {
	return u.s.AbortUpload(ctx, objstore.PendingUpload{Key: u.key, ID: u.id})
}

// AbortUpload implements objstore.Store.
func (s *Store) AbortUpload(ctx context.Context, u objstore.PendingUpload) error {
	return s.fail(ctx, "abort the upload to", u.Key, s.abort(ctx, u))
}

func (s *Store) abort(ctx context.Context, u objstore.PendingUpload) error {
	if err := objstore.Ended(ctx); err != nil {
		return err
	}
	if err := objstore.CheckKey(u.ID); err != nil || strings.Contains(u.ID, "/") {
		return fmt.Errorf("%w: no upload has the id %q", objstore.ErrRefused, u.ID)
	}
	uploads, err := s.openUploads()
	if uploads == nil {
		return err
	}
	defer uploads.Close()
	return removeAll(uploads, u.ID)
}

// openUploads opens the folder of uploads, nil if there is none.
func (s *Store) openUploads() (*os.File, error) {
	root, err := s.root(false)
	if err != nil {
		return nil, ignore(err, errAbsent)
	}
	defer root.Close()
	uploads, err := tree.OpenBeneath(root, area+"/uploads", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	return uploads, ignore(err, unix.ENOENT)
}

// Uploads implements objstore.Store.
func (s *Store) Uploads(ctx context.Context, prefix string) ([]objstore.PendingUpload, error) {
	found, err := s.pending(ctx, prefix)
	return found, s.fail(ctx, "list the uploads to", prefix, err)
}

func (s *Store) pending(ctx context.Context, prefix string) ([]objstore.PendingUpload, error) {
	if err := objstore.Ended(ctx); err != nil {
		return nil, err
	}
	uploads, err := s.openUploads()
	if uploads == nil {
		return nil, err
	}
	defer uploads.Close()
	ids, err := uploads.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var found []objstore.PendingUpload
	for _, id := range ids {
		f, st, err := openObject(uploads, path.Join(id, "key"))
		if errors.Is(err, objstore.ErrNotFound) { // ended meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		key, err := io.ReadAll(io.LimitReader(f, objstore.MaxKey+1))
		f.Close()
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(string(key), prefix) {
			found = append(found, objstore.PendingUpload{Key: string(key), ID: id, Started: time.Unix(st.Mtim.Unix())})
		}
	}
	slices.SortFunc(found, func(a, b objstore.PendingUpload) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.ID, b.ID))
	})
	return found, nil
}
