package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/fusefs"
	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/tree"
	"github.com/chromafs/chromafs/journal"
	"github.com/chromafs/chromafs/uploader"
)

// dirtyWorld is a real mount, with a real journal and uploader, and a store in
// memory.
type dirtyWorld struct {
	testing.TB
	dir, mnt string
	data     *datadir.Dir
	fs       *fusefs.FS
	store    *memstore.Store
	catalog  *history.Catalog
	up       *uploader.Uploader

	beforeCut, afterCut func()
	blind               bool         // views do not tell what was touched
	read                atomic.Int64 // bytes, from views
	spared              atomic.Int64 // parts that views said nothing touched
}

func newDirtyWorld(t testing.TB, log *slog.Logger) *dirtyWorld {
	t.Helper()
	top := t.TempDir()
	w := &dirtyWorld{TB: t, dir: filepath.Join(top, "dir"), mnt: filepath.Join(top, "mnt"), store: memstore.New(),
		beforeCut: func() {}, afterCut: func() {}}
	for _, d := range []string{w.dir, w.mnt} {
		w.must(os.Mkdir(d, 0o755))
	}
	var err error
	w.data, err = datadir.Open(w.dir)
	w.must(err)
	j, err := journal.Open(w.data.State(), journal.Options{Now: time.Now, Log: log})
	w.must(err)
	w.fs, err = fusefs.Mount(context.Background(), fusefs.Options{Dir: w.data, Mountpoint: w.mnt, Recorder: j,
		FirstCut: j.State().Cut + 1, Log: log, ScratchLimit: fusefs.ScratchLimit{Bytes: scratchOfWorld}})
	w.must(err)
	t.Cleanup(func() {
		if err := w.fs.Unmount(false); err != nil {
			t.Errorf("unmount at the end: %v", errors.Join(err, w.fs.Unmount(true)))
		}
		<-w.fs.Done()
		if err := errors.Join(j.Check(), j.Close(), w.data.Close()); err != nil {
			t.Error(err)
		}
	})
	w.catalog = history.NewCatalog(w.store, log)
	w.up, err = uploader.New(uploader.Options{Cut: w.cut, Queue: j, Catalog: w.catalog, Keep: 2,
		Now: time.Now, Rand: rand.Reader, Log: log})
	w.must(err)
	return w
}

// scratchOfWorld is soon full.
const scratchOfWorld = 512 << 10

func (w *dirtyWorld) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *dirtyWorld) in(name string) string { return filepath.Join(w.mnt, name) }

// watchedView counts what is read of it, and what need not be.
type watchedView struct {
	*fusefs.View
	w *dirtyWorld
}

func (v watchedView) Open(path string) (tree.Reader, error) {
	r, err := v.View.Open(path)
	return watchedReader{r, v.w}, err
}

func (v watchedView) Touched(path string, since uint64) (func(off, length int64) bool, bool) {
	touched, known := v.View.Touched(path, since)
	return func(off, length int64) bool {
		is := touched(off, length)
		if !is {
			v.w.spared.Add(1)
		}
		return is
	}, known
}

type watchedReader struct {
	tree.Reader
	w *dirtyWorld
}

func (r watchedReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := r.Reader.ReadAt(b, off)
	r.w.read.Add(int64(n))
	return n, err
}

func (w *dirtyWorld) cut(ctx context.Context) (uploader.View, error) {
	w.beforeCut()
	v, err := w.fs.Cut(ctx)
	if err != nil {
		return nil, err
	}
	w.afterCut()
	if w.blind {
		return struct{ uploader.View }{watchedView{v, w}}, nil
	}
	return watchedView{v, w}, nil
}

// truthOf is the hashes of all files of the mount: cached by content, because most of
// it is zeros.
type truthOf struct {
	seed  maphash.Seed
	known map[uint64]tree.Hash
	buf   []byte
}

