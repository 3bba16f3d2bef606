package sqlitelock

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sqlite runs SQL on a database in a process of its own, as an application would.
func sqlite(t *testing.T, db, sql string) (string, error) {
	t.Helper()
	out, err := exec.Command("sqlite3", "-batch", db, sql).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func mustSQL(t *testing.T, db, sql string) string {
	t.Helper()
	out, err := sqlite(t, db, sql)
	if err != nil {
		t.Fatalf("%s: %q: %v: %s", db, sql, err, out)
	}
	return out
}

// session is an application that keeps a connection.
type session struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func newSession(t *testing.T, db string) *session {
	t.Helper()
	s := &session{t: t, cmd: exec.Command("sqlite3", "-batch", db)}
	s.cmd.Stderr = os.Stderr
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	return s
}

// do runs SQL and returns when it is done.
func (s *session) do(sql string) {
	s.t.Helper()
	fmt.Fprintf(s.in, "%s;\nselect 'done';\n", strings.TrimSuffix(sql, ";"))
	for {
		line, err := s.out.ReadString('\n')
		if err != nil {
			s.t.Fatalf("%q: %v", sql, err)
		}
		if line == "done\n" {
			return
		}
	}
}

func (s *session) end() {
	s.in.Close()
	s.cmd.Wait()
}

func folder(t *testing.T) (string, *os.File) {
	t.Helper()
	path := t.TempDir()
	root, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return path, root
}

func find(t *testing.T, root *os.File) []Database {
	t.Helper()
	dbs, err := Find(root, func(p string) bool { return p == ".chromafs" })
	if err != nil {
		t.Fatal(err)
	}
	return dbs
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

const schema = "create table t(x); insert into t values(1);"

func TestFindGoesByHeader(t *testing.T) {
	path, root := folder(t)
	for _, dir := range []string{"sub", ".chromafs"} {
		if err := os.Mkdir(filepath.Join(path, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mustSQL(t, filepath.Join(path, "chroma.sqlite3"), schema)
	mustSQL(t, filepath.Join(path, "sub/no-extension"), "pragma journal_mode=wal; "+schema)
	mustSQL(t, filepath.Join(path, ".chromafs/hidden"), schema)
	for name, content := range map[string]string{"empty.sqlite3": "", "short": "SQLite format 3\x00", "text.sqlite3": strings.Repeat("no database ", 100)} {
		if err := os.WriteFile(filepath.Join(path, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("chroma.sqlite3", filepath.Join(path, "link.sqlite3")); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, db := range find(t, root) {
		got = append(got, fmt.Sprintf("%s wal=%v", db.Path, db.WAL))
	}
	if want := []string{"chroma.sqlite3 wal=false", "sub/no-extension wal=true"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// S1 for an offline snapshot: while it holds, nobody writes; readers go on.
func TestFreezeStopsWriters(t *testing.T) {
	path, root := folder(t)
	db := filepath.Join(path, "db")
	mustSQL(t, db, schema)
	before, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	locks, err := Freeze(soon(t), root, find(t, root))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := sqlite(t, db, "insert into t values(2)"); err == nil || !strings.Contains(out, "locked") {
		t.Errorf("a writer got %q, %v", out, err)
	}
	if out := mustSQL(t, db, "select count(*) from t"); out != "1" {
		t.Errorf("a reader got %q", out)
	}
	if after, err := os.ReadFile(db); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the database changed under the lock (%v)", err)
	}
	// Another descriptor of the same process being closed must not matter, as it
	// would for POSIX locks: ReadFile above did that.
	if _, err := sqlite(t, db, "insert into t values(2)"); err == nil {
		t.Error("the lock was lost with another descriptor")
	}
	if err := locks.Close(); err != nil {
		t.Fatal(err)
	}
	mustSQL(t, db, "insert into t values(2)")
}

func TestFreezeOfAHotJournalLetsNobodyRollItBack(t *testing.T) {
	path, root := folder(t)
	db := filepath.Join(path, "db")
	mustSQL(t, db, "create table t(x); insert into t select hex(randomblob(500)) from (with recursive c(i) as (select 1 union all select i+1 from c where i<200) select i from c)")
	app := exec.Command("sqlite3", "-batch", db)
	in, err := app.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := app.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Start(); err != nil {
		t.Fatal(err)
	}
	// cache_size makes SQLite spill pages into the database before the commit.
	io.WriteString(in, "pragma cache_size=5; begin; update t set x='new'||x; select 'done';\n")
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "done\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := app.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	app.Wait()
	hot, err := os.ReadFile(db + "-journal")
	if err != nil || len(hot) == 0 {
		t.Fatalf("no hot journal: %v", err)
	}
	locks, err := Freeze(soon(t), root, find(t, root))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := sqlite(t, db, "select count(*) from t where x like 'new%'"); err == nil {
		t.Errorf("a reader ignored the hot journal: %q", got)
	}
	if after, err := os.ReadFile(db + "-journal"); err != nil || !bytes.Equal(after, hot) {
		t.Errorf("the journal was played back under the lock (%v)", err)
	}
	if err := locks.Close(); err != nil {
		t.Fatal(err)
	}
	if got := mustSQL(t, db, "select count(*) from t where x like 'new%'"); got != "0" {
		t.Errorf("%s rows of an unfinished transaction", got)
	}
}

func TestFreezeWaitsForATransactionAndThenNamesItsOwner(t *testing.T) {
	path, root := folder(t)
	db := filepath.Join(path, "db")
	mustSQL(t, db, schema)
	app := newSession(t, db)
	app.do("begin exclusive")
	_, err := Freeze(soon(t), root, find(t, root))
	var busy *BusyError
	if !errors.As(err, &busy) || !errors.Is(err, ErrBusy) || busy.PID != app.cmd.Process.Pid || busy.Path != "db" {
		t.Fatalf("got %v, want the process %d", err, app.cmd.Process.Pid)
	}
	result := make(chan error, 1)
	go func() {
		locks, err := Freeze(t.Context(), root, []Database{{Path: "db"}})
		if err == nil {
			err = locks.Close()
		}
		result <- err
	}()
	app.do("commit")
	if err := <-result; err != nil {
		t.Errorf("after the transaction: %v", err)
	}
}

func TestFreezeOfWALWantsNobodyConnected(t *testing.T) {
	path, root := folder(t)
	db := filepath.Join(path, "db")
	mustSQL(t, db, "pragma journal_mode=wal; "+schema)
	app := newSession(t, db)
	app.do("insert into t values(2)")
	_, err := Freeze(soon(t), root, find(t, root))
	var busy *BusyError
	if !errors.As(err, &busy) || !busy.WAL {
		t.Fatalf("with an idle connection: %v", err)
	}
	app.end()
	locks, err := Freeze(soon(t), root, find(t, root))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := sqlite(t, db, "insert into t values(3)"); err == nil || !strings.Contains(out, "locked") {
		t.Errorf("a writer got %q, %v", out, err)
	}
	if err := locks.Close(); err != nil {
		t.Fatal(err)
	}
	if out := mustSQL(t, db, "select count(*) from t"); out != "2" {
		t.Errorf("%s rows", out)
	}
}

func TestGuard(t *testing.T) {
	path, root := folder(t)
	var logged bytes.Buffer
	g := NewGuard(root, nil, slog.New(slog.NewTextHandler(&logged, nil)))
	defer g.Close()
	rescan := func() {
		t.Helper()
		if _, err := g.Rescan(); err != nil {
			t.Fatal(err)
		}
	}
	locked := func(name string) {
		t.Helper()
		for _, sql := range []string{"select * from t", "insert into t values(2)"} {
			if out, err := sqlite(t, filepath.Join(path, name), sql); err == nil || !strings.Contains(out, "locked") {
				t.Errorf("%s: %q got %q, %v", name, sql, out, err)
			}
		}
	}
	mustSQL(t, filepath.Join(path, "a"), schema)
	mustSQL(t, filepath.Join(path, "wal"), "pragma journal_mode=wal; "+schema)
	rescan()
	locked("a")
	locked("wal")

	mustSQL(t, filepath.Join(path, "later"), schema)
	rescan()
	locked("later")
	rescan()
	if err := os.Rename(filepath.Join(path, "later"), filepath.Join(path, "renamed")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(path, "a"), filepath.Join(path, "a2")); err != nil {
		t.Fatal(err)
	}
	rescan()
	locked("renamed")
	locked("a2")
	if len(g.held) != 3 {
		t.Errorf("%d locks held for 3 databases", len(g.held))
	}

	os.Remove(filepath.Join(path, "renamed"))
	rescan()
	if len(g.held) != 2 {
		t.Errorf("a deleted database is still held open: %d locks", len(g.held))
	}

	busy := filepath.Join(path, "busy")
	mustSQL(t, busy, schema)
	app := newSession(t, busy)
	app.do("begin immediate")
	rescan()
	rescan()
	if n := strings.Count(logged.String(), "path=busy"); n != 1 {
		t.Errorf("a database that cannot be locked was reported %d times:\n%s", n, logged.String())
	}
	app.do("commit")
	rescan()
	locked("busy")

	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	mustSQL(t, filepath.Join(path, "a"), "insert into t values(2)")
}

func TestUsers(t *testing.T) {
	path, root := folder(t)
	for _, name := range []string{"used", "unused"} {
		mustSQL(t, filepath.Join(path, name), schema)
	}
	app := newSession(t, filepath.Join(path, "used"))
	app.do("select * from t")
	own, err := os.Open(filepath.Join(path, "unused"))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	users, err := Users(find(t, root))
	if err != nil {
		t.Fatal(err)
	}
	want := []User{{PID: app.cmd.Process.Pid, Command: "sqlite3", Path: "used"}}
	if !slices.Equal(users, want) {
		t.Errorf("got %+v, want %+v", users, want)
	}
	app.end()
	if users, err := Users(find(t, root)); err != nil || len(users) != 0 {
		t.Errorf("after it ended: %+v, %v", users, err)
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add([]byte("SQLite format 3\x00\x10\x00\x02\x02"))
	f.Add([]byte("SQLite format 3\x00\x10\x00\x01\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if wal, ok := parseHeader(b); ok != (len(b) >= headerSize && strings.HasPrefix(string(b), magic)) || wal && !ok {
			t.Errorf("%q: %v, %v", b, wal, ok)
		}
	})
}
