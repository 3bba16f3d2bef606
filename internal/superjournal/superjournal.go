// Package superjournal has SQLite roll a half-done commit over several databases
// back wherever a snapshot of it is restored.
//
// The model: a transaction over several attached databases has a super-journal, a
// file beside the first of them, whose removal commits it. Each rollback journal ends
// with the absolute path of that file, and SQLite takes the transaction for committed,
// and does not roll back, where there is no such file: as in a copy at another place.
//
// So Undecide, which every view passes through,
//
//  1. has the journals that name a super-journal of the view end before the name, and
//     leaves that super-journal out: each database is rolled back by its own journal.
//  2. leaves everything else alone: a journal whose super-journal is gone (that is
//     committed), and a file that only has the name of a super-journal.
//
// The two are matched by the last part of the path: the rest is where the database was
// opened, which may be a mount, a link or another container's folder.
//
// What is not promised: a super-journal that no journal of the view names stays. It
// decides nothing then, and SQLite leaves such files behind itself.
package superjournal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"regexp"
	"strings"

	"github.com/chromafs/chromafs/internal/tree"
)

// pattern is how SQLite names a super-journal, after the name of a database.
var pattern = regexp.MustCompile(`-mj[0-9A-F]{6}9[0-9A-F]{2}$`)

const (
	suffix  = "-journal"
	magic   = "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
	head    = 4         // before the name: a page number that no page has
	tail    = 4 + 4 + 8 // after it: its length, a checksum, the magic of a journal
	longest = 8 << 10   // bytes of a name; SQLite's own limit is half of that
)

// Undecide returns the entries of a view without its super-journals, and without what
// names them. The entries that it is given stay as they are. open opens a file of the
// view; what it fails with is part of the error.
func Undecide(entries []tree.Entry, open func(path string) (tree.Reader, error), log *slog.Logger) ([]tree.Entry, error) {
	candidates := map[string]bool{} // and whether a journal names it
	for _, e := range entries {
		if e.Type == tree.File && pattern.MatchString(e.Path) {
			candidates[path.Base(e.Path)] = false
		}
	}
	if len(candidates) == 0 {
		return entries, nil
	}
	ends := map[string]int64{} // of the journals that name one
	for _, e := range entries {
		if e.Type != tree.File || !strings.HasSuffix(e.Path, suffix) {
			continue
		}
		name, end, err := named(e, open)
		if err != nil {
			return nil, fmt.Errorf("read which super-journal %s names: %w", e.Path, err)
		}
		if _, ok := candidates[name]; ok {
			candidates[name] = true
			ends[e.Path] = end
		}
	}
	kept := make([]tree.Entry, 0, len(entries))
	for _, e := range entries {
		if e.Type == tree.File && candidates[path.Base(e.Path)] {
			log.Debug("a super-journal is left out of the snapshot; its transaction is rolled back there", "path", e.Path)
			continue
		}
		if end, ok := ends[e.Path]; ok {
			log.Debug("a journal is in the snapshot without the name of its super-journal", "path", e.Path, "size", end)
			e.Size = end
		}
		kept = append(kept, e)
	}
	return kept, nil
}

// named returns the last part of the super-journal's path that a journal ends with, and
// where the journal ends before it. The name is "" where there is none. SQLite's
// checksum is not looked at: where it is wrong, SQLite sees no name either.
func named(e tree.Entry, open func(path string) (tree.Reader, error)) (name string, end int64, err error) {
	if e.Size < head+tail {
		return "", 0, nil
	}
	f, err := open(e.Path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	var last [tail]byte
	if err := read(f, last[:], e.Size-tail); err != nil {
		return "", 0, err
	}
	length := int64(binary.BigEndian.Uint32(last[:]))
	end = e.Size - tail - length - head
	if string(last[tail-len(magic):]) != magic || length == 0 || length > longest || end < 0 {
		return "", 0, nil
	}
	text := make([]byte, length)
	if err := read(f, text, end+head); err != nil {
		return "", 0, err
	}
	return path.Base(string(text)), end, nil
}

// read fills b, or fails.
func read(f io.ReaderAt, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