func newTruth() *truthOf {
	return &truthOf{maphash.MakeSeed(), map[uint64]tree.Hash{}, make([]byte, tree.MinPartSize)}
}

func (t *truthOf) read(w *dirtyWorld) map[string][]tree.Hash {
	all := map[string][]tree.Hash{}
	w.must(filepath.WalkDir(w.mnt, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		var sums []tree.Hash
		for {
			n, err := io.ReadFull(f, t.buf)
			if n > 0 {
				key := maphash.Bytes(t.seed, t.buf[:n])
				if _, ok := t.known[key]; !ok {
					t.known[key] = sha256.Sum256(t.buf[:n])
				}
				sums = append(sums, t.known[key])
			}
			if n < len(t.buf) {
				if err != io.EOF && err != io.ErrUnexpectedEOF {
					return err
				}
				break
			}
		}
		rel, err := filepath.Rel(w.mnt, path)
		all[rel] = sums
		return err
	}))
	return all
}

// expect compares the newest snapshot with what was on the mount at its cut.
func (w *dirtyWorld) expect(want map[string][]tree.Hash) {
	w.Helper()
	head, _, err := w.catalog.Head(w.Context())
	w.must(err)
	m, err := w.catalog.Manifest(w.Context(), head.Newest.ID, "")
	w.must(err)
	files := 0
	for _, r := range m.Entries {
		if r.Type != tree.File {
			continue
		}
		files++
		sums, ok := want[r.Path]
		for i := range max(len(sums), len(r.Parts)) {
			if !ok || i >= len(sums) || i >= len(r.Parts) || sums[i] != r.Parts[i] {
				w.Errorf("snapshot %s: part %d of %s (%d bytes) is not what was on the mount", m.ID, i, r.Path, r.Size)
			}
		}
	}
	if files != len(want) {
		w.Errorf("snapshot %s holds %d files, the mount held %d", m.ID, files, len(want))
	}
}

// changer does to the mount whatever changes files.
type changer struct {
	*dirtyWorld
	rnd  *mathrand.Rand
	said []string
}

var worldFiles = []string{"a", "b", "d/a"}

func (c *changer) name() string {
	return c.in(worldFiles[c.rnd.IntN(len(worldFiles))])
}

const worldPart = tree.MinPartSize

// off is somewhere in up to three parts, often at an edge.
func (c *changer) off() int64 {
	off := c.rnd.Int64N(5 * worldPart / 2)
	if c.rnd.IntN(3) == 0 {
		off = max(0, (off+worldPart/2)/worldPart*worldPart+c.rnd.Int64N(3)-1)
	}
	return off
}

func (c *changer) bytes() []byte {
	b := make([]byte, 1+c.rnd.IntN(5000))
	for i := range b {
		b[i] = byte(c.rnd.Uint32())
	}
	return b
}

// open runs f on a file, which is made if need be, and syncs it sometimes.
func (c *changer) open(name string, flags int, f func(fd int) error) error {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|flags, 0o644)
	if err != nil {
		return err
	}
	err = f(fd)
	if c.rnd.IntN(3) == 0 {
		err = errors.Join(err, unix.Fsync(fd))
	}
	return errors.Join(err, unix.Close(fd))
}

