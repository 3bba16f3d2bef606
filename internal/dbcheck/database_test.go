package dbcheck

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/dirview"
	"github.com/chromafs/chromafs/internal/tree"
)

// fill makes a table whose pages are many, and an index.
const fill = `CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT NOT NULL, b BLOB);
CREATE INDEX by_a ON t(a);
INSERT INTO t(a, b) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 2000)
	SELECT printf('%08d', i*7919 % 2000), zeroblob(300 + i % 200) FROM n;
`

// rewrite changes every page and moves rows, so that half of it is no database.
const rewrite = `UPDATE t SET a = a || hex(zeroblob(20)), b = zeroblob(900 - length(b));
`

// sqlite runs the sqlite3 command in a folder; files of the statements are relative
// to it.
func sqlite(t testing.TB, folder string, script string) {
	t.Helper()
	cmd := exec.Command("sqlite3", "-batch", "-bail")
	cmd.Dir, cmd.Stdin = folder, strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sqlite3 (scripts/test installs it): %v: %s", err, out)
	}
}

// hot leaves d/db and its journal as a crash in the middle of a transaction does.
func hot(t testing.TB, before, folder string) {
	t.Helper()
	work := t.TempDir()
	sqlite(t, work, ".open db\n"+before+fill+"PRAGMA cache_size=10; BEGIN;"+rewrite+
		".system cp db db-journal "+folder+"\nROLLBACK;")
}

