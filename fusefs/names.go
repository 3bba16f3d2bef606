package fusefs

import (
	"path"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/tree"
)

// findNames walks the backing tree for every path of a file. The device number is
// compared through each file's own attributes, so other file systems mounted
// below the root do not confuse it.
func (s *fsys) findNames(key inodeKey) ([]string, error) {
	dir, err := tree.OpenBeneath(s.root, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var found []string
	entries, special, err := tree.Walk(dir, func(p string) bool { return p == datadir.StateName })
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Inode == key.ino && e.Type != tree.Dir {
			found = append(found, e.Path)
		}
	}
	for _, p := range special {
		parent, err := tree.OpenBeneath(s.root, path.Dir(p), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		err = unix.Fstatat(int(parent.Fd()), path.Base(p), &st, unix.AT_SYMLINK_NOFOLLOW)
		parent.Close()
		if err == nil && keyOf(&st) == key {
			found = append(found, p)
		}
	}
	return found, nil
}
