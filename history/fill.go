package history

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// fill makes the tree below root what the manifest says, checked and synced. What
// is right already stays: the parts that an interrupted restore got, or, in place,
// those of the old copy. local is another tree to take equal parts from, or nil.
func (r *restorer) fill(ctx context.Context, root, local *os.File) error {
	have, err := r.clear(root)
	if err != nil {
		return fmt.Errorf("remove what is not in the snapshot: %w", err)
	}
	if err := r.makeFolders(root, have); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(r.o.Parallel)
	for i := range r.m.Entries {
		if e := &r.m.Entries[i]; e.Type == tree.File && gctx.Err() == nil {
			if err := r.fillFile(gctx, g, root, local, e); err != nil {
				g.Go(func() error { return err })
			}
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := r.makeLinks(root, have); err != nil {
		return err
	}
	return r.finishFolders(root)
}

// clear removes from a tree all that the manifest does not name or names as
// something else, and files that have another name elsewhere, which writing would
// change too. It returns what is left.
func (r *restorer) clear(root *os.File) (map[string]bool, error) {
	entries, special, err := tree.Walk(root, r.foreign)
	if err != nil {
		return nil, err
	}
	want := make(map[string]*tree.Record, len(r.m.Entries))
	for i := range r.m.Entries {
		want[r.m.Entries[i].Path] = &r.m.Entries[i]
	}
	have := make(map[string]bool, len(entries))
	for _, e := range entries {
		w := want[e.Path]
		if w != nil && w.Type == e.Type && w.Target == e.Target && (e.Type != tree.File || e.Nlink == 1) {
			have[e.Path] = true
			continue
		}
		if parent := parentOf(e.Path); parent != "" && !have[parent] {
			continue // removed with its folder
		}
		if err := r.removePath(root, e.Path); err != nil {
			return nil, err
		}
	}
	for _, path := range special {
		if parent := parentOf(path); parent == "" || have[parent] {
			if err := r.removePath(root, path); err != nil {
				return nil, err
			}
		}
	}
	return have, nil
}

func (r *restorer) removePath(root *os.File, path string) error {
	parent, err := openParent(root, path)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := removeTree(parent, baseOf(path)); err != nil {
		return err
	}
	return r.at("clear-entry")
}

// makeFolders makes the folders that are missing and opens the others for us.
func (r *restorer) makeFolders(root *os.File, have map[string]bool) error {
	for i := range r.m.Entries {
		e := &r.m.Entries[i]
		if e.Type != tree.Dir {
			continue
		}
		parent, err := openParent(root, e.Path)
		if err != nil {
			return err
		}
		if have[e.Path] {
			var dir *os.File
			if dir, err = openWritable(parent, baseOf(e.Path)); err == nil {
				err = dir.Close()
			}
		} else if merr := unix.Mkdirat(int(parent.Fd()), baseOf(e.Path), 0o700); merr != nil {
			err = &os.PathError{Op: "mkdir", Path: e.Path, Err: merr}
		}
		if err = errors.Join(err, parent.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (r *restorer) makeLinks(root *os.File, have map[string]bool) error {
	for i := range r.m.Entries {
		e := &r.m.Entries[i]
		if e.Type != tree.Symlink {
			continue
		}
		parent, err := openParent(root, e.Path)
		if err != nil {
			return err
		}
		if !have[e.Path] {
			err = unix.Symlinkat(e.Target, int(parent.Fd()), baseOf(e.Path))
		}
		if err == nil {
			err = r.own(int(parent.Fd()), baseOf(e.Path), unix.AT_SYMLINK_NOFOLLOW, e)
		}
		if err == nil {
			err = setTime(int(parent.Fd()), baseOf(e.Path), unix.AT_SYMLINK_NOFOLLOW, e)
		}
		if err = errors.Join(err, parent.Close()); err != nil {
			return fmt.Errorf("symbolic link %q: %w", e.Path, err)
		}
	}
	return nil
}

// finishFolders gives folders their modes and times and syncs them, the deepest
// first, for nothing changes in them afterwards.
func (r *restorer) finishFolders(root *os.File) error {
	for i := range slices.Backward(r.m.Entries) {
		e := &r.m.Entries[i]
		if e.Type != tree.Dir {
			continue
		}
		dir, err := tree.OpenBeneath(root, e.Path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(r.finish(dir, e), dir.Close()); err != nil {
			return fmt.Errorf("folder %q: %w", e.Path, err)
		}
	}
	return root.Sync()
}

// finish sets what an open file or folder has besides content, and syncs it.
func (r *restorer) finish(f *os.File, e *tree.Record) error {
	if err := r.own(int(f.Fd()), "", unix.AT_EMPTY_PATH, e); err != nil {
		return err
	}
	if err := unix.Fchmod(int(f.Fd()), e.Mode); err != nil { // after chown, which clears set-uid
		return fmt.Errorf("chmod: %w", err)
	}
	if err := setTime(int(f.Fd()), "", unix.AT_EMPTY_PATH, e); err != nil {
		return err
	}
	return f.Sync()
}

// own sets the owner, as root. In a user namespace root may not give files to every
// id; the bytes matter more.
func (r *restorer) own(dirfd int, name string, flags int, e *tree.Record) error {
	if !r.root {
		return nil
	}
	err := unix.Fchownat(dirfd, name, int(e.UID), int(e.GID), flags)
	if err == unix.EPERM || err == unix.EINVAL {
		if !r.chowned.Swap(true) {
			r.o.Log.Warn("owners cannot be restored here", "path", e.Path, "uid", e.UID, "gid", e.GID, "error", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	return nil
}

func setTime(dirfd int, name string, flags int, e *tree.Record) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(e.ModTime)}
	if err := unix.UtimesNanoAt(dirfd, name, times, flags); err != nil {
		return fmt.Errorf("set the time: %w", err)
	}
	return nil
}

func openParent(root *os.File, path string) (*os.File, error) {
	parent := parentOf(path)
	if parent == "" {
		parent = "."
	}
	return tree.OpenBeneath(root, parent, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

func baseOf(path string) string {
	if parent := parentOf(path); parent != "" {
		return path[len(parent)+1:]
	}
	return path
}

// fileJob is one file being filled. The last part to end finishes it.
type fileJob struct {
	e     *tree.Record
	dst   *os.File
	old   int64    // how many bytes dst had
	local *os.File // nil: none
	left  atomic.Int64
}

// fillFile opens a file and lets g fill its parts.
func (r *restorer) fillFile(ctx context.Context, g *errgroup.Group, root, local *os.File, e *tree.Record) error {
	dst, old, err := openDestination(root, e.Path)
	if err != nil {
		return err
	}
	j := &fileJob{e: e, dst: dst, old: old}
	if err := dst.Truncate(e.Size); err != nil {
		return errors.Join(fmt.Errorf("%q: %w", e.Path, err), dst.Close())
	}
	if len(e.Parts) == 0 {
		g.Go(func() error {
			if ctx.Err() != nil {
				return j.close()
			}
			return r.finishFile(j)
		})
		return nil
	}
	if local != nil {
		j.local = openLocal(local, e)
	}
	j.left.Store(int64(len(e.Parts)))
	for part := range e.Parts {
		g.Go(func() error {
			err := objstore.Ended(ctx)
			if err == nil {
				err = r.fillPart(ctx, j, part)
			}
			if err == nil {
				j.startWriting(part)
			}
			if j.left.Add(-1) > 0 {
				return err
			}
			if err != nil || ctx.Err() != nil {
				return errors.Join(err, j.close())
			}
			return r.finishFile(j)
		})
	}
	return nil
}

func (r *restorer) finishFile(j *fileJob) error {
	if err := errors.Join(r.finish(j.dst, j.e), j.close()); err != nil {
		return fmt.Errorf("file %q: %w", j.e.Path, err)
	}
	return r.at("file")
}

// startWriting lets the disk begin with a part while the others are fetched, so that
// the sync at the end has little left to do. It is no promise: finish syncs.
func (j *fileJob) startWriting(part int) {
	off, length := tree.PartRange(j.e.Size, j.e.PartSize, part)
	_ = unix.SyncFileRange(int(j.dst.Fd()), off, length, unix.SYNC_FILE_RANGE_WRITE) // not every file system can
}

func (j *fileJob) close() error {
	if j.local == nil {
		return j.dst.Close()
	}
	return errors.Join(j.local.Close(), j.dst.Close())
}

// openDestination opens a file to be filled and says how many bytes it has. One
// that cannot be opened as it is gives way to a new one.
func openDestination(root *os.File, path string) (*os.File, int64, error) {
	parent, err := openParent(root, path)
	if err != nil {
		return nil, 0, err
	}
	defer parent.Close()
	base := baseOf(path)
	f, err := tree.OpenBeneath(parent, base, unix.O_RDWR|unix.O_NOFOLLOW, 0)
	if err == nil {
		info, err := f.Stat()
		if err != nil {
			return nil, 0, errors.Join(err, f.Close())
		}
		return f, info.Size(), nil
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ETXTBSY) {
		err = removeTree(parent, base)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err
	}
	f, err = tree.OpenBeneath(parent, base, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	return f, 0, err
}

// openLocal opens the old copy of a file, nil where there is none that can be read.
func openLocal(local *os.File, e *tree.Record) *os.File {
	parent, err := openParent(local, e.Path)
	if err != nil {
		return nil
	}
	defer parent.Close()
	if st, ok, err := tree.Stat(parent, baseOf(e.Path)); err != nil || !ok || st.Type != tree.File {
		return nil
	}
	f, err := tree.OpenBeneath(parent, baseOf(e.Path), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	return f
}

// fillPart makes one part of a file right: of what is there, of the old copy, of
// the snapshot, or of another copy in the store (R1).
func (r *restorer) fillPart(ctx context.Context, j *fileJob, part int) error {
	off, length := tree.PartRange(j.e.Size, j.e.PartSize, part)
	if off < j.old {
		if sum, err := tree.HashPart(j.dst, off, length); err == nil && sum == j.e.Parts[part] {
			return nil
		}
	}
	w := &hole{f: j.dst, off: off, length: length, dirty: off < j.old}
	if j.e.IsZeroPart(part) {
		return w.reset()
	}
	if j.local != nil {
		_, err := copyPart(io.NewSectionReader(j.local, off, length), j.e, part, w.write)
		if local := (*localError)(nil); err == nil || errors.As(err, &local) {
			return err
		}
	}
	if err := r.at("fetch"); err != nil {
		return err
	}
	var tried []error
	for _, from := range []objstore.Object{{Key: ObjectKey(r.m.ID, j.e.Path), ETag: j.e.ETag}, {Key: CurrentKey(j.e.Path)}} {
		key := from.Key
		n, err := r.c.fetchPart(ctx, key, from.ETag, j.e, part, w.write)
		r.fetched.Add(n)
		if err == nil {
			return nil
		}
		if !otherCopyMayHelp(err) {
			return fmt.Errorf("file %q, part %d: %w", j.e.Path, part+1, err)
		}
		tried = append(tried, fmt.Errorf("%s: %w", key, err))
		r.o.Log.Warn("a copy of a part is not usable", "key", key, "part", part+1, "error", err)
	}
	bad := &IntegrityError{ID: r.m.ID, Path: j.e.Path, Part: part, Err: errors.Join(tried...)}
	if errors.Is(tried[0], objstore.ErrNotFound) {
		return r.c.missing(ctx, r.m.ID, bad)
	}
	return bad
}
