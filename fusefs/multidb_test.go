package fusefs

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/dirview"
	"github.com/chromafs/chromafs/internal/tree"
)

// sqliteConn is a sqlite3 program that is told statements one after another.
type sqliteConn struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// sqliteOpen starts one; it is killed at the end of the test.
func sqliteOpen(t testing.TB, fx *fixture, db string) *sqliteConn {
	t.Helper()
	c := &sqliteConn{cmd: exec.Command("sqlite3", "-batch", "-bail", "-cmd", ".timeout 30000", db)}
	c.cmd.Dir = "/"
	c.cmd.Stderr = testWriter{t}
	var err error
	c.in, err = c.cmd.StdinPipe()
	must(t, err)
	out, err := c.cmd.StdoutPipe()
	must(t, err)
	c.out = bufio.NewScanner(out)
	fx.wantReleased(t)
	must(t, c.cmd.Start())
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // it may be gone
		_ = c.cmd.Wait()
	})
	return c
}

// wantReleased has the end of the test wait until no process has a file open for
// writing, once those that are killed later on are.
func (fx *fixture) wantReleased(t testing.TB) {
	if !fx.released {
		fx.released = true
		t.Cleanup(func() {
			eventually(t, "files are released", func() bool { return fx.fs.Info().OpenForWrite == 0 })
		})
	}
}

// run has statements executed and returns what they print; an error once the program
// has ended, by a failed statement or a signal.
func (c *sqliteConn) run(sql string) (string, error) {
	const end = "-- done"
	if _, err := fmt.Fprintf(c.in, "%s\n.print %q\n", sql, end); err != nil {
		return "", err
	}
	var lines []string
	for c.out.Scan() {
		if c.out.Text() == end {
			return strings.Join(lines, "\n"), nil
		}
		lines = append(lines, c.out.Text())
	}
	return strings.Join(lines, "\n"), fmt.Errorf("sqlite3 ended (%v) in: %.200s", c.out.Err(), sql)
}

func (c *sqliteConn) mustRun(t testing.TB, sql string) string {
	t.Helper()
	out, err := c.run(sql)
	must(t, err)
	return out
}

// three are databases that are written in one transaction.
var three = []string{"a", "b", "c"}

// openThree makes the three with one row each and opens them as one connection.
func openThree(t testing.TB, fx *fixture, journal, synchronous string) *sqliteConn {
	t.Helper()
	c := sqliteOpen(t, fx, in(fx.mnt, "a.sqlite3"))
	for _, name := range three[1:] {
		c.mustRun(t, fmt.Sprintf("ATTACH '%s' AS %s;", in(fx.mnt, name+".sqlite3"), name))
	}
	for _, name := range three {
		if name == "a" {
			name = "main"
		}
		c.mustRun(t, fmt.Sprintf("PRAGMA %[1]s.journal_mode=%[2]s; PRAGMA %[1]s.synchronous=%[3]s; PRAGMA %[1]s.cache_size=20;"+
			"CREATE TABLE %[1]s.rows(id INTEGER PRIMARY KEY, pad BLOB); INSERT INTO %[1]s.rows VALUES (1, randomblob(300));", name, journal, synchronous))
	}
	return c
}

// insertThree is a transaction that adds row i to each.
func insertThree(i int) string {
	sql := "BEGIN;"
	for _, name := range three {
		if name == "a" {
			name = "main"
		}
		sql += fmt.Sprintf("INSERT INTO %[1]s.rows VALUES (%[2]d, randomblob(300)); UPDATE %[1]s.rows SET pad = randomblob(250) WHERE id %% 7 = %[2]d %% 7;", name, i)
	}
	return sql + "COMMIT;"
}

// rowsOf copies a view out and returns how many rows each of the three has.
func rowsOf(t *testing.T, v *View) (rows [3]int) {
	t.Helper()
	to := t.TempDir()
	copyView(t, v, to)
	return rowsIn(t, to)
}

func rowsIn(t *testing.T, dir string) (rows [3]int) {
	t.Helper()
	for i, name := range three {
		got := sqliteRun(t, filepath.Join(dir, name+".sqlite3"), "PRAGMA integrity_check; SELECT count(*), max(id) FROM rows;")
		var top int
		if _, err := fmt.Sscanf(strings.ReplaceAll(got, "|", " "), "ok\n%d %d", &rows[i], &top); err != nil || rows[i] != top {
			t.Errorf("%s: %q", name, got)
		}
	}
	return rows
}

