package dbcheck

import (
	"context"
	"errors"
	"io"

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
	closers  []io.Closer
	overlaid int64 // bytes in blocks of overlays
	limit    int64 // of these

	err error // the first that SQLite was given; SQLite does not keep it
}

// newViewVFS opens what the view has of a database.
func (c *checker) newViewVFS(name string) (*viewVFS, error) {
	v := &viewVFS{ctx: c.ctx, files: map[string]*overlay{}, limit: c.limit}
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

// Open implements vfs.VFS.
func (v *viewVFS) Open(name string, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	if name == "" {
		return nil, flags, sqlite3.CANTOPEN
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

// Access implements vfs.VFS. A journal of a transaction over several databases may
// name a super-journal by its whole path: that is never here, as it is not for whoever
// restores the snapshot, and SQLite then takes the transaction for committed. Where it
// is not, the view has cut the name off (package superjournal).
func (v *viewVFS) Access(name string, _ vfs.AccessFlag) (bool, error) {
	return v.files[name] != nil, nil
}

// FullPathname implements vfs.VFS.
func (v *viewVFS) FullPathname(name string) (string, error) { return name, nil }
