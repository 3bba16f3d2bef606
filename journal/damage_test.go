package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/tree"
)

// sample fills the journal in dir with some of everything.
func sample(t testing.TB, dir string) {
	t.Helper()
	j := open(t, dir)
	link := tree.Record{Entry: tree.Entry{Path: "link", Type: tree.Symlink, Mode: 0o777, ModTime: -5, Nlink: 1, Target: "big"}}
	folder := tree.Record{Entry: tree.Entry{Path: "seg", Type: tree.Dir, Mode: 0o2755, UID: 1000, GID: 1000, Inode: 1 << 63, Nlink: 2}}
	must(t, j.Acknowledge(published(7, 3, record("big", 20<<20, 1), record("seg/data", 100, 2), record("seg/\xff\n", 0, 3), link, folder)))
	must(t, j.AddPending("id-6"))
	must(t, j.SetIntent(Intent{ID: "id-8", Nonce: "nonce", Cut: 4, Sequence: 8}))
	must(t, j.Mark(4, "big", "new"))
	must(t, j.Stop([]tree.Entry{record("big", 21<<20, 9).Entry}))
	must(t, j.Close())
}

// read opens the file in dir as Open does, but takes a copy for the original.
func read(t testing.TB, dir string) (*content, error) {
	t.Helper()
	c, _, err := readSuspecting(t, dir)
	return c, err
}

func readSuspecting(t testing.TB, dir string) (c *content, suspect bool, err error) {
	t.Helper()
	s := &store{dir: folder(t, dir), log: slog.New(slog.DiscardHandler)}
	c, err = s.open(context.Background())
	if err == nil {
		must(t, s.close())
	}
	return c, s.suspect, err
}

// describe says all of c in bytes, but for where the file is.
func describe(t testing.TB, c *content) string {
	t.Helper()
	var b strings.Builder
	h := c.head
	h.JournalID, h.Inode, h.Born = "", 0, 0
	head, err := encodeHeader(h)
	must(t, err)
	b.Write(head)
	for _, p := range []string{".", "big", "link", "new", "seg", "seg/data", "seg/\xff\n"} {
		if m, ok := c.marks[p]; ok {
			b.WriteString("\nmark " + p)
			m.first, m.at = 0, 0
			b.Write(encodeMark(m))
		}
		if s, ok := c.stats[p]; ok {
			b.WriteString("\nstat " + p)
			b.Write(encodeStat(s))
		}
		if r, ok := c.base[p]; ok {
			b.WriteString("\nbase " + p)
			b.Write(encodeRecord(r))
		}
	}
	return b.String()
}

// A journal that was written by format 1 of chromafs, and damaged ones.
// JOURNAL_FIXTURE=write makes them anew: only ever for a new format, in a new
// folder.
func TestFormat1(t *testing.T) {
	const fixtures = "testdata/format1"
	damage := map[string]func([]byte) []byte{
		"truncated": func(b []byte) []byte { return b[:len(b)/2] },
		"empty":     func([]byte) []byte { return nil },
		"no-bbolt":  func(b []byte) []byte { return bytes.Repeat([]byte("not a database. "), 512) },
		"metas":     func(b []byte) []byte { return append(make([]byte, 8192), b[8192:]...) },
		"value": func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte(`"nonce":"nonce"`), []byte(`"nonce":"nonse"`))
		},
	}
	if os.Getenv("JOURNAL_FIXTURE") == "write" {
		dir := t.TempDir()
		sample(t, dir)
		whole, err := os.ReadFile(filepath.Join(dir, fileName))
		must(t, err)
		must(t, os.MkdirAll(fixtures, 0o755))
		must(t, os.WriteFile(filepath.Join(fixtures, "whole.db"), whole, 0o644))
		for name, harm := range damage {
			must(t, os.WriteFile(filepath.Join(fixtures, "damaged-"+name+".db"), harm(bytes.Clone(whole)), 0o644))
		}
	}
	fresh := t.TempDir()
	sample(t, fresh)
	want, err := read(t, fresh)
	must(t, err)
	place := func(t *testing.T, fixture string) string {
		dir := t.TempDir()
		b, err := os.ReadFile(filepath.Join(fixtures, fixture))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, fileName), b, 0o600))
		return dir
	}
	t.Run("whole", func(t *testing.T) {
		got, err := read(t, place(t, "whole.db"))
		must(t, err)
		if g, w := describe(t, got), describe(t, want); g != w {
			t.Errorf("read\n%q, want\n%q", g, w)
		}
	})
	for name := range damage {
		t.Run(name, func(t *testing.T) {
			dir := place(t, "damaged-"+name+".db")
			_, err := tryOpen(t, dir, nil)
			var damaged *DamagedError
			if !errors.As(err, &damaged) || !errors.Is(err, ErrDamaged) {
				t.Fatalf("open: %v", err)
			}
			if exitcode.Of(err) != exitcode.Integrity || !strings.Contains(exitcode.Hint(err), fileName) {
				t.Errorf("exit code %d, hint %q", exitcode.Of(err), exitcode.Hint(err))
			}
			aside, err := SetAside(folder(t, dir), time.Now())
			must(t, err)
			if s := open(t, dir).State(); !s.Fresh || len(kept(t, dir, aside)) != 1 {
				t.Errorf("set aside as %q, then %+v", aside, s)
			}
		})
	}
}

