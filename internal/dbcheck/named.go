package dbcheck

import (
	"fmt"
	"path"
	"slices"

	"github.com/ncruces/go-sqlite3"

	"github.com/chromafs/chromafs/internal/tree"
)

// naming says which segments a ChromaDB's database names.
type naming struct {
	ids     map[string]bool // of those that have a folder beside the database
	nothing string          // why it can name none, "" if it can
	unknown string          // why that is not known, "" if it is
}

// torn is called for a segment that is not whole. ChromaDB finds the folder of a
// segment by the id that its database has of it, and deletes a collection from the
// database alone: a folder that is not named there is not used, and would hold back
// every snapshot from then on.
//
// Where the database cannot be read the segment counts as used. That passes (a journal
// that is too big), or the database is damaged itself; but once published, a segment
// is not looked at again until it changes.
func (c *checker) torn(folder, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	database := path.Join(path.Dir(folder), chromaName)
	n, err := c.naming(database)
	switch {
	case err != nil:
		return err
	case n.unknown != "":
		c.damaged(folder, "%s (if it is in use: %s, %s)", what, database, n.unknown)
	case n.nothing != "":
		c.doubt(folder, "%s; it is not in use: %s %s", what, database, n.nothing)
	case !n.ids[path.Base(folder)]:
		c.doubt(folder, "%s; it is not in use: %s does not name it (left behind by a collection that was deleted?)", what, database)
	default:
		c.damaged(folder, "%s", what)
	}
	return nil
}

// naming reads which segments a database names, once.
func (c *checker) naming(database string) (*naming, error) {
	if n := c.named[database]; n != nil {
		return n, nil
	}
	n, err := c.readNaming(database)
	if err != nil {
		return nil, err
	}
	if c.named == nil {
		c.named = map[string]*naming{}
	}
	c.named[database] = n
	return n, nil
}

func (c *checker) readNaming(database string) (*naming, error) {
	n := &naming{ids: map[string]bool{}}
	if _, ok := c.files[database]; !ok {
		if slices.ContainsFunc(c.view.Entries(), func(e tree.Entry) bool { return e.Path == database }) {
			n.unknown = "which would say so, is no plain file"
		} else {
			n.nothing = "does not exist"
		}
		return n, nil
	}
	known := false
	failed, err := c.ask(database, func(db *sqlite3.Conn) error {
		err := eachRow(db, "SELECT name FROM pragma_table_info('segments') WHERE name = 'id'", func(string) { known = true })
		if err != nil || !known {
			return err
		}
		// The table itself: an index is not compared with it in every mode.
		return eachRow(db, "SELECT id FROM segments NOT INDEXED", func(id string) {
			if _, ok := c.files[path.Join(path.Dir(database), id, pickleName)]; ok {
				n.ids[id] = true
			}
		})
	})
	switch {
	case err != nil:
		return nil, err
	case failed != nil:
		n.unknown = "which would say so, cannot be read: " + oneLine(failed.Error())
	case !known:
		n.nothing = "has no segments.id"
	}
	return n, nil
}
