package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// deleteBatch is how many names are removed before others get the lock.
const deleteBatch = 100

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	for _, key := range keys {
		if err := checkKey(key); err != nil {
			return s.fail(ctx, "delete", key, err)
		}
	}
	return s.fail(ctx, "delete", "", s.delete(ctx, keys))
}

func (s *Store) delete(ctx context.Context, keys []string) error {
	if err := objstore.Ended(ctx); err != nil || len(keys) == 0 {
		return err
	}
	root, err := s.root(false)
	if err != nil {
		return ignore(err, errAbsent)
	}
	root.Close()
	f, err := s.open()
	if err != nil {
		return err
	}
	defer f.Close()
	touched := map[string]bool{} // folders whose entries changed
	for batch := range slices.Chunk(keys, deleteBatch) {
		err := s.withLock(ctx, f, func() error {
			for _, key := range batch {
				if err := deleteLocked(f.root, key, touched); err != nil {
					return fmt.Errorf("%s: %w", key, err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for dir := range touched {
		folder, err := tree.OpenBeneath(f.root, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) { // became empty, or an object
			continue
		}
		if err != nil {
			return err
		}
		err = folder.Sync()
		folder.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteLocked removes the file of a key, and the folders that it leaves empty.
func deleteLocked(root *os.File, key string, touched map[string]bool) error {
	for flags := 0; key != "."; flags, key = unix.AT_REMOVEDIR, path.Dir(key) {
		dir := path.Dir(key)
		parent, err := tree.OpenBeneath(root, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return ignore(err, unix.ENOENT, unix.ENOTDIR)
		}
		err = unix.Unlinkat(int(parent.Fd()), path.Base(key), flags)
		parent.Close()
		switch {
		case err == nil:
			touched[dir] = true
		case flags == 0 && err == unix.EISDIR: // no object has this key
			return nil
		case flags != 0: // not empty, or not ours to remove: a folder is no object
			return nil
		case err != unix.ENOENT:
			return &os.PathError{Op: "remove", Path: key, Err: err}
		}
	}
	return nil
}