func view(t testing.TB, folder string) *dirview.View {
	t.Helper()
	root, err := os.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	v, err := dirview.New(t.Context(), dirview.Options{Root: root, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func everything(string) bool { return true }

// check checks a folder, of which not a byte may change (D1).
func check(t testing.TB, folder string, mode Mode) Report {
	t.Helper()
	before, v := contents(t, folder), view(t, folder)
	r, err := Check(t.Context(), v, mode, everything)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.EqualFunc(before, contents(t, folder), bytes.Equal) {
		t.Error("the check wrote to what it checks (D1)")
	}
	if err := v.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	return r
}

func contents(t testing.TB, folder string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := filepath.WalkDir(folder, func(name string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all[name], err = os.ReadFile(name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func edit(t testing.TB, name string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, f(b), 0o644); err != nil {
		t.Fatal(err)
	}
}

// zero wipes a page, counted from 0.
func zero(page int) func([]byte) []byte {
	return func(b []byte) []byte {
		clear(b[page*4096:][:4096])
		return b
	}
}

func remove(t testing.TB, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

func wantWhole(t *testing.T, r Report, databases int) {
	t.Helper()
	if len(r.Damage) > 0 || len(r.Doubts) > 0 || r.Databases != databases {
		t.Errorf("%d databases, damage %v, doubts %v, want %d whole ones", r.Databases, r.Damage, r.Doubts, databases)
	}
}

// wantDamage wants damage of db that is named with a text.
func wantDamage(t *testing.T, r Report, text string) {
	t.Helper()
	if len(r.Damage) != 1 || r.Damage[0].Path != "db" || !strings.Contains(r.Damage[0].String(), text) {
		t.Errorf("damage %v, doubts %v, want damage of db: %q", r.Damage, r.Doubts, text)
	}
}

func wantDoubt(t *testing.T, r Report, text string) {
	t.Helper()
	if len(r.Damage) > 0 || len(r.Doubts) != 1 || !strings.Contains(r.Doubts[0].String(), text) {
		t.Errorf("damage %v, doubts %v, want a doubt: %q", r.Damage, r.Doubts, text)
	}
}

func TestWholeDatabasesPass(t *testing.T) {
	for name, script := range map[string]string{
		"delete":       fill,
		"persist":      "PRAGMA journal_mode=PERSIST;" + fill,
		"small pages":  "PRAGMA page_size=512;" + fill,
		"big pages":    "PRAGMA page_size=65536;" + fill,
		"utf-16":       "PRAGMA encoding='UTF-16le';" + fill,
		"auto vacuum":  "PRAGMA auto_vacuum=FULL;" + fill + "DELETE FROM t WHERE id < 1500;",
		"free pages":   fill + "DELETE FROM t WHERE id < 1500;",
		"wal, emptied": "PRAGMA journal_mode=WAL;" + fill,
		"full text": fill + `CREATE VIRTUAL TABLE f USING fts5(text, tokenize='trigram');
			INSERT INTO f SELECT a FROM t;`,
		"unknown function in an index": fill + "CREATE TABLE u(x); CREATE TRIGGER tr AFTER INSERT ON u BEGIN SELECT nobody(1); END;",
	} {
		for _, mode := range []Mode{Quick, Full} {
			t.Run(name+"/"+string(mode), func(t *testing.T) {
				folder := t.TempDir()
				sqlite(t, folder, ".open db\n"+script)
				wantWhole(t, check(t, folder, mode), 1)
			})
		}
	}
}

func TestAHotJournalIsRolledBackInMemory(t *testing.T) {
	for name, before := range map[string]string{"": "", "small pages": "PRAGMA page_size=1024;", "big pages": "PRAGMA page_size=16384;"} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			hot(t, before, folder)
			wantWhole(t, check(t, folder, Full), 1)
			remove(t, filepath.Join(folder, "db-journal"))
			wantDamage(t, check(t, folder, Quick), "")
		})
	}
}

// A damaged database is found beneath its journal, too.
func TestDamageUnderAHotJournal(t *testing.T) {
	folder := t.TempDir()
	hot(t, "", folder)
	edit(t, filepath.Join(folder, "db-journal"), func(b []byte) []byte {
		clear(b[len(b)/2:][:1<<14]) // the checksums end the rollback here, as after a crash
		return b
	})
	wantDamage(t, check(t, folder, Quick), "")
}

func TestAWALIsReadWithoutItsIndex(t *testing.T) {
	folder, work := t.TempDir(), t.TempDir()
	sqlite(t, work, ".open db\nPRAGMA journal_mode=WAL;"+fill+"PRAGMA wal_checkpoint(TRUNCATE);"+rewrite+
		".system cp db db-wal "+folder)
	// Page 20 is in the WAL, so what the database has of it does not count.
	edit(t, filepath.Join(folder, "db"), zero(20))
	wantWhole(t, check(t, folder, Full), 1)
	if r := check(t, folder, Quick); r.Databases != 1 {
		t.Errorf("%d databases", r.Databases)
	}
	remove(t, filepath.Join(folder, "db-wal"))
	wantDamage(t, check(t, folder, Quick), "")
}

func TestDamageIsFound(t *testing.T) {
	for _, test := range []struct {
		name string
		edit func([]byte) []byte
		want string
	}{
		{"a page", zero(20), "page 21"},
		{"the schema", func(b []byte) []byte { clear(b[100:4096]); return b }, ""},
		{"cut off", func(b []byte) []byte { return b[:len(b)/2] }, "malformed"},
		{"cut off within a page", func(b []byte) []byte { return b[:len(b)-1000] }, ""},
		{"pages exchanged", func(b []byte) []byte {
			page := bytes.Clone(b[30*4096:][:4096])
			copy(b[30*4096:], b[90*4096:][:4096])
			copy(b[90*4096:], page)
			return b
		}, ""},
		{"only the header", func(b []byte) []byte { return b[:100] }, ""},
		{"noise after the header", func(b []byte) []byte {
			for i := range b[100:] {
				b[100+i] = byte(i * 31)
			}
			return b
		}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			folder := t.TempDir()
			sqlite(t, folder, ".open db\n"+fill)
			edit(t, filepath.Join(folder, "db"), test.edit)
			wantDamage(t, check(t, folder, Quick), test.want)
		})
	}
}

// Only the thorough mode compares an index with its table.
func TestFullFindsMore(t *testing.T) {
	folder := t.TempDir()
	sqlite(t, folder, ".open db\n"+fill+`CREATE TABLE u(a TEXT); CREATE INDEX iu ON u(a); INSERT INTO u VALUES('one'),('two');
		PRAGMA writable_schema=ON; DELETE FROM sqlite_schema WHERE name='iu';`)
	// Without the index a row changes; then the index is back.
	sqlite(t, folder, `.open db
		UPDATE u SET a = 'zwei' WHERE a = 'two'; PRAGMA writable_schema=ON;
		INSERT INTO sqlite_schema SELECT 'index', 'iu', 'u', (SELECT max(rootpage)+1 FROM sqlite_schema), 'CREATE INDEX iu ON u(a)';`)
	wantWhole(t, check(t, folder, Quick), 1)
	wantDamage(t, check(t, folder, Full), "missing from index iu")
}

func TestADatabaseIsKnownByItsFirstBytes(t *testing.T) {
	folder := t.TempDir()
	sqlite(t, folder, ".open db\n"+fill)
	if err := os.WriteFile(filepath.Join(folder, "note.sqlite3"), []byte("no database at all"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, chromaName), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, check(t, folder, Quick), 1)
	if err := os.WriteFile(filepath.Join(folder, chromaName), make([]byte, 1<<16), 0o644); err != nil {
		t.Fatal(err)
	}
	r := check(t, folder, Quick)
	if len(r.Damage) != 1 || r.Damage[0].Path != chromaName || !strings.Contains(r.Damage[0].What, "not a database") {
		t.Errorf("ChromaDB's database, wiped: %v", r)
	}
}

func TestOnlyWhatChangedIsChecked(t *testing.T) {
	folder := t.TempDir()
	sqlite(t, folder, ".open db\n"+fill)
	edit(t, filepath.Join(folder, "db"), zero(20))
	for _, changed := range []string{"db", "db-journal", "db-wal", "other"} {
		r, err := Check(t.Context(), view(t, folder), Quick, func(p string) bool { return p == changed })
		if want := changed != "other"; err != nil || (len(r.Damage) == 1) != want {
			t.Errorf("%s changed: %v, %v", changed, r, err)
		}
	}
	if r, err := Check(t.Context(), view(t, folder), None, everything); err != nil || len(r.Damage) > 0 {
		t.Errorf("none: %v, %v", r, err)
	}
}

// D2, D3: a journal that is too big is no damage, and neither is a smaller one that
// needs less.
func TestAJournalThatIsTooBigIsADoubt(t *testing.T) {
	folder := t.TempDir()
	hot(t, "", folder)
	for limit, doubts := range map[int64]int{64 << 10: 1, maxOverlay: 0} {
		c := &checker{ctx: t.Context(), view: view(t, folder), mode: Quick, limit: limit, files: map[string]tree.Entry{}}
		for _, e := range c.view.Entries() {
			c.files[e.Path] = e
		}
		if err := c.database(c.files["db"]); err != nil {
			t.Fatal(err)
		}
		if len(c.report.Damage) > 0 || len(c.report.Doubts) != doubts {
			t.Errorf("limit %d: %v", limit, c.report)
		}
		if doubts > 0 {
			wantDoubt(t, c.report, "too big to be rolled back")
		}
	}
}

// superJournal ends a journal as SQLite does in a transaction over several databases.
func superJournal(t *testing.T, journal, super string) {
	t.Helper()
	sum := uint32(0)
	for _, b := range []byte(super) {
		sum += uint32(b)
	}
	edit(t, journal, func(b []byte) []byte {
		b = binary.BigEndian.AppendUint32(b, 1<<30/4096+1)
		b = append(b, super...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(super)))
		b = binary.BigEndian.AppendUint32(b, sum)
		return append(b, 0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7)
	})
}

// A transaction over two databases was committed where its super-journal is gone: what
// is half written then stays so. With it, a view has it rolled back.
func TestATransactionOverTwoDatabases(t *testing.T) {
	folder := t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, super := range []string{"/mnt/db-mj1A2B3C9D4", "/srv/mnt/a/db-mj5E6F709D4"} {
		hot(t, "", folder)
		superJournal(t, filepath.Join(folder, "db-journal"), super)
		wantDamage(t, check(t, folder, Quick), "")

		kept := filepath.Join(folder, strings.TrimPrefix(super[strings.Index(super, "/mnt/"):], "/mnt/"))
		if err := os.WriteFile(kept, []byte("/mnt/db-journal\x00/mnt/other-journal\x00"), 0o644); err != nil {
			t.Fatal(err)
		}
		if r := check(t, folder, Quick); len(r.Damage)+len(r.Doubts) > 0 {
			t.Errorf("%s: %v", super, r)
		}
		// What the rollback leaves damaged is damaged in any case.
		edit(t, filepath.Join(folder, "db-journal"), func(b []byte) []byte {
			clear(b[len(b)/2:][:1<<14])
			return b
		})
		wantDamage(t, check(t, folder, Quick), "")
		remove(t, kept)
	}
}

// D2: values that a column should not hold are reported, and no damage.
func TestAnOddValueIsADoubt(t *testing.T) {
	folder := t.TempDir()
	sqlite(t, folder, ".open db\n"+`CREATE TABLE t(a TEXT CHECK (a <> 'x'), b); INSERT INTO t VALUES('a', NULL), ('b', NULL);
		PRAGMA ignore_check_constraints=ON; INSERT INTO t VALUES('x', 1); PRAGMA writable_schema=ON;
		UPDATE sqlite_schema SET sql = 'CREATE TABLE t(a TEXT CHECK (a <> ''x''), b NOT NULL)';`)
	wantDoubt(t, check(t, folder, Full), "NULL value in t.b (and 1 more)")
}

func TestSQLiteGivingUpIsADoubt(t *testing.T) {
	folder := t.TempDir()
	sqlite(t, folder, ".open db\n"+fill)
	v := &brokenView{View: view(t, folder), read: func() error { panic("as a damaged file may make it") }}
	r, err := Check(t.Context(), v, Quick, everything)
	if err != nil {
		t.Fatal(err)
	}
	wantDoubt(t, r, "SQLite gave up")
}

// A view that cannot be read is neither whole nor damaged.
func TestAnErrorOfTheViewIsAnError(t *testing.T) {
	folder := t.TempDir()
	sqlite(t, folder, ".open db\n"+fill)
	broken := errors.New("the scratch space ran out")
	for after := range 5 {
		n := 0
		v := &brokenView{View: view(t, folder), read: func() error {
			if n++; n > after {
				return broken
			}
			return nil
		}}
		if r, err := Check(t.Context(), v, Quick, everything); !errors.Is(err, broken) || len(r.Damage)+len(r.Doubts) > 0 {
			t.Errorf("after %d reads: %v, %v", after, r, err)
		}
	}
}

// D4.
func TestACheckEndsWithItsContext(t *testing.T) {
	folder := t.TempDir()
	sqlite(t, folder, ".open db\n"+fill)
	why := errors.New("the daemon ends")
	ctx, cancel := context.WithCancelCause(t.Context())
	n := 0
	v := &brokenView{View: view(t, folder), read: func() error {
		if n++; n == 20 {
			cancel(why)
		}
		return nil
	}}
	if r, err := Check(ctx, v, Quick, everything); !errors.Is(err, why) || len(r.Damage)+len(r.Doubts) > 0 {
		t.Errorf("%v, %v", r, err)
	}
	if n > 21 {
		t.Errorf("%d reads, want none after the end", n)
	}
}

type brokenView struct {
	View
	read func() error // before each read but that of the magic
}

func (v *brokenView) Open(path string) (tree.Reader, error) {
	f, err := v.View.Open(path)
	return brokenReader{f, v}, err
}

type brokenReader struct {
	tree.Reader
	v *brokenView
}

func (r brokenReader) ReadAt(p []byte, off int64) (int, error) {
	if len(p) != len(magic) || off > 0 {
		if err := r.v.read(); err != nil {
			return 0, err
		}
	}
	return r.Reader.ReadAt(p, off)
}

func TestModesHaveNames(t *testing.T) {
	for _, name := range []string{"none", "quick", "full"} {
		if m, err := ParseMode(name); err != nil || string(m) != name {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	if _, err := ParseMode("thorough"); err == nil {
		t.Error("a mode that does not exist")
	}
}

// FuzzOverlay compares an overlay with a plain slice of bytes.
func FuzzOverlay(f *testing.F) {
	f.Add([]byte{0, 0, 100, 1, 10, 0, 1, 50, 0, 2, 0, 100}, int16(9000)) // written, cut off, grown, read
	f.Add([]byte{1, 10, 0, 1, 50, 0, 2, 0, 100}, int16(9000))            // the same of what is in the view
	f.Add(bytes.Repeat([]byte{0, 200, 10, 1, 3, 0, 2, 7, 50}, 20), int16(4096))
	f.Fuzz(func(t *testing.T, ops []byte, size int16) {
		model := make([]byte, max(0, int(size)))
		for i := range model {
			model[i] = byte(i*7 + 1)
		}
		v := &viewVFS{ctx: t.Context(), limit: maxOverlay}
		o := v.overlay(tree.Entry{Path: "db", Size: int64(len(model))}, bytes.NewReader(slices.Clone(model)))
		for ; len(ops) >= 3; ops = ops[3:] {
			off, n := int(ops[1])*67, int(ops[2])*41
			switch ops[0] % 3 {
			case 0:
				data := bytes.Repeat([]byte{ops[0] | 1}, n)
				if _, err := o.WriteAt(data, int64(off)); err != nil {
					t.Fatal(err)
				}
				if n > 0 && off+n > len(model) {
					model = append(model, make([]byte, off+n-len(model))...)
				}
				if n > 0 {
					copy(model[off:], data)
				}
			case 1:
				if err := o.Truncate(int64(off)); err != nil {
					t.Fatal(err)
				}
				model = append(model, make([]byte, max(0, off-len(model)))...)[:off]
			case 2:
				got := make([]byte, n)
				read, _ := o.ReadAt(got, int64(off))
				if want := model[min(off, len(model)):min(off+n, len(model))]; !bytes.Equal(got[:read], want) {
					t.Fatalf("read %d of %d bytes at %d: differs", read, n, off)
				}
			}
			if s, _ := o.Size(); s != int64(len(model)) {
				t.Fatalf("size %d, want %d", s, len(model))
			}
			if v.overlaid != int64(len(o.blocks))*blockSize {
				t.Fatalf("%d bytes counted for %d blocks", v.overlaid, len(o.blocks))
			}
		}
	})
}
