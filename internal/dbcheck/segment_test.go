package dbcheck

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/internal/tree"
)

// element is what a vector takes in data_level0.bin, for vectors of 8 floats.
const element = 132 + 8*4 + 8

func headerOf(count uint64) []byte {
	b := make([]byte, headerSize)
	binary.LittleEndian.PutUint32(b, headerVersion)
	for i, v := range []uint64{0, 1024, count, element, element - labelSize, 132} {
		binary.LittleEndian.PutUint64(b[4+8*i:], v)
	}
	return b
}

// segmentsTable makes ChromaDB's table of segments, in which some are named.
func segmentsTable(ids ...string) string {
	script := `CREATE TABLE "segments" (id TEXT PRIMARY KEY, type TEXT NOT NULL, scope TEXT NOT NULL, collection TEXT NOT NULL);` + "\n"
	for _, id := range ids {
		script += "INSERT INTO segments VALUES('" + id + "', 'urn:chroma:segment/vector/hnsw-local-persisted', 'VECTOR', 'c');\n"
	}
	return script
}

// segment makes a folder as ChromaDB's persist leaves it: count vectors in files
// that had room for some at first. The database beside it names it.
func segment(t *testing.T, count, room int) string {
	t.Helper()
	folder := t.TempDir()
	held := max(count, room)
	for name, content := range map[string][]byte{
		headerName: headerOf(uint64(count)), level0Name: make([]byte, held*element), lengthName: make([]byte, held*4),
		linksName: make([]byte, count*4+count/16*132), pickleName: []byte("\x80\x03}."),
	} {
		path := filepath.Join(folder, "segment", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sqlite(t, folder, ".open "+chromaName+"\n"+segmentsTable("segment"))
	return folder
}

func TestWholeSegmentsPass(t *testing.T) {
	for _, of := range [][2]int{{0, 100}, {1, 100}, {100, 100}, {1000, 1000}, {1001, 1000}, {5000, 100}} {
		r := check(t, segment(t, of[0], of[1]), Quick)
		if len(r.Damage)+len(r.Doubts) > 0 || r.Segments != 1 {
			t.Errorf("%d vectors with room for %d: %v", of[0], of[1], r)
		}
	}
}

func TestTornSegmentsAreFound(t *testing.T) {
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:len(b)-n] } }
	for _, test := range []struct {
		name, file string
		edit       func([]byte) []byte
		want       string
	}{
		{"header ahead", headerName, func([]byte) []byte { return headerOf(1200) }, "counts 1200 vectors, but data_level0.bin holds 1000"},
		{"header cut off", headerName, cut(1), "has 99 bytes"},
		{"header wiped but for its version", headerName, func(b []byte) []byte { clear(b[4:]); return b }, "contradicts itself"},
		{"level0 behind", level0Name, cut(element), "length.bin has 4000 bytes, not 3996"},
		{"level0 within a vector", level0Name, cut(1), "no whole vectors"},
		{"level0 empty", level0Name, func([]byte) []byte { return nil }, "length.bin has 4000 bytes, not 0"},
		{"length behind", lengthName, cut(4), "length.bin has 3996 bytes"},
		{"length within a vector", lengthName, cut(1), "length.bin has 3999 bytes"},
		{"links behind", linksName, func(b []byte) []byte { return b[:3999] }, "cannot hold the links"},
		{"pickle cut off", pickleName, cut(1), "cut off"},
		{"pickle empty", pickleName, func([]byte) []byte { return nil }, "is empty"},
	} {
		t.Run(test.name, func(t *testing.T) {
			folder := segment(t, 1000, 100)
			edit(t, filepath.Join(folder, "segment", test.file), test.edit)
			r := check(t, folder, Quick)
			if len(r.Damage) != 1 || r.Damage[0].Path != "segment" || !strings.Contains(r.Damage[0].What, test.want) {
				t.Errorf("%v, want %q", r, test.want)
			}
		})
	}
	for _, name := range segmentNames[:4] {
		folder := segment(t, 1000, 100)
		remove(t, filepath.Join(folder, "segment", name))
		if r := check(t, folder, Quick); len(r.Damage) != 1 || !strings.Contains(r.Damage[0].What, name+" is missing") {
			t.Errorf("without %s: %v", name, r)
		}
	}
}

// tornSegment makes one, and a database beside it by a script instead.
func tornSegment(t *testing.T, script string) (folder string) {
	t.Helper()
	folder = segment(t, 1000, 100)
	remove(t, filepath.Join(folder, "segment", linksName))
	remove(t, filepath.Join(folder, chromaName))
	sqlite(t, folder, ".open "+chromaName+"\n"+script)
	return folder
}

