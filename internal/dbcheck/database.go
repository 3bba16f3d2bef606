package dbcheck

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/chromafs/chromafs/internal/tree"
)

// setUp makes SQLite take no WAL index, which is shared memory, but one on its heap
// (before anything makes it look at the file), little memory, and no other file.
const setUp = `PRAGMA locking_mode=EXCLUSIVE; PRAGMA cache_size=-2048; PRAGMA mmap_size=0;
PRAGMA temp_store=MEMORY; PRAGMA trusted_schema=OFF; PRAGMA ignore_check_constraints=ON`

const maxSQLite = 64 << 20 // bytes (D3)

// registered makes the names of VFSes unique: SQLite's list of them is global.
var registered atomic.Uint64

// verdict is what SQLite says about a database.
type verdict struct {
	damage []string
	odd    []string // rows that break a rule of the schema: written so, or by an older SQLite
}

// database checks one SQLite file.
func (c *checker) database(e tree.Entry) error {
	pragma := "PRAGMA quick_check"
	if c.mode == Full {
		pragma = "PRAGMA integrity_check"
	}
	var found verdict
	failed, err := c.ask(e.Path, func(db *sqlite3.Conn) error { return found.collect(db, pragma) })
	switch {
	case err != nil:
		return err
	case errors.Is(failed, errOverlay):
		c.doubt(e.Path, "not checked: %v", failed)
		return nil
	case failed != nil && isDamage(failed):
		found.damage = append(found.damage, failed.Error())
	case failed != nil:
		c.doubt(e.Path, "not checked: %s", oneLine(failed.Error()))
	}
	if len(found.odd) > 0 {
		c.doubt(e.Path, "%s%s", oneLine(found.odd[0]), more(len(found.odd)-1))
	}
	if len(found.damage) > 0 {
		c.damaged(e.Path, "%s%s", oneLine(found.damage[0]), more(len(found.damage)-1))
	}
	return nil
}

func more(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (and %d more)", n)
}

// isDamage reports whether SQLite gave up because of what the file holds.
func isDamage(err error) bool {
	return errors.Is(err, sqlite3.CORRUPT) || errors.Is(err, sqlite3.NOTADB) || errors.Is(err, sqlite3.IOERR_SHORT_READ)
}

// ask opens a database of the view and does something with it. failed is why SQLite
// gave up; an error means that the view could not be read, or that the context ended.
func (c *checker) ask(path string, do func(db *sqlite3.Conn) error) (failed, err error) {
	v, err := c.newViewVFS(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	failed = c.connect(v, do)
	if v.overlaid > maxOverlay/8 {
		v.files = nil
		debug.FreeOSMemory() // the daemon may be idle for an hour from here on (D3)
	}
	switch {
	case c.ctx.Err() != nil:
		return nil, context.Cause(c.ctx)
	case errors.Is(v.err, errOverlay):
		failed = fmt.Errorf("%w (%d MiB at most)", v.err, v.limit>>20)
	case v.err != nil:
		return nil, v.err
	}
	return failed, nil
}

// connect opens what v shows. Whatever a damaged file does to SQLite, the mount must
// go on (F4): a panic is an error like another.
func (c *checker) connect(v *viewVFS, do func(db *sqlite3.Conn) error) (err error) {
	name := "chromafs-check-" + strconv.FormatUint(registered.Add(1), 10)
	vfs.Register(name, v)
	defer vfs.Unregister(name)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("SQLite gave up: %v", p)
		}
	}()
	ctx := sqlite3.WithMaxMemory(c.ctx, maxSQLite)
	db, err := sqlite3.OpenContext(ctx, "file:"+mainName+"?vfs="+name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetInterrupt(c.ctx)
	if _, err := db.Config(sqlite3.DBCONFIG_NO_CKPT_ON_CLOSE, true); err != nil {
		return err
	}
	if err := db.Exec(setUp); err != nil {
		return err
	}
	return do(db)
}

// collect runs a checking pragma.
func (f *verdict) collect(db *sqlite3.Conn, pragma string) error {
	return eachRow(db, pragma, func(text string) {
		switch {
		case text == "ok":
		case isOdd(text):
			f.odd = append(f.odd, text)
		default:
			f.damage = append(f.damage, text)
		}
	})
}

// eachRow calls do with the first column of each row.
func eachRow(db *sqlite3.Conn, query string, do func(text string)) error {
	rows, _, err := db.Prepare(query)
	if err != nil {
		return err
	}
	for rows.Step() {
		do(rows.ColumnText(0))
	}
	if err := rows.Err(); err != nil {
		return errors.Join(err, notAgain(err, rows.Close()))
	}
	return rows.Close()
}

// notAgain is nil where closing only repeats why a statement failed.
func notAgain(err, closing error) error {
	if closing != nil && closing.Error() == err.Error() {
		return nil
	}
	return closing
}

// isOdd reports whether a row of the pragma is about a value that its column should
// not hold. Such values come from an application that switched the rule off, or
// from an SQLite that did not have it yet; pages that are torn say other things.
func isOdd(row string) bool {
	for _, prefix := range []string{"NULL value in ", "NUMERIC value in ", "TEXT value in "} {
		if strings.HasPrefix(row, prefix) {
			return true
		}
	}
	return false
}