// Whatever single byte of the file is damaged: it is found out, or it was of no
// consequence. It never crashes, and is never half believed.
func TestEveryByteDamaged(t *testing.T) {
	dir := t.TempDir()
	sample(t, dir)
	c, err := read(t, dir)
	must(t, err)
	want := describe(t, c)
	f, err := os.OpenFile(filepath.Join(dir, fileName), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	info, err := f.Stat()
	must(t, err)
	stride := int64(7)
	if testing.Short() {
		stride = 61
	}
	found, older := 0, 0
	for off := int64(0); off < info.Size(); off += stride {
		var b [1]byte
		_, err := f.ReadAt(b[:], off)
		must(t, err)
		_, err = f.WriteAt([]byte{b[0] ^ 0xA5}, off)
		must(t, err)
		c, suspect, err := readSuspecting(t, dir)
		switch {
		case errors.Is(err, ErrDamaged), errors.Is(err, ErrNewerFormat):
			found++
		case err != nil:
			t.Fatalf("byte %d: %v", off, err)
		case suspect:
			older++ // TestMetaPageDamaged says what becomes of it
		case describe(t, c) != want:
			t.Errorf("byte %d changed what was read", off)
		}
		_, err = f.WriteAt(b[:], off)
		must(t, err)
	}
	if found == 0 {
		t.Error("no damage was found")
	}
	t.Logf("%d times damage was found, %d times the transaction before was read", found, older)
	for size := int64(0); size < 7*4096; size += 1111 {
		cut := t.TempDir()
		b := make([]byte, size)
		_, err := f.ReadAt(b, 0)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(cut, fileName), b, 0o600))
		if c, err := read(t, cut); !errors.Is(err, ErrDamaged) && (err != nil || describe(t, c) != want) {
			t.Errorf("truncated to %d bytes: %v", size, err)
		}
	}
}

