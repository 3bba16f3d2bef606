package fusefs

import (
	"encoding/binary"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"

	"github.com/chromafs/chromafs/internal/tree"
)

// A transaction over several attached databases has a super-journal: a file beside
// the first of them, whose removal commits it. Each rollback journal ends with the
// absolute path of that file, and SQLite takes the transaction for committed, and
// does not roll back, where there is no such file: as in a copy at another place.
//
// So in a view with a super-journal, whose transaction is not committed then, the
// journals that name it end before the name, and it is left out: each database is
// rolled back by its own journal, wherever it is restored.

// superJournal is the name that SQLite gives it.
var superJournal = regexp.MustCompile(`-mj[0-9A-F]{6}9[0-9A-F]{2}$`)

const (
	superHead = 4         // before the name: a page number that no page has
	superTail = 4 + 4 + 8 // after it: its length, a checksum, the magic of a journal
)

// undecide takes the super-journals, and what names them, out of the view.
func (v *View) undecide() error {
	supers := map[string]bool{}
	for _, e := range v.entries {
		if e.Type == tree.File && superJournal.MatchString(e.Path) {
			supers[path.Base(e.Path)] = true
		}
	}
	if len(supers) == 0 {
		return nil
	}
	kept := v.entries[:0]
	for _, e := range v.entries {
		if e.Type == tree.File && strings.HasSuffix(e.Path, journalSuffix) {
			name, end, err := v.superNamed(e)
			if err != nil {
				return fmt.Errorf("read the end of %s: %w", e.Path, err)
			}
			if supers[path.Base(name)] {
				e.Size = end
			}
		}
		if e.Type != tree.File || !supers[path.Base(e.Path)] {
			kept = append(kept, e)
		}
	}
	v.entries = kept
	return nil
}

// superNamed returns the super-journal that a journal names, and where the journal
// ends before the name. The name is "" where it names none.
func (v *View) superNamed(e tree.Entry) (name string, end int64, err error) {
	if e.Size < superHead+superTail {
		return "", e.Size, nil
	}
	f, err := v.Open(e.Path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	tail := make([]byte, superTail)
	if _, err := f.ReadAt(tail, e.Size-superTail); err != nil && err != io.EOF {
		return "", 0, err
	}
	length := int64(binary.BigEndian.Uint32(tail))
	end = e.Size - superTail - length - superHead
	if string(tail[8:]) != journalMagic || end < 0 {
		return "", e.Size, nil
	}
	text := make([]byte, length)
	if _, err := f.ReadAt(text, end+superHead); err != nil && err != io.EOF {
		return "", 0, err
	}
	return string(text), end, nil
}