// D2: ChromaDB leaves the folder of a deleted collection behind, torn or not.
func TestATornSegmentThatIsNotInUseIsADoubt(t *testing.T) {
	for name, test := range map[string]struct{ script, want string }{
		"not named":      {segmentsTable("other"), "does not name it"},
		"deleted":        {segmentsTable("segment", "other") + "DELETE FROM segments WHERE id = 'segment';", "does not name it"},
		"another table":  {"CREATE TABLE t(id); INSERT INTO t VALUES('segment');", "has no segments.id"},
		"another column": {"CREATE TABLE segments(name); INSERT INTO segments VALUES('segment');", "has no segments.id"},
		"no database":    {".system rm " + chromaName, "does not exist"},
		"an empty one":   {"", "has no segments.id"},
	} {
		t.Run(name, func(t *testing.T) { wantDoubt(t, check(t, tornSegment(t, test.script), Quick), test.want) })
	}
}

// wantTorn wants the segment to be damage, and nothing else that is said of it.
func wantTorn(t *testing.T, r Report, path string) {
	t.Helper()
	torn := 0
	for _, f := range r.Damage {
		if f.Path == path && strings.Contains(f.What, linksName+" is missing") {
			torn++
		}
	}
	for _, f := range r.Doubts {
		if f.Path == path {
			t.Errorf("a doubt: %v", f)
		}
	}
	if torn != 1 {
		t.Errorf("damage %v, doubts %v, want damage of %s", r.Damage, r.Doubts, path)
	}
}

// The database is read as SQLite finds it: a deletion that was not committed is none.
func TestADeletionThatWasNotCommittedLeavesASegmentInUse(t *testing.T) {
	folder, work := tornSegment(t, ""), t.TempDir()
	sqlite(t, work, ".open "+chromaName+"\n"+segmentsTable("segment")+fill+"PRAGMA cache_size=10; BEGIN; DELETE FROM segments;"+rewrite+
		".system cp "+chromaName+" "+chromaName+"-journal "+folder+"\nROLLBACK;")
	wantTorn(t, check(t, folder, Quick), "segment")
	remove(t, filepath.Join(folder, chromaName+"-journal"))
	if r := check(t, folder, Quick); len(r.Doubts) != 1 || r.Doubts[0].Path != "segment" {
		t.Errorf("without its journal the database holds no deletion: %v", r)
	}
}

func TestADeletionInAWALLeavesASegmentUnused(t *testing.T) {
	folder := tornSegment(t, ".dbconfig no_ckpt_on_close on\nPRAGMA journal_mode=WAL;"+segmentsTable("segment")+
		"PRAGMA wal_checkpoint(TRUNCATE); DELETE FROM segments;")
	wantDoubt(t, check(t, folder, Quick), "does not name it")
	remove(t, filepath.Join(folder, chromaName+"-wal"))
	wantTorn(t, check(t, folder, Quick), "segment")
}

// An index is not compared with its table by quick_check.
func TestTheTableOfSegmentsIsReadNotItsIndex(t *testing.T) {
	folder := tornSegment(t, `CREATE TABLE segments(id TEXT, type TEXT, scope TEXT, collection TEXT); CREATE INDEX i ON segments(id);
		PRAGMA writable_schema=ON; DELETE FROM sqlite_schema WHERE name='i';`)
	// Without the index a row is added; then the index is back.
	sqlite(t, folder, ".open "+chromaName+`
		INSERT INTO segments(id) VALUES('segment'); PRAGMA writable_schema=ON;
		INSERT INTO sqlite_schema SELECT 'index', 'i', 'segments', (SELECT max(rootpage)+1 FROM sqlite_schema), 'CREATE INDEX i ON segments(id)';`)
	wantTorn(t, check(t, folder, Quick), "segment")
}

// Where the database cannot be read, a torn segment may be in use.
func TestATornSegmentBesideAnUnreadableDatabaseIsDamage(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, database string){
		"page": func(t *testing.T, database string) {
			edit(t, database, func(b []byte) []byte { clear(b[4096:]); return b })
		},
		"no database": func(t *testing.T, database string) {
			edit(t, database, func(b []byte) []byte { clear(b); return b })
		},
		"link": func(t *testing.T, database string) {
			err := errors.Join(os.Rename(database, database+".real"), os.Symlink(filepath.Base(database)+".real", database))
			if err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			folder := tornSegment(t, segmentsTable("other"))
			spoil(t, filepath.Join(folder, chromaName))
			wantTorn(t, check(t, folder, Quick), "segment")
		})
	}
	t.Run("journal", func(t *testing.T) {
		folder, work := tornSegment(t, ""), t.TempDir()
		sqlite(t, work, ".open "+chromaName+"\n"+segmentsTable("other")+fill+"PRAGMA cache_size=10; BEGIN;"+rewrite+
			".system cp "+chromaName+" "+chromaName+"-journal "+folder+"\nROLLBACK;")
		c := &checker{ctx: t.Context(), view: view(t, folder), mode: Quick, limit: 64 << 10, files: map[string]tree.Entry{}}
		for _, e := range c.view.Entries() {
			c.files[e.Path] = e
		}
		if err := c.segment("segment"); err != nil {
			t.Fatal(err)
		}
		wantTorn(t, c.report, "segment")
	})
}