// S1: a transaction over several databases (SQLite: ATTACH) is in all of them or in
// none, in every view.
func TestViewsOfMultiDatabaseTransactions(t *testing.T) {
	for _, c := range []struct{ journal, synchronous string }{
		{"DELETE", "FULL"}, {"DELETE", "OFF"}, {"TRUNCATE", "EXTRA"}, {"PERSIST", "NORMAL"},
	} {
		t.Run(c.journal+"/"+c.synchronous, func(t *testing.T) {
			fx := mounted(t)
			conn := openThree(t, fx, c.journal, c.synchronous)
			var issued, acked atomic.Int64
			var stop atomic.Bool
			ended := make(chan error, 1)
			go func() {
				for i := 2; !stop.Load(); i++ {
					issued.Store(int64(i))
					if _, err := conn.run(insertThree(i)); err != nil {
						ended <- err
						return
					}
					acked.Store(int64(i))
				}
				ended <- nil
			}()
			for range 15 {
				before := acked.Load()
				eventually(t, "the writer writes", func() bool { return acked.Load() > before })
				time.Sleep(rand.N(20 * time.Millisecond)) // ask anywhere in a transaction
				least := acked.Load()
				cutOnce(t, fx, func(v *View) {
					most := issued.Load()
					rows := rowsOf(t, v)
					if rows[0] != rows[1] || rows[0] != rows[2] || int64(rows[0]) < least || int64(rows[0]) > most {
						t.Errorf("cut %d (%s): %v rows; %d were acknowledged before and %d begun", v.Number(), v.Consistency(), rows, least, most)
					}
					if v.Consistency() != quiescent {
						t.Errorf("cut %d is %s", v.Number(), v.Consistency())
					}
				})
			}
			stop.Store(true)
			must(t, <-ended)
			t.Logf("%d transactions; %+v", acked.Load(), fx.fs.CutStats())
		})
	}
}

// A journal that is closed but not unlinked yet is a reason to wait as long as its
// database is open: of a transaction without super-journal (synchronous=OFF), another
// database may be committed already.
func TestClosedJournalOfAnOpenDatabase(t *testing.T) {
	fx := mounted(t)
	journal := openWrite(t, in(fx.mnt, "a"+journalSuffix), []byte(journalMagic+"the rest"))
	db := openWrite(t, in(fx.mnt, "a"), []byte("page"))
	for i, f := range []*os.File{journal, db} {
		must(t, f.Sync())
		if r := fx.fs.fsys.busy.look(); r.hot != 1 {
			t.Errorf("before close %d: %+v", i, r)
		}
		must(t, f.Close())
	}
	eventually(t, "nobody is waited for", func() bool { return fx.fs.fsys.busy.look().hot == 0 })
}

// S1: so is one that stands still half committed, or whose program was killed there:
// the view is rolled back wherever it is restored. SQLite's own journals name the file
// that decides (the super-journal) by its absolute path, and take a commit for done
// where there is no such file. A view of the folder, once the mount is gone, is the same.
func TestViewOfAMultiDatabaseCommitHalfDone(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"stopped": syscall.SIGSTOP, "killed": syscall.SIGKILL} {
		for _, journal := range []string{"DELETE", "PERSIST"} {
			t.Run(name+"/"+journal, func(t *testing.T) { halfCommit(t, signal, journal) })
		}
	}
}

func halfCommit(t *testing.T, signal syscall.Signal, journal string) {
	fx := mounted(t, func(o *Options) { o.QuiesceTimeout = 300 * time.Millisecond })
	fx.requireWriteback(t)
	conn := openThree(t, fx, journal, "FULL")
	conn.mustRun(t, insertThree(2))
	const user = "x-mj0123459AB" // only has the name of a super-journal
	must(t, os.WriteFile(in(fx.mnt, user), []byte("mine"), 0o644))
	reached := make(chan struct{})
	var armed atomic.Bool
	armed.Store(true)
	fx.hookWrites(func(path string, _ *mutation) syscall.Errno {
		if path == "b.sqlite3" && armed.Swap(false) {
			_ = conn.cmd.Process.Signal(signal)
			close(reached)
		}
		return 0
	})
	go conn.run(insertThree(3))
	select {
	case <-reached:
	case <-time.After(10 * time.Second):
		t.Fatal("the second database was not written")
	}
	if signal == syscall.SIGKILL {
		eventually(t, "its files are closed", func() bool { return fx.fs.Info().OpenForWrite == 0 })
	}
	if supers, err := filepath.Glob(in(fx.mnt, "*.sqlite3-mj*")); err != nil || len(supers) != 1 {
		t.Fatalf("not in the middle of a commit: %q, %v", supers, err)
	}
	to := t.TempDir()
	cutOnce(t, fx, func(v *View) {
		copyView(t, v, to)
		wantUndecided(t, v.Entries(), user)
		if v.Consistency() != quiescent {
			t.Errorf("the view is %s", v.Consistency())
		}
	})
	_ = conn.cmd.Process.Kill()
	_ = conn.cmd.Wait()
	eventually(t, "the mount is out of the way", func() bool { return fx.fs.Unmount(false) == nil })
	root, err := os.Open(fx.dir)
	must(t, err)
	defer root.Close()
	offline, err := dirview.New(t.Context(), dirview.Options{
		Root: root, Skip: datadir.Outside(root), Now: time.Now, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	must(t, err)
	wantUndecided(t, offline.Entries(), user)
	later := t.TempDir()
	copyView(t, offline, later)
	for _, to := range []string{to, later} {
		if rows := rowsIn(t, to); rows != [3]int{2, 2, 2} {
			t.Errorf("restored: %v rows, want 2 each", rows)
		}
		if list, err := os.ReadDir(to); err != nil || len(list) > 7 {
			t.Errorf("left after the recovery: %v, %v", list, err)
		}
	}
}

// wantUndecided looks for super-journals in a view, which has to have the user's file
// of such a name.
func wantUndecided(t *testing.T, entries []tree.Entry, user string) {
	t.Helper()
	var found []string
	for _, e := range entries {
		if strings.Contains(e.Path, "-mj") {
			found = append(found, e.Path)
		}
	}
	if !slices.Equal(found, []string{user}) {
		t.Errorf("the view holds %q, want only %q", found, user)
	}
}