// change does one thing. What the file system refuses is no change.
func (c *changer) change() {
	name, other, off, data := c.name(), c.name(), c.off(), c.bytes()
	ops := []struct {
		what string
		do   func() error
	}{
		{"write", func() error {
			return c.open(name, 0, func(fd int) error { _, err := unix.Pwrite(fd, data, off); return err })
		}},
		{"append", func() error {
			return c.open(name, unix.O_APPEND, func(fd int) error { _, err := unix.Write(fd, data); return err })
		}},
		{"truncate", func() error { return c.open(name, 0, func(fd int) error { return unix.Ftruncate(fd, off) }) }},
		{"empty", func() error { return c.open(name, unix.O_TRUNC, func(int) error { return nil }) }},
		{"punch", func() error {
			return c.open(name, 0, func(fd int) error {
				return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, 1+c.rnd.Int64N(worldPart))
			})
		}},
		{"zero", func() error {
			return c.open(name, 0, func(fd int) error { return unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, off, int64(len(data))) })
		}},
		{"copy", func() error { return c.copyRange(name, other, off, c.off()) }},
		{"mmap", func() error { return c.mapped(name, off, data) }},
		{"link", func() error { return unix.Link(name, other) }},
		{"unlink", func() error { return unix.Unlink(name) }},
		{"rename", func() error { return unix.Rename(name, other) }},
		{"exchange", func() error {
			return unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
		}},
		{"folder away", func() error { return unix.Rename(c.in("d"), c.in("e")) }},
		{"folder back", func() error { return unix.Rename(c.in("e"), c.in("d")) }},
		{"chmod", func() error { return unix.Chmod(name, 0o600) }},
	}
	op := ops[c.rnd.IntN(len(ops))]
	if c.rnd.IntN(3) == 0 {
		op = ops[0]
	}
	err := op.do()
	c.said = append(c.said, fmt.Sprintf("%s %s %s at %d, %d bytes: %v", op.what, name, other, off, len(data), err))
}

func (c *changer) copyRange(name, other string, off, to int64) error {
	return c.open(name, 0, func(from int) error {
		return c.open(other, 0, func(fd int) error {
			_, err := unix.CopyFileRange(from, &off, fd, &to, 5000, 0)
			return err
		})
	})
}

// mapped writes through a shared mapping. The page fault happens inside a system call,
// where it cannot stop this process, which serves the mount, from serving it.
func (c *changer) mapped(name string, off int64, data []byte) error {
	file := filepath.Join(c.TempDir(), "source")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return err
	}
	return c.open(name, 0, func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Size == 0 {
			return err
		}
		m, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		source, err := os.Open(file)
		if err != nil {
			return err
		}
		defer source.Close()
		at := off % st.Size
		_, err = unix.Pread(int(source.Fd()), m[at:min(at+int64(len(data)), st.Size)], 0)
		return errors.Join(err, unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
	})
}

// S1, S4: whatever changes on the mount, before and after cuts, with snapshots that
// fail, are given up or are published without anybody noticing in between, every
// published snapshot is what was on the mount at its cut, although what is known to
// be untouched is not read.
func TestPublishedIsWhatWasOnTheMount(t *testing.T) {
	seed, rounds := mathrand.Uint64(), 16
	if n, err := strconv.Atoi(os.Getenv("CHROMAFS_TEST_ROUNDS")); err == nil {
		rounds = n // to look longer
	}
	if n, err := strconv.ParseUint(os.Getenv("CHROMAFS_TEST_SEED"), 10, 64); err == nil {
		seed = n // of a run that failed
	}
	t.Logf("seed %d", seed)
	log := &lines{}
	w := newDirtyWorld(t, slog.New(slog.NewTextHandler(log, nil)))
	c := &changer{dirtyWorld: w, rnd: mathrand.New(mathrand.NewPCG(seed, 0))}
	w.must(os.Mkdir(w.in("d"), 0o755))
	for _, name := range worldFiles {
		w.must(c.open(w.in(name), 0, func(fd int) (err error) {
			for i := range int64(3) {
				_, e := unix.Pwrite(fd, c.bytes(), i*worldPart)
				err = errors.Join(err, e)
			}
			return err
		}))
	}
	var truth map[string][]tree.Hash
	reader, failed := newTruth(), 0
	w.beforeCut = func() {
		truth = reader.read(w)
		c.said = append(c.said, "cut")
	}
	w.afterCut = func() {
		for range c.rnd.IntN(4) {
			c.change()
		}
	}
	for i := range rounds {
		for range c.rnd.IntN(6) {
			c.change()
		}
		w.store.Fail = c.trouble()
		if i%8 == 3 { // once at least a snapshot fails, or is published and nobody hears of it
			w.must(c.open(w.in("a"), 0, func(fd int) error { _, err := unix.Pwrite(fd, c.bytes(), 0); return err }))
			w.store.Fail = failing(i%16 == 3, func(op memstore.Op) bool { return op.Key == history.HeadKey && op.Kind == "put" })
		}
		if _, err := w.up.Snapshot(t.Context()); err != nil {
			failed++
			c.said = append(c.said, err.Error())
			continue
		}
		w.store.Fail = nil
		if w.expect(truth); t.Failed() {
			t.Fatalf("seed %d; it was done:\n%s", seed, strings.Join(c.said[max(0, len(c.said)-60):], "\n"))
		}
	}
	w.store.Fail, w.afterCut = nil, func() {} // nothing gives the last one up
	_, err := w.up.Snapshot(t.Context())
	w.must(err)
	w.expect(truth)
	head, _, err := w.catalog.Head(t.Context())
	w.must(err)
	if report, err := w.catalog.Verify(t.Context(), head.Newest.ID); err != nil || len(report.Damaged) > 0 {
		t.Errorf("the newest snapshot is not whole: %v, %v", err, report.Damaged)
	}
	t.Logf("%d snapshots failed, %d views were given up, %d MiB were read, %d parts were not",
		failed, w.fs.CutStats().Abandoned, w.read.Load()>>20, w.spared.Load())
	if log.has("nothing was known to have written to has changed") {
		t.Error("what was said to be untouched was not")
	}
	if w.spared.Load() < 5 || failed == 0 {
		t.Error("this run shows little")
	}
}

