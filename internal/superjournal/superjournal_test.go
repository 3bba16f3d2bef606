package superjournal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/internal/tree"
)

// journal is a rollback journal that names a super-journal.
func journal(super string) string {
	b := []byte(body + "\x00\x04\x00\x01" + super)
	b = binary.BigEndian.AppendUint32(b, uint32(len(super)))
	return string(append(b, "\x00\x00\x00\x07"+magic...))
}

const body = magic + "header and pages"

type file struct{ *strings.Reader }

func (file) Close() error { return nil }

// undecide runs Undecide on files and returns what the view then holds and the log.
func undecide(t *testing.T, files map[string]string) (left map[string]string, log string) {
	t.Helper()
	var entries []tree.Entry
	for _, p := range slices.Sorted(maps.Keys(files)) {
		entries = append(entries, tree.Entry{Path: p, Type: tree.File, Size: int64(len(files[p]))})
	}
	given := slices.Clone(entries)
	var out bytes.Buffer
	kept, err := Undecide(entries, func(p string) (tree.Reader, error) { return file{strings.NewReader(files[p])}, nil },
		slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(entries, given) {
		t.Errorf("the entries that it was given changed: %v", entries)
	}
	left = map[string]string{}
	for _, e := range kept {
		left[e.Path] = files[e.Path][:e.Size]
	}
	return left, out.String()
}

const super = "d/a.db-mj0A1B2C9D4"

func TestWhatIsNamedIsLeftOut(t *testing.T) {
	for _, folder := range []string{"/mnt/d/", "/elsewhere/", ""} {
		left, log := undecide(t, map[string]string{
			super: "journals", "d/a.db": "a", "d/a.db-journal": journal(folder + "a.db-mj0A1B2C9D4"),
			"b.db": "b", "b.db-journal": journal(folder + "a.db-mj0A1B2C9D4"), "c.db-journal": body,
		})
		want := map[string]string{"d/a.db": "a", "d/a.db-journal": body, "b.db": "b", "b.db-journal": body, "c.db-journal": body}
		if !maps.Equal(left, want) {
			t.Errorf("left %q, want %q", left, want)
		}
		if !strings.Contains(log, "path="+super) || strings.Contains(log, "c.db") {
			t.Errorf("the log does not say what was left out: %s", log)
		}
	}
}

func TestWhatIsNotNamedStays(t *testing.T) {
	over := binary.BigEndian.AppendUint32([]byte(body), 1<<31)
	for name, files := range map[string]map[string]string{
		"a file with such a name":      {"x-mj0123459AB": "mine", "a.db": "a", "a.db-journal": body},
		"beside one that is named":     {"x-mj0123459AB": "mine", "d/a.db-journal": journal("/d/other-mj0A1B2C9D4")},
		"another name":                 {"x-mj01239AB": "mine", "a.db-journal": journal("/x-mj01239AB")},
		"the transaction is committed": {"a.db": "a", "a.db-journal": journal("/" + super)},
		"a file that is no journal":    {super: "journals", "notes": journal("/" + super)},
		"no magic at the end":          {super: "journals", "a.db-journal": journal("/"+super) + "more"},
		"a length that cannot be":      {super: "journals", "a.db-journal": string(over) + "\x00\x00\x00\x07" + magic},
		"no name":                      {super: "journals", "a.db-journal": journal("")},
		"too short":                    {super: "journals", "a.db-journal": "", "b.db-journal": magic},
	} {
		t.Run(name, func(t *testing.T) {
			if left, log := undecide(t, files); !maps.Equal(left, files) || log != "" {
				t.Errorf("left %q, want %q; log %s", left, files, log)
			}
		})
	}
}

// A folder with such a name is a folder.
func TestFoldersStay(t *testing.T) {
	entries := []tree.Entry{{Path: super, Type: tree.Dir}, {Path: "a-journal", Type: tree.Dir}}
	kept, err := Undecide(entries, nil, nil)
	if err != nil || !slices.Equal(kept, entries) {
		t.Errorf("%v, %v", kept, err)
	}
}

// A journal that cannot be read is an error: nobody knows what it names.
func TestUnreadableJournal(t *testing.T) {
	entries := []tree.Entry{{Path: super, Type: tree.File}, {Path: "b-journal", Type: tree.File, Size: 1000}}
	for _, c := range []struct {
		open func(string) (tree.Reader, error)
		want error
	}{
		{func(string) (tree.Reader, error) { return nil, fs.ErrPermission }, fs.ErrPermission},
		{func(string) (tree.Reader, error) { return file{strings.NewReader("short")}, nil }, io.ErrUnexpectedEOF},
	} {
		if _, err := Undecide(entries, c.open, slog.New(slog.DiscardHandler)); !errors.Is(err, c.want) || !strings.Contains(err.Error(), "b-journal") {
			t.Errorf("%v, want %v", err, c.want)
		}
	}
}
