package dbcheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/chromafs/chromafs/internal/tree"
)

// Mode says how thoroughly databases are checked.
type Mode string

// The modes. Segments are checked the same in both that check.
const (
	None  Mode = "none"
	Quick Mode = "quick" // PRAGMA quick_check: every page of every table and index
	Full  Mode = "full"  // PRAGMA integrity_check: also that each index matches its table
)

// ParseMode returns the mode of a name.
func ParseMode(name string) (Mode, error) {
	switch m := Mode(name); m {
	case None, Quick, Full:
		return m, nil
	}
	return "", fmt.Errorf("%q is not one of none, quick, full", name)
}

// View is what is checked. Nothing of it changes meanwhile.
type View interface {
	Entries() []tree.Entry
	Open(path string) (tree.Reader, error)
}

// Finding is what is to be said about one database.
type Finding struct {
	Path string // of the SQLite file, or of the segment's folder
	What string
}

// String returns the finding for people.
func (f Finding) String() string { return f.Path + ": " + f.What }

// Report is what a check found.
type Report struct {
	Databases, Segments int       // how many were looked at
	Damage              []Finding // why the view must not be published
	Doubts              []Finding // what could not be judged (D2), or is odd but no damage
}

// Check looks at the databases of a view of which changed reports that a file of
// theirs, present or gone, is not what it was when they were last found whole. An
// error means that the view could not be read, or that ctx ended.
func Check(ctx context.Context, view View, mode Mode, changed func(path string) bool) (Report, error) {
	c := &checker{ctx: ctx, view: view, mode: mode, limit: maxOverlay, files: map[string]tree.Entry{}}
	if mode == None {
		return c.report, nil
	}
	for _, e := range view.Entries() {
		if e.Type == tree.File {
			c.files[e.Path] = e
		}
	}
	for _, e := range view.Entries() {
		if ctx.Err() != nil {
			return c.report, context.Cause(ctx)
		}
		if e.Type != tree.File {
			continue
		}
		if err := c.file(e, changed); err != nil {
			return c.report, err
		}
	}
	return c.report, nil
}

type checker struct {
	ctx    context.Context
	view   View
	mode   Mode
	limit  int64 // of an overlay, in bytes
	files  map[string]tree.Entry
	named  map[string]*naming // by the path of ChromaDB's database; see torn
	report Report
}

func (c *checker) damaged(path, format string, args ...any) {
	c.report.Damage = append(c.report.Damage, Finding{path, fmt.Sprintf(format, args...)})
}

func (c *checker) doubt(path, format string, args ...any) {
	c.report.Doubts = append(c.report.Doubts, Finding{path, fmt.Sprintf(format, args...)})
}

// file checks the database or the segment that a file stands for, if any.
func (c *checker) file(e tree.Entry, changed func(string) bool) error {
	if path.Base(e.Path) == pickleName {
		folder := path.Dir(e.Path)
		for _, name := range segmentNames {
			if changed(path.Join(folder, name)) {
				c.report.Segments++
				return c.segment(folder)
			}
		}
		return nil
	}
	if !changed(e.Path) && !changed(e.Path+journalSuffix) && !changed(e.Path+walSuffix) {
		return nil
	}
	is, err := c.isDatabase(e)
	if err != nil || !is {
		return err
	}
	c.report.Databases++
	return c.database(e)
}

// chromaName is ChromaDB's own database. Whatever it begins with, if it is not
// empty it has to be one.
const chromaName = "chroma.sqlite3"

var magic = []byte("SQLite format 3\x00")

func (c *checker) isDatabase(e tree.Entry) (bool, error) {
	if e.Size == 0 || e.Path == chromaName {
		return e.Size > 0, nil
	}
	if e.Size < int64(len(magic)) {
		return false, nil
	}
	head, err := c.read(e.Path, 0, int64(len(magic)))
	return bytes.Equal(head, magic), err
}

// read returns n bytes of a file that has them.
func (c *checker) read(name string, off, n int64) (b []byte, err error) {
	f, err := c.view.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b = make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(f, off, n), b); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// oneLine makes what SQLite says fit into a message.
func oneLine(text string) string {
	const longest = 200
	text = strings.TrimPrefix(strings.Join(strings.Fields(text), " "), "*** in database main *** ")
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "") + "…"
	}
	return text
}