// Pages that refer to one another as no tree does, and a free list that would
// have pages in use overwritten.
func TestTreeDamaged(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	for i := range 400 {
		must(t, j.Mark(uint64(i%2), strings.Repeat("x", 100)+strconv.Itoa(i)))
	}
	must(t, j.Close())
	whole, err := os.ReadFile(filepath.Join(dir, fileName))
	must(t, err)
	le := binary.LittleEndian
	meta, _, err := newestMeta(bytes.NewReader(whole), int64(len(whole)))
	must(t, err)
	branch, leaf := uint64(0), uint64(0)
	reached := verifier{r: bytes.NewReader(whole), meta: meta, seen: map[uint64]bool{0: true, 1: true}}
	must(t, reached.tree(meta.root, nil, nil, true))
	for id := range reached.seen {
		switch le.Uint16(whole[id*meta.pageSize+8:]) {
		case flagBranch:
			branch = id
		case flagLeaf:
			leaf = id
		}
	}
	free := whole[meta.freelist*meta.pageSize:]
	if branch == 0 || leaf == 0 || le.Uint16(free[10:]) < 2 {
		t.Fatalf("the file is too simple: branch %d, leaf %d, %d free pages", branch, leaf, le.Uint16(free[10:]))
	}
	child := branch*meta.pageSize + pageHeader + 8 // of the first element
	for name, patch := range map[string]struct{ at, value uint64 }{
		"a branch that is its own child":  {child, branch},
		"two ways to one page":            {child, le.Uint64(whole[child+elemSize:])},
		"a child out of bounds":           {child, meta.pages},
		"a child that is a meta page":     {child, 1},
		"a child that is the free list":   {child, meta.freelist},
		"a page of another name":          {leaf * meta.pageSize, leaf + 1},
		"a free page that is in use":      {meta.freelist*meta.pageSize + pageHeader, leaf},
		"a free page twice":               {meta.freelist*meta.pageSize + pageHeader, le.Uint64(free[pageHeader+8:])},
		"a free page out of bounds":       {meta.freelist*meta.pageSize + pageHeader, meta.pages},
		"a free page that is a meta page": {meta.freelist*meta.pageSize + pageHeader, 0},
	} {
		b := bytes.Clone(whole)
		le.PutUint64(b[patch.at:], patch.value)
		if _, err := verify(bytes.NewReader(b), int64(len(b))); !errors.Is(err, errPage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// bbolt takes the newest meta page with a right checksum, whatever it says: one
// that says nonsense is damage, even where the other is good.
func TestMetaPageNonsense(t *testing.T) {
	for page := range 2 {
		dir := t.TempDir()
		sample(t, dir)
		name := filepath.Join(dir, fileName)
		b, err := os.ReadFile(name)
		must(t, err)
		m := b[4096*page+pageHeader:]
		binary.LittleEndian.PutUint32(m[8:], 0x025dd800)
		binary.LittleEndian.PutUint64(m[metaSummed:], fnvSum(m[:metaSummed]))
		must(t, os.WriteFile(name, b, 0o600))
		if _, err := tryOpen(t, dir, nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("meta page %d with an odd page size: %v", page, err)
		}
	}
}

// J3: with one of its two meta pages gone the file may be one transaction
// behind, so everything counts as changed.
func TestMetaPageDamaged(t *testing.T) {
	for page := range int64(2) {
		dir := t.TempDir()
		sample(t, dir)
		f, err := os.OpenFile(filepath.Join(dir, fileName), os.O_RDWR, 0)
		must(t, err)
		_, err = f.WriteAt(make([]byte, 4096), page*4096)
		must(t, errors.Join(err, f.Close()))
		j := open(t, dir)
		if !j.State().AllDirty || j.State().Sequence != 7 {
			t.Errorf("without meta page %d: %+v", page, j.State())
		}
		must(t, j.Close())
		j = open(t, dir)
		if !j.State().AllDirty {
			t.Error("forgotten at the next open")
		}
		must(t, j.Acknowledge(published(8, j.State().Cut+1)))
		if d := reopen(t, j, dir).Dirty(); !d.Empty() {
			t.Errorf("dirty: %+v", d)
		}
	}
}

func TestNewerFormat(t *testing.T) {
	dir := t.TempDir()
	sample(t, dir)
	db, err := bolt.Open(filepath.Join(dir, fileName), 0o600, &bolt.Options{Timeout: time.Second})
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error {
		value := seal(headBucket, headKey, []byte(`{"format":2,"what":"nobody knows yet"}`))
		return errors.Join(tx.Bucket([]byte(headBucket)).Put([]byte(headKey), value), tx.DeleteBucket([]byte(statBucket)))
	}))
	must(t, db.Close())
	_, err = tryOpen(t, dir, nil)
	var newer *NewerFormatError
	if !errors.As(err, &newer) || newer.Format != 2 || !errors.Is(err, ErrNewerFormat) || errors.Is(err, ErrDamaged) || exitcode.Hint(err) == "" {
		t.Errorf("open: %v, hint %q", err, exitcode.Hint(err))
	}
}

// A journal that was copied does not pass for the original, and the original is
// not affected (DESIGN 3).
func TestCopied(t *testing.T) {
	dir := t.TempDir()
	sample(t, dir)
	original := open(t, dir)
	id := original.State().JournalID
	must(t, original.Close())
	clone := filepath.Join(t.TempDir(), "clone")
	must(t, os.CopyFS(clone, os.DirFS(dir)))
	j := open(t, clone)
	s := j.State()
	if !s.Fresh || !strings.Contains(s.FreshReason, "copied") || s.JournalID == id || s.Lineage != "" || s.ID != "" || s.Published || s.Intent != nil || len(s.Pending) != 0 {
		t.Errorf("a copied journal says %+v", s)
	}
	if _, ok := j.Base("big"); ok {
		t.Error("its base is used")
	}
	if n := len(kept(t, clone, fileName+".copied-*")); n != 1 {
		t.Errorf("%d copies were kept", n)
	}
	if s := reopen(t, j, clone).State(); !s.Fresh {
		t.Errorf("reopened: %+v", s)
	}
	// The same file by another name in the same folder is the same journal.
	must(t, os.Rename(filepath.Join(dir, fileName), filepath.Join(dir, "x")))
	must(t, os.Rename(filepath.Join(dir, "x"), filepath.Join(dir, fileName)))
	if s := open(t, dir).State(); s.Fresh || s.JournalID != id || s.Sequence != 7 || !s.CleanStop {
		t.Errorf("the original says %+v", s)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	start := time.Now()
	if _, err := tryOpen(t, dir, nil); !errors.Is(err, ErrLocked) {
		t.Errorf("a second open: %v", err)
	}
	if waited := time.Since(start); waited > 10*lockTimeout {
		t.Errorf("it waited %v", waited)
	}
	must(t, j.Mark(1, "a"))
	must(t, j.Close())
	open(t, dir)
}

// What a crash in the middle of rewrite leaves does not stay.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, newName), []byte("half"), 0o600))
	open(t, dir)
	if _, err := os.Stat(filepath.Join(dir, newName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", newName, err)
	}
}

// FuzzFile patches a good file in two places and cuts it off.
func FuzzFile(f *testing.F) {
	dir := f.TempDir()
	sample(f, dir)
	whole, err := os.ReadFile(filepath.Join(dir, fileName))
	must(f, err)
	f.Add(uint16(0), []byte{}, uint16(0), []byte{}, uint16(len(whole)))
	f.Add(uint16(4096), []byte{1}, uint16(0), []byte{}, uint16(9000))
	for page := range 6 { // each page in place of the next one, and with another id
		f.Add(uint16(4096*(page+1)), whole[4096*page:][:64], uint16(4096*page), []byte{byte(page + 1)}, uint16(len(whole)))
		f.Add(uint16(4096*page+8), []byte{flagBranch}, uint16(4096*page+10), []byte{0xff, 0xff}, uint16(len(whole)))
	}
	f.Fuzz(func(t *testing.T, at uint16, patch []byte, at2 uint16, patch2 []byte, size uint16) {
		file := bytes.Clone(whole)
		copy(file[min(int(at), len(file)):], patch)
		copy(file[min(int(at2), len(file)):], patch2)
		file = file[:min(int(size), len(file))]
		// Metas with right checksums, so that what lies behind them is reached.
		for _, off := range []int{0, 4096} {
			if len(file) >= off+pageHeader+metaSummed+8 {
				m := file[off+pageHeader:]
				binary.LittleEndian.PutUint64(m[metaSummed:], fnvSum(m[:metaSummed]))
			}
		}
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, fileName), file, 0o600))
		if c, err := read(t, dir); err == nil {
			must(t, c.valid())
		} else if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
			t.Errorf("neither whole nor damaged: %v", err)
		}
	})
}
