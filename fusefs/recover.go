package fusefs

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/tree"
)

// Recover undoes the persists that the end of an earlier daemon cut in two, so that
// ChromaDB finds each segment as it was before (F5). It is for a DIR that is locked
// and not mounted, before anything looks at its files. Killed in the middle, it
// does the same again. A segment that somebody changed since is left alone.
func Recover(dir *datadir.Dir, log *slog.Logger) error {
	folder, err := openUndoFolder(dir.State())
	if err != nil {
		return fmt.Errorf("look for interrupted persists: %w", err)
	}
	defer folder.Close()
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("look for interrupted persists: %w", err)
	}
	for _, name := range names {
		if err := recoverOne(dir, folder, name, log); err != nil {
			return fmt.Errorf("undo an interrupted persist by %s/%s/%s/%s: %w",
				dir.Path(), datadir.StateName, undoName, name, err)
		}
		if err := removeIn(folder, name); err != nil {
			return err
		}
	}
	if len(names) > 0 {
		return folder.Sync()
	}
	return nil
}

func recoverOne(dir *datadir.Dir, folder *os.File, name string, log *slog.Logger) error {
	f, err := tree.OpenBeneath(folder, name, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	head, end, err := readUndo(f, nil)
	if err == errUndoHeader {
		return nil // nothing was changed before the header was whole
	}
	if err != nil {
		return err
	}
	boot := bootID()
	rebooted := boot != "" && head.Boot != "" && boot != head.Boot || failpoint.Off("fusefs/same-boot")
	if end == undoSettled || end == undoComplete && !rebooted {
		return nil // all of it is there
	}
	u := undoing{head: head}
	defer u.close()
	if u.folder, err = findSegment(dir, head); err != nil || u.folder == nil {
		return err // nil: the segment was deleted
	}
	later, err := u.open(info.ModTime())
	if err != nil {
		return err
	}
	if later != "" {
		log.Warn("a persist was cut off, but somebody changed the segment later: it stays as it is",
			"segment", head.Folder[0], "file", later)
		return nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := u.apply(f); err != nil {
		return err
	}
	log.Warn("undid a persist that the end of the last daemon cut in two: ChromaDB will make it again",
		"segment", head.Folder[0], "files", len(head.Files))
	return nil
}

// undoing is a log being applied.
type undoing struct {
	head   undoHeader
	folder *os.File
	files  []*os.File // by index; nil: gone or replaced
}

// open opens the files that are still those of the log. later is the name of one
// that changed after the log was used last.
func (u *undoing) open(used time.Time) (later string, err error) {
	u.files = make([]*os.File, len(u.head.Files))
	known := map[string]bool{}
	for i, want := range u.head.Files {
		known[want.Name] = true
		e, ok, err := tree.Stat(u.folder, want.Name)
		if os.IsNotExist(err) || err == nil && (!ok || e.Type != tree.File || e.Inode != want.Inode) {
			continue
		}
		if err != nil {
			return "", err
		}
		if e.ChangeTime > used.Add(undoSlack).UnixNano() {
			return want.Name, nil
		}
		if u.files[i], err = tree.OpenBeneath(u.folder, want.Name, unix.O_RDWR, 0); err != nil {
			return "", err
		}
	}
	if known[pickleName] {
		return "", nil
	}
	e, _, err := tree.Stat(u.folder, pickleName)
	if err == nil && e.ChangeTime > used.Add(undoSlack).UnixNano() {
		return pickleName, nil
	}
	if err != nil && !os.IsNotExist(err) {
		return "", err
	}
	return "", nil
}

// apply puts everything back and syncs it.
func (u *undoing) apply(log io.Reader) error {
	pickle := false
	_, _, err := readUndo(log, func(h *undoHeader, file int, off int64, data []byte) error {
		if u.files[file] == nil {
			return nil
		}
		_, err := u.files[file].WriteAt(data, off)
		return err
	})
	if err != nil {
		return err
	}
	for i, f := range u.files {
		pickle = pickle || u.head.Files[i].Name == pickleName
		if f == nil {
			continue
		}
		if err := f.Truncate(u.head.Files[i].Size); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("fusefs/recover"); err != nil {
		return err
	}
	if !pickle { // the first persist: without a pickle ChromaDB begins the segment anew
		if err := removeIn(u.folder, pickleName); err != nil {
			return err
		}
	}
	return u.folder.Sync()
}

func (u *undoing) close() {
	for _, f := range append(u.files, u.folder) {
		if f != nil {
			f.Close()
		}
	}
}

// findSegment opens the folder that a log is of; nil if it is gone.
func findSegment(dir *datadir.Dir, head undoHeader) (*os.File, error) {
	for _, p := range head.Folder {
		f, err := openSegment(dir, p, head.Inode)
		if f != nil || err != nil {
			return f, err
		}
	}
	entries, _, err := tree.Walk(dir.Root(), datadir.Outside(dir.Root()))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Type == tree.Dir && e.Inode == head.Inode {
			return openSegment(dir, e.Path, head.Inode)
		}
	}
	return nil, nil
}

func openSegment(dir *datadir.Dir, p string, inode uint64) (*os.File, error) {
	f, err := tree.OpenBeneath(dir.Root(), path.Clean(p), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, nil
	case err != nil:
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Ino != inode {
		f.Close()
		return nil, err
	}
	return f, nil
}
