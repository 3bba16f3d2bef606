package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// OpenBeneath opens a path below the directory that root refers to. Neither a
// symbolic link nor a ".." can lead out of it or, being a link, anywhere at all
// (openat2(2), RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS). "." opens root anew.
func OpenBeneath(root *os.File, name string, flags int, mode uint32) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(int(root.Fd()), name, &how)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), name), nil
		case unix.EINTR, unix.EAGAIN:
			continue
		}
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
}

// Walk lists everything below root, sorted by path, reaching each folder through
// a descriptor. Entries for which skip returns true are left out with all below
// them. Files that are no File, Dir or Symlink are left out too and their paths
// returned in special. An entry that vanishes meanwhile is left out silently: the
// caller holds the tree still where that matters.
func Walk(root *os.File, skip func(path string) bool) (entries []Entry, special []string, err error) {
	w := walker{skip: skip}
	if err := w.folder(root, "."); err != nil {
		return nil, nil, err
	}
	Sort(w.entries)
	return w.entries, w.special, nil
}

type walker struct {
	skip    func(string) bool
	entries []Entry
	special []string
}

func (w *walker) folder(parent *os.File, name string) error {
	dir, err := OpenBeneath(parent, path.Base(name), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("walk %s: %w", name, err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read folder %s: %w", name, err)
	}
	for _, base := range names {
		p := path.Join(name, base)
		if w.skip != nil && w.skip(p) {
			continue
		}
		e, ok, err := Stat(dir, base)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("stat %s: %w", p, err)
		}
		if !ok {
			w.special = append(w.special, p)
			continue
		}
		e.Path = p
		w.entries = append(w.entries, e)
		if e.Type == Dir {
			if err := w.folder(dir, p); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// Stat describes one name in a folder without following it. ok is false where it
// is neither file, folder nor symbolic link. The entry's path is the name.
func Stat(dir *os.File, name string) (e Entry, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return Entry{}, false, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	e, ok = FromStat(name, &st)
	if ok && e.Type == Symlink {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
		if err != nil {
			return Entry{}, false, &os.PathError{Op: "readlink", Path: name, Err: err}
		}
		e.Target = string(buf[:n])
	}
	return e, ok, nil
}

// FromStat makes an entry of what stat(2) returned; ok as in Stat.
func FromStat(name string, st *unix.Stat_t) (e Entry, ok bool) {
	e = Entry{
		Path: name, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		ModTime: st.Mtim.Nano(), ChangeTime: st.Ctim.Nano(), Inode: st.Ino, Nlink: uint64(st.Nlink),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = File, st.Size
	case unix.S_IFDIR:
		e.Type = Dir
	case unix.S_IFLNK:
		e.Type = Symlink
	default:
		return Entry{}, false
	}
	return e, true
}
