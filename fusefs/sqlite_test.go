package fusefs

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sqlite runs statements with the sqlite3 program and returns what it prints.
func sqlite(t *testing.T, db, sql string) string {
	t.Helper()
	out, err := sqliteCommand(db, sql).CombinedOutput()
	if err != nil {
		t.Fatalf("sqlite3 %s: %v: %s", db, err, out)
	}
	return strings.TrimSpace(string(out))
}

func sqliteCommand(db, sql string) *exec.Cmd {
	cmd := exec.Command("sqlite3", "-batch", "-cmd", ".timeout 20000", db, sql)
	cmd.Dir = "/"
	return cmd
}

// F1 as SQLite sees it: every journal mode (WAL with its shared memory map) and
// every level of synchronous, with two processes writing at once.
func TestSQLite(t *testing.T) {
	if _, err := exec.LookPath("sqlite3"); err != nil {
		t.Fatal("needs sqlite3: scripts/test installs it")
	}
	fx := mounted(t)
	for _, mode := range []string{"DELETE", "TRUNCATE", "PERSIST", "WAL"} {
		for _, level := range []string{"OFF", "NORMAL", "FULL", "EXTRA"} {
			t.Run(mode+"/"+level, func(t *testing.T) { runSQLite(t, fx, mode, level) })
		}
	}
}

func runSQLite(t *testing.T, fx *fixture, mode, level string) {
	const rows = 40
	name := strings.ToLower(mode + "-" + level + ".sqlite3")
	db := in(fx.mnt, name)
	if got := sqlite(t, db, "PRAGMA journal_mode="+mode+"; CREATE TABLE t (who, n, body)"); got != strings.ToLower(mode) {
		t.Fatalf("journal mode %q, want %q", got, mode)
	}
	var sql strings.Builder
	fmt.Fprintf(&sql, "PRAGMA synchronous=%s; PRAGMA journal_mode=%s;", level, mode)
	for i := range rows {
		fmt.Fprintf(&sql, "INSERT INTO t VALUES ('%%[1]s', %d, randomblob(3000));", i)
	}
	var writers []*exec.Cmd
	for _, who := range []string{"a", "b"} {
		cmd := sqliteCommand(db, strings.ReplaceAll(sql.String(), "%[1]s", who))
		cmd.Stderr = os.Stderr
		must(t, cmd.Start())
		writers = append(writers, cmd)
	}
	for _, cmd := range writers {
		if err := cmd.Wait(); err != nil {
			t.Errorf("a writer: %v", err)
		}
	}
	want := fmt.Sprintf("ok\n%d|%d", 2*rows, 2*rows*3000)
	const check = "PRAGMA integrity_check; SELECT count(*), sum(length(body)) FROM t"
	if got := sqlite(t, db, check); got != want {
		t.Errorf("on the mount: %q, want %q", got, want)
	}
	sqlite(t, db, "PRAGMA wal_checkpoint(TRUNCATE)")
	must(t, onFile(db, unix.O_RDONLY, func(int) error { return nil }))
	if got := sqlite(t, in(fx.dir, name), check); got != want {
		t.Errorf("on the backing directory: %q, want %q", got, want)
	}
}

// F1: locks of one process keep another out, of each kind.
func TestLocks(t *testing.T) {
	fx := mounted(t)
	p := in(fx.mnt, "f")
	must(t, os.WriteFile(p, nil, 0o644))
	for _, kind := range []string{"lock", "ofd", "flock"} {
		t.Run(kind, func(t *testing.T) {
			holder := child(t, "ops", op(kind, p))
			stdin, err := holder.StdinPipe()
			must(t, err)
			out, err := holder.StdoutPipe()
			must(t, err)
			must(t, holder.Start())
			line := make([]byte, len("locked\n"))
			if _, err := out.Read(line); err != nil || string(line) != "locked\n" {
				t.Fatalf("the first holder: %q, %v", line, err)
			}
			expect(t, nil, op(kind, p), "EAGAIN")
			stdin.Close()
			must(t, holder.Wait())
			if got, err := runChild(t, nil, "ops", op(kind, p)); err != nil || got != "locked\n"+kind+": ok\n" {
				t.Errorf("after the first let go: %q, %v", got, err)
			}
		})
	}
}

// A shared map is seen by other processes, and reaches the backing file.
func TestSharedMap(t *testing.T) {
	fx := mounted(t)
	p := in(fx.mnt, "f")
	must(t, os.WriteFile(p, []byte("before the map"), 0o644))
	expect(t, nil, op("mmap", "mapped", p), "ok")
	expect(t, nil, op("read", p), "ok mapped the map")
	if b, err := os.ReadFile(in(fx.dir, "f")); err != nil || string(b) != "mapped the map" {
		t.Errorf("the backing file holds %q, %v", b, err)
	}
}
