package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// halfCommitted leaves in dir what a program leaves that is killed in the middle of a
// commit over a.sqlite3 and b.sqlite3: both half changed, each with a journal that
// names the super-journal.
func halfCommitted(t *testing.T, dir string) {
	t.Helper()
	work := t.TempDir()
	script := fmt.Sprintf(".cd %s\n.open a.sqlite3\nATTACH 'b.sqlite3' AS b;\n", work)
	for _, db := range []string{"main", "b"} {
		script += fmt.Sprintf("CREATE TABLE %[1]s.rows(id INTEGER PRIMARY KEY, state TEXT, pad BLOB);"+
			"INSERT INTO %[1]s.rows WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 500) SELECT i, 'before', zeroblob(300) FROM n;"+
			"PRAGMA %[1]s.cache_size=5;\n", db)
	}
	script += "BEGIN; UPDATE main.rows SET state='after', pad=zeroblob(400); UPDATE b.rows SET state='after', pad=zeroblob(400);\n" +
		fmt.Sprintf(".system cp a.sqlite3 a.sqlite3-journal b.sqlite3 b.sqlite3-journal %s\nROLLBACK;\n", dir)
	writeFile(t, filepath.Join(work, "script"), script)
	if r := run(t, "sqlite3", "-batch", "-bail", ":memory:", ".read "+filepath.Join(work, "script")); r.code != 0 {
		t.Fatal(r.stderr)
	}
	// https://www.sqlite.org/src/file/src/pager.c, writeSuperJournal
	super := filepath.Join(dir, "a.sqlite3-mj0A1B2C9D4")
	trailer := append(binary.BigEndian.AppendUint32(nil, 0x40000000/4096+1), super...)
	sum := uint32(0)
	for _, c := range []byte(super) {
		sum += uint32(c)
	}
	trailer = binary.BigEndian.AppendUint32(trailer, uint32(len(super)))
	trailer = binary.BigEndian.AppendUint32(trailer, sum)
	trailer = append(trailer, "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"...)
	names := ""
	for _, db := range []string{"a.sqlite3", "b.sqlite3"} {
		journal := filepath.Join(dir, db+"-journal")
		writeFile(t, journal, readFile(t, journal)+string(trailer))
		names += journal + "\x00"
	}
	writeFile(t, super, names)
}

// states tells what the rows of both databases are, once SQLite has recovered them.
func states(t *testing.T, dir string) (found string) {
	t.Helper()
	for _, db := range []string{"a.sqlite3", "b.sqlite3"} {
		r := run(t, "sqlite3", filepath.Join(dir, db), "PRAGMA integrity_check; SELECT state, count(*) FROM rows GROUP BY state")
		found += db + ": " + strings.Join(strings.Fields(r.stdout+r.stderr), " ") + "\n"
	}
	return found
}

// S1: an offline snapshot of a commit over several databases that stands still half
// done, restored at another place, is the state before it in all of them. A file that
// only has the name of a super-journal is in it.
func TestOfflineSnapshotOfAHalfDoneCommit(t *testing.T) {
	t.Parallel()
	const user = "x-mj0123459AB"
	for _, command := range []string{"snapshot", "sync"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			if err := os.MkdirAll(s.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			halfCommitted(t, s.dir)
			writeFile(t, filepath.Join(s.dir, user), "mine")
			r := s.must(0, command, "--log-level", "debug", s.dir)
			if !strings.Contains(r.stderr, "a.sqlite3-mj0A1B2C9D4") {
				t.Errorf("the log does not say what was left out:\n%s", r.stderr)
			}
			const want = "a.sqlite3: ok before|500\nb.sqlite3: ok before|500\n"
			if got := states(t, s.dir); got != want {
				t.Errorf("what SQLite makes of it where it lies:\n%swant\n%s", got, want)
			}
			if err := os.RemoveAll(s.dir); err != nil { // with the super-journal
				t.Fatal(err)
			}
			elsewhere := filepath.Join(t.TempDir(), "elsewhere")
			s.must(0, "restore", elsewhere)
			if got := readFile(t, filepath.Join(elsewhere, user)); got != "mine" {
				t.Errorf("%s holds %q", user, got)
			}
			if got := states(t, elsewhere); got != want {
				t.Errorf("restored elsewhere:\n%swant\n%s", got, want)
			}
		})
	}
}