// trouble returns what becomes of the next snapshot: mostly nothing, or an operation
// of the store fails, or has its effect and fails.
func (c *changer) trouble() func(memstore.Op) error {
	if c.rnd.IntN(3) > 0 {
		return nil
	}
	kinds := []string{"put", "put-part", "copy", "copy-part", "complete"}
	kind, head := kinds[c.rnd.IntN(len(kinds))], c.rnd.IntN(3) == 0
	return failing(c.rnd.IntN(2) == 0, func(op memstore.Op) bool {
		return head && op.Key == history.HeadKey || !head && op.Kind == kind
	})
}

func failing(after bool, which func(memstore.Op) bool) func(memstore.Op) error {
	return func(op memstore.Op) error {
		if op.After == after && which(op) {
			return errors.New("a store that fails")
		}
		return nil
	}
}

// F4: a snapshot that is given up for want of scratch space fails with a hint; the
// write that it stood in the way of succeeds, and the next snapshot has it.
func TestSnapshotAfterOneThatWasGivenUp(t *testing.T) {
	w := newDirtyWorld(t, slog.New(slog.DiscardHandler))
	f, err := os.Create(w.in("f"))
	w.must(err)
	defer f.Close()
	write := func(b byte) {
		_, err := f.WriteAt(bytes.Repeat([]byte{b}, 2*scratchOfWorld), 0)
		w.must(errors.Join(err, f.Sync()))
	}
	write('1')
	w.afterCut = func() { write('2') }
	_, err = w.up.Snapshot(t.Context())
	if !errors.Is(err, fusefs.ErrViewAbandoned) || !strings.Contains(err.Error(), "--scratch-limit") {
		t.Errorf("the snapshot ended with %v", err)
	}
	var hinted interface{ Hint() string }
	if !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), "tried again by itself") {
		t.Errorf("%v has no hint", err)
	}
	if s := w.up.Status(); s.Failures != 1 || s.NextDue.IsZero() {
		t.Errorf("nobody tries again: %+v", s)
	}
	w.afterCut = func() {}
	_, err = w.up.Snapshot(t.Context())
	w.must(err)
	w.expect(newTruth().read(w))
}

type lines struct {
	mu   sync.Mutex
	text []byte
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	return len(b), nil
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.text, []byte(text))
}
