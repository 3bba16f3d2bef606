package fusefs

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// sqliteRun runs statements on a database in another process.
func sqliteRun(t *testing.T, db, sql string) string {
	t.Helper()
	out, err := exec.Command("sqlite3", "-batch", "-cmd", ".timeout 10000", db, sql).CombinedOutput()
	if err != nil {
		t.Fatalf("sqlite3: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// persistFiles are the files of a segment that a persist rewrites in place.
var persistFiles = []string{"header.bin", "data_level0.bin", "length.bin", "link_lists.bin"}

const persistBlocks = 300

// childPersist does to args[0] what ChromaDB does, over and over: it rewrites the
// .bin files in small pieces through descriptors that stay open, rewrites the
// pickle, and commits the number to SQLite, syncing none of the five.
func childPersist(args []string) error {
	seg := filepath.Join(args[0], "segment")
	var bins []*os.File
	for _, name := range persistFiles {
		f, err := os.OpenFile(filepath.Join(seg, name), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		bins = append(bins, f)
	}
	db := exec.Command("sqlite3", "-batch", filepath.Join(args[0], "chroma.sqlite3"))
	statements, err := db.StdinPipe()
	if err != nil {
		return err
	}
	answers, err := db.StdoutPipe()
	if err != nil {
		return err
	}
	if err := db.Start(); err != nil {
		return err
	}
	answer := make([]byte, 64)
	for i := uint64(1); ; i++ {
		piece := binary.LittleEndian.AppendUint64(nil, i)
		for _, f := range bins {
			for b := range persistBlocks {
				if _, err := f.WriteAt(piece, int64(b)*8); err != nil {
					return err
				}
			}
			time.Sleep(200 * time.Microsecond)
		}
		if err := os.WriteFile(filepath.Join(seg, pickleName), []byte(strconv.FormatUint(i, 10)), 0o644); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(statements, "BEGIN; UPDATE seq SET id = %d; COMMIT; SELECT id FROM seq;\n", i); err != nil {
			return err
		}
		if _, err := answers.Read(answer); err != nil {
			return err
		}
	}
}

// S1: a cut that is asked for in the middle of a persist waits for its end: no view
// has a segment half written, or older than SQLite says.
func TestViewsOfAPersistingSegment(t *testing.T) {
	fx := mounted(t)
	must(t, os.Mkdir(in(fx.mnt, "segment"), 0o755))
	sqliteRun(t, in(fx.mnt, "chroma.sqlite3"), "CREATE TABLE seq(id INTEGER); INSERT INTO seq VALUES (0);")
	t.Cleanup(func() { // the child's own child ends a little later
		eventually(t, "the writers are gone", func() bool { return fx.fs.Info().OpenFiles == 0 })
	})
	start(t, "persist", fx.mnt)
	eventually(t, "a persist is done", func() bool {
		b, err := os.ReadFile(in(fx.mnt, "segment", pickleName))
		return err == nil && len(b) > 0
	})
	const cuts = 60
	inPersist := 0
	for range cuts {
		// Ask for the cut in the middle of a persist.
		eventually(t, "a persist is under way", func() bool { return fx.fs.fsys.busy.look().busy > 0 })
		inPersist++
		cutOnce(t, fx, func(v *View) {
			if v.Consistency() != quiescent {
				t.Errorf("cut %d is %s", v.Number(), v.Consistency())
			}
			to := t.TempDir()
			copyView(t, v, to)
			pickle, err := os.ReadFile(filepath.Join(to, "segment", pickleName))
			must(t, err)
			want, err := strconv.ParseUint(string(pickle), 10, 64)
			if err != nil {
				t.Fatalf("cut %d: the pickle is %q", v.Number(), pickle)
			}
			for _, name := range persistFiles {
				b, err := os.ReadFile(filepath.Join(to, "segment", name))
				must(t, err)
				whole := bytes.Repeat(binary.LittleEndian.AppendUint64(nil, want), persistBlocks)
				if !bytes.Equal(b, whole) {
					t.Errorf("cut %d: %s is not that of persist %d", v.Number(), name, want)
				}
			}
			seq, err := strconv.ParseUint(sqliteRun(t, filepath.Join(to, "chroma.sqlite3"), "SELECT id FROM seq"), 10, 64)
			must(t, err)
			if seq > want {
				t.Errorf("cut %d: SQLite says %d is persisted, the segment has %d", v.Number(), seq, want)
			}
		})
	}
	t.Logf("%d cuts asked for inside a persist; %+v", inPersist, fx.fs.CutStats())
}

// A segment whose writer died in the middle keeps no cut waiting, but the view says
// that it is not quiescent; so does one whose writer goes on past the deadline.
func TestTornAndEndlessPersists(t *testing.T) {
	fx := mounted(t, func(o *Options) { o.QuiesceTimeout = 200 * time.Millisecond })
	seg := in(fx.mnt, "segment")
	must(t, os.Mkdir(seg, 0o755))
	must(t, os.WriteFile(filepath.Join(seg, pickleName), []byte("1"), 0o644))
	rest := func() rest { return fx.fs.fsys.busy.look() }
	if r := rest(); r.busy != 0 || r.torn != 0 {
		t.Fatalf("after a whole persist: %+v", r)
	}
	bin := openWrite(t, filepath.Join(seg, "header.bin"), []byte("x"))
	must(t, bin.Sync())
	if r := rest(); r.busy != 1 {
		t.Fatalf("in a persist: %+v", r)
	}
	began := time.Now()
	cutOnce(t, fx, func(v *View) {
		if v.Consistency() != crashConsistent {
			t.Errorf("cut through an endless persist: %s", v.Consistency())
		}
	})
	if took := time.Since(began); took < 200*time.Millisecond || took > 5*time.Second {
		t.Errorf("the cut waited %s", took)
	}
	must(t, bin.Close()) // as the kernel does for a process that was killed
	eventually(t, "the segment counts as torn", func() bool { r := rest(); return r.busy == 0 && r.torn == 1 })
	began = time.Now()
	cutOnce(t, fx, func(v *View) {
		if v.Consistency() != crashConsistent {
			t.Errorf("cut of a torn segment: %s", v.Consistency())
		}
	})
	if took := time.Since(began); took > 150*time.Millisecond {
		t.Errorf("a torn segment kept the cut waiting for %s", took)
	}
	must(t, os.WriteFile(filepath.Join(seg, pickleName), []byte("2"), 0o644))
	cutOnce(t, fx, func(v *View) {
		if v.Consistency() != quiescent {
			t.Errorf("after the next whole persist: %s", v.Consistency())
		}
	})
	// A reader's close of the pickle ends nobody's persist.
	bin2 := openWrite(t, filepath.Join(seg, "header.bin"), []byte("y"))
	must(t, bin2.Sync())
	_, err := os.ReadFile(filepath.Join(seg, pickleName))
	must(t, err)
	if r := rest(); r.busy != 1 {
		t.Errorf("a reader of the pickle ended a persist: %+v", r)
	}
}

// A hot journal is waited for until the deadline, then it is in the view, which
// SQLite rolls back; one that never touched its database is left out.
func TestJournalsInViews(t *testing.T) {
	fx := mounted(t, func(o *Options) { o.QuiesceTimeout = 300 * time.Millisecond })
	db := in(fx.mnt, "chroma.sqlite3")
	sqliteRun(t, db, "CREATE TABLE rows(id INTEGER PRIMARY KEY, pad BLOB); INSERT INTO rows(pad) VALUES ('one');")
	cmd := exec.Command("sqlite3", "-batch", db)
	stdin, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() { stdin.Close(); cmd.Wait() }()
	say := func(sql string) { _, err := fmt.Fprintln(stdin, sql); must(t, err) }
	names := func(v *View) (list []string) {
		for _, e := range v.Entries() {
			list = append(list, e.Path)
		}
		return list
	}

	say("PRAGMA cache_size=5; BEGIN; INSERT INTO rows(pad) VALUES ('two');") // stays in SQLite's own cache
	eventually(t, "a journal is there", func() bool { _, err := os.Stat(db + journalSuffix); return err == nil })
	began := time.Now()
	cutOnce(t, fx, func(v *View) {
		if v.Consistency() != quiescent || len(v.Entries()) != 1 {
			t.Errorf("an untouched database: %s, %q", v.Consistency(), names(v))
		}
	})
	if took := time.Since(began); took > 250*time.Millisecond {
		t.Errorf("a journal without consequence kept the cut waiting for %s", took)
	}

	say("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 400) INSERT INTO rows(pad) SELECT randomblob(1000) FROM n;") // spills
	eventually(t, "the journal is hot", func() bool { return fx.fs.fsys.busy.look().hot == 1 })
	time.Sleep(100 * time.Millisecond) // the statement ends; the transaction does not
	began = time.Now()
	cutOnce(t, fx, func(v *View) {
		if took := time.Since(began); took < 300*time.Millisecond {
			t.Errorf("the cut waited only %s for a hot journal", took)
		}
		if v.Consistency() != quiescent || len(v.Entries()) != 2 {
			t.Errorf("a hot journal: %s, %q", v.Consistency(), names(v))
		}
		to := t.TempDir()
		copyView(t, v, to)
		if got := sqliteRun(t, filepath.Join(to, "chroma.sqlite3"), "PRAGMA integrity_check; SELECT count(*) FROM rows"); got != "ok\n1" {
			t.Errorf("the view of a transaction half done: %q", got)
		}
	})
	must(t, cmd.Process.Kill())
	cmd.Wait()
	eventually(t, "nobody has the journal open", func() bool { return fx.fs.Info().OpenForWrite == 0 })
	if r := fx.fs.fsys.busy.look(); r.hot != 0 {
		t.Errorf("a dead writer's journal is waited for: %+v", r)
	}
	if got := sqliteRun(t, db, "PRAGMA integrity_check; SELECT count(*) FROM rows"); got != "ok\n1" {
		t.Errorf("after the writer's death: %q", got)
	}
	if v, err := fx.fs.Cut(context.Background()); err != nil {
		t.Error(err)
	} else {
		v.Close()
	}
}