// The database that says so is the one beside the folder, and is read once.
func TestEachFolderHasItsOwnDatabase(t *testing.T) {
	folder := t.TempDir()
	for name, script := range map[string]string{"used": segmentsTable("one", "two"), "left": segmentsTable(), "none": ""} {
		for _, id := range []string{"one", "two"} {
			if err := os.MkdirAll(filepath.Join(folder, name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(tornSegment(t, ""), "segment"), filepath.Join(folder, name, id)); err != nil {
				t.Fatal(err)
			}
		}
		if name != "none" {
			sqlite(t, filepath.Join(folder, name), ".open "+chromaName+"\n"+script)
		}
	}
	opened := map[string]int{}
	v := &countingView{View: view(t, folder), opened: opened}
	pickles := func(p string) bool { return filepath.Base(p) == pickleName }
	r, err := Check(t.Context(), v, Quick, pickles)
	if err != nil || len(r.Damage) != 2 || len(r.Doubts) != 4 || r.Segments != 6 {
		t.Errorf("%v, %v", r, err)
	}
	wantTorn(t, r, "used/one")
	wantTorn(t, r, "used/two")
	for _, name := range []string{"used/", "left/"} {
		if n := opened[name+chromaName]; n != 1 {
			t.Errorf("%s was read %d times", name, n)
		}
	}
}

type countingView struct {
	View
	opened map[string]int
}

func (v *countingView) Open(path string) (tree.Reader, error) {
	v.opened[path]++
	return v.View.Open(path)
}

func TestAFolderWithoutPickleIsNoSegmentYet(t *testing.T) {
	folder := segment(t, 1000, 100)
	remove(t, filepath.Join(folder, "segment", pickleName))
	remove(t, filepath.Join(folder, "segment", headerName))
	if r := check(t, folder, Quick); r.Segments != 0 || len(r.Damage)+len(r.Doubts) > 0 {
		t.Errorf("%v", r)
	}
}

func TestAnUnknownVersionIsADoubt(t *testing.T) {
	folder := segment(t, 1000, 100)
	edit(t, filepath.Join(folder, "segment", headerName), func(b []byte) []byte { b[0] = 2; return b })
	wantDoubt(t, check(t, folder, Quick), "version")
}

func TestOnlySegmentsThatChangedAreChecked(t *testing.T) {
	folder := segment(t, 1000, 100)
	remove(t, filepath.Join(folder, "segment", linksName))
	for _, name := range []string{linksName, pickleName} {
		r, err := Check(t.Context(), view(t, folder), Quick, func(p string) bool { return p == "segment/"+name })
		if err != nil || len(r.Damage) != 1 {
			t.Errorf("%s changed: %v, %v", name, r, err)
		}
	}
	r, err := Check(t.Context(), view(t, folder), Quick, func(p string) bool { return p == "segment" })
	if err != nil || r.Segments != 0 {
		t.Errorf("nothing changed: %v, %v", r, err)
	}
}

// FuzzHeader: no header makes the check fail, and what it accepts fits.
func FuzzHeader(f *testing.F) {
	f.Add(headerOf(1000), uint64(1000*element), uint64(4000), uint64(4000))
	f.Add(headerOf(1<<63), uint64(1<<63), uint64(1<<62), uint64(1<<63))
	f.Add(headerOf(0)[:50], uint64(0), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, level0, length, links uint64) {
		h, err := parseHeader(b)
		if err != nil {
			if len(b) >= headerSize && b[0] == headerVersion && b[1]|b[2]|b[3] == 0 && errors.Is(err, errUnknownHeader) {
				t.Error("a known version is unknown")
			}
			return
		}
		if h.agree(level0, length, links) != "" {
			return
		}
		if h.count > 0 && (level0/h.count < h.elementSize || length/h.count < lengthSize || links/h.count < leastLinkSize) {
			t.Errorf("%+v accepted with %d, %d and %d bytes", h, level0, length, links)
		}
	})
}
