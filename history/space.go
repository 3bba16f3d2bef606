package history

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/tree"
)

// room is what is known of the disk before a restore.
type room struct {
	need   uint64 // of the new copy
	free   uint64 // on the file system, for an ordinary user
	staged uint64 // of the new copy, left by an interrupted restore
	local  uint64 // of the old copy
	empty  bool   // there is no old copy
}

// fits reports whether there is room beside the old copy.
func (m *room) fits() bool { return m.need <= m.free+m.staged }

// refuse returns why the new copy cannot take the place of the old one, nil if it
// can: the store must have the old one, and the disk must hold the new one alone.
func (m *room) refuse(localClean bool, cause error) error {
	unsaved := !localClean && !m.empty
	if unsaved || m.empty || m.need > m.free+m.staged+m.local {
		return &NoSpaceError{Need: m.need, Free: m.free + m.staged, Unsaved: unsaved, Err: cause}
	}
	return nil
}

// room measures and logs, before a byte is fetched.
func (r *restorer) room() (*room, error) {
	m := &room{need: r.need()}
	if err := m.measure(r); err != nil {
		return nil, err
	}
	files, size := r.m.Files()
	r.o.Log.Info("restoring", "id", r.m.ID, "dir", r.dir.Path(), "files", files, "bytes", size,
		"need", m.need, "free", m.free, "staged", m.staged, "local", m.local)
	return m, nil
}

func (m *room) measure(r *restorer) (err error) {
	names, err := r.ownNames(r.dir.Root())
	if err != nil {
		return err
	}
	m.empty = len(names) == 0
	if m.free, err = r.dir.Free(); err != nil {
		return err
	}
	m.local, err = allocated(r.dir.Root(), r.foreign)
	if errors.Is(err, fs.ErrPermission) { // nothing is known of it, so nothing is hoped for
		m.local, err = 0, nil
	}
	if err != nil {
		return err
	}
	stage, err := tree.OpenBeneath(r.dir.Scratch(), stageName(r.m.ID), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		m.staged = 0
		return nil
	}
	if err != nil {
		return err
	}
	defer stage.Close()
	m.staged, err = allocated(stage, nil)
	if errors.Is(err, fs.ErrPermission) {
		m.staged, err = 0, nil
	}
	return err
}

// measureAgain measures after the disk turned out to be full, whatever it says is
// free: a quota may allow less.
func (m *room) measureAgain(r *restorer) error {
	if err := m.measure(r); err != nil {
		return err
	}
	m.free = 0
	return nil
}

const block = 4096 // what a file system allocates at once, nearly everywhere

// need returns how many bytes the new copy takes on disk. Parts that are zeros
// throughout take none.
func (r *restorer) need() uint64 {
	var sum uint64
	for i := range r.m.Entries {
		e := &r.m.Entries[i]
		sum += block / 4 // inode and name
		if e.Type == tree.Dir {
			sum += block
		}
		var size int64
		for part := range e.Parts {
			if _, length := tree.PartRange(e.Size, e.PartSize, part); !e.IsZeroPart(part) {
				size += length
			}
		}
		sum += uint64(size+block-1) / block * block
	}
	return sum
}

// allocated returns how many bytes a tree takes on disk that would be free without
// it: files with another name elsewhere are not counted.
func allocated(root *os.File, skip func(string) bool) (uint64, error) {
	entries, _, err := tree.Walk(root, skip)
	if err != nil {
		return 0, err
	}
	var sum uint64
	for _, e := range entries {
		if e.Type != tree.File || e.Nlink > 1 {
			continue
		}
		f, err := tree.OpenBeneath(root, e.Path, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			return 0, err
		}
		var st unix.Stat_t
		err = unix.Fstat(int(f.Fd()), &st)
		if cerr := f.Close(); err != nil || cerr != nil {
			return 0, fmt.Errorf("stat %s: %w", e.Path, errors.Join(err, cerr))
		}
		sum += uint64(st.Blocks) * 512
	}
	return sum, nil
}
