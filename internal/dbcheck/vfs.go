package dbcheck

import (
	"context"
	"errors"
	"io"
	"path"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/chromafs/chromafs/internal/tree"
)

// Names of the files of a database, as SQLite makes them from its name.
const (
	journalSuffix = "-journal"
	walSuffix     = "-wal"
)

// mainName is what SQLite calls the database that is checked, wherever in the view
// it lies.
const mainName = "db"

// viewVFS shows SQLite one database of a view, with its journal or WAL and nothing
// else. It is used by one goroutine.
type viewVFS struct {
	ctx      context.Context
	files    map[string]*overlay // by SQLite's name
	view     map[string]tree.Entry
	closers  []io.Closer
	overlaid int64 // bytes in blocks of overlays
	limit    int64 // of these

	err   error  // the first that SQLite was given; SQLite does not keep it
	super string // a super-journal that SQLite asked for, and the view has
}

// newViewVFS opens what the view has of a database.
func (c *checker) newViewVFS(name string) (*viewVFS, error) {
	v := &viewVFS{ctx: c.ctx, files: map[string]*overlay{}, view: c.files, limit: c.limit}
	for _, suffix := range []string{"", journalSuffix, walSuffix} {
		e, ok := c.files[name+suffix]
		if !ok {
			continue
		}
		f, err := c.view.Open(e.Path)
		if err != nil {
			return nil, errors.Join(err, v.close())
		}
		v.closers = append(v.closers, f)
		v.files[mainName+suffix] = v.overlay(e, f)
	}
	return v, nil
}

func (v *viewVFS) overlay(e tree.Entry, base io.ReaderAt) *overlay {
	return &overlay{v: v, name: e.Path, base: base, seen: e.Size, size: e.Size, blocks: map[int64]*[blockSize]byte{}}
}

func (v *viewVFS) close() error {
	var errs []error
	for _, c := range v.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// fail keeps an error that SQLite only gets the kind of.
func (v *viewVFS) fail(err error) error {
	if v.err == nil {
		v.err = err
	}
	return sqlite3.IOERR
}

// isSuper reports whether the view has the super-journal of that name. A journal of a
// transaction over several databases names one, by its whole path at the application's
// place: such a journal counts as long as that file exists. Which folder of that path
// the view is, is not known, so its random last part decides. What the view does not
// have is gone, at the least for whoever restores it: SQLite then takes the transaction
// for committed. (The mount's views have none: what it would decide is decided there.)
func (v *viewVFS) isSuper(name string) bool {
	folder, base := path.Split(name)
	if folder == "" { // one of the database's own
		return false
	}
	for p := range v.view {
		if path.Base(p) == base {
			v.super = base
			return true
		}
	}
	return false
}

// Open implements vfs.VFS.
func (v *viewVFS) Open(name string, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	if name == "" {
		return nil, flags, sqlite3.CANTOPEN
	}
	if flags&vfs.OPEN_SUPER_JOURNAL != 0 {
		// To see whose journals it still needs before it is deleted: nobody's here.
		return v.overlay(tree.Entry{Path: name}, nil), flags, nil
	}
	o := v.files[name]
	if o == nil {
		if flags&vfs.OPEN_CREATE == 0 {
			return nil, flags, sqlite3.CANTOPEN
		}
		o = v.overlay(tree.Entry{Path: name}, nil)
		v.files[name] = o
	}
	return o, flags, nil
}

// Delete implements vfs.VFS.
func (v *viewVFS) Delete(name string, _ bool) error {
	if o := v.files[name]; o != nil {
		v.overlaid -= int64(len(o.blocks)) * blockSize
		delete(v.files, name)
	}
	return nil
}

// Access implements vfs.VFS.
func (v *viewVFS) Access(name string, _ vfs.AccessFlag) (bool, error) {
	return v.files[name] != nil || v.isSuper(name), nil
}

// FullPathname implements vfs.VFS.
func (v *viewVFS) FullPathname(name string) (string, error) { return name, nil }
