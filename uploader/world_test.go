package uploader

import (
	"bytes"
	"context"
	rand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/tree"
	"github.com/chromafs/chromafs/journal"
)

// world is a DIR in memory, with a real journal and a store in memory.
type world struct {
	t     *testing.T
	store *memstore.Store
	over  objstore.Store // over store, where the catalog is to use another
	state *os.File       // of the journal
	j     *journal.Journal
	u     *Uploader
	log   *logBuffer
	now   func() time.Time

	keep     int
	interval time.Duration
	settle   time.Duration
	queue    func(Queue) Queue // wraps the journal
	check    CheckFunc

	mu      sync.Mutex // guards what follows
	files   map[string]file
	cut     uint64
	cuts    int
	lastCut time.Time // no two are of the same millisecond
	last    time.Time
	onCut   func() // called after each cut was taken
	verify  func() error
}

type file struct {
	data  []byte // never modified
	mode  uint32
	uid   uint32
	inode uint64
	mtime int64
}

func newWorld(t *testing.T) *world {
	t.Helper()
	state, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { state.Close() })
	w := &world{t: t, store: memstore.New(), state: state, log: &logBuffer{}, now: time.Now, keep: 24,
		interval: time.Hour, files: map[string]file{}}
	t.Cleanup(func() {
		if w.j != nil {
			w.close()
		}
	})
	return w
}

func (w *world) backing() objstore.Store {
	if w.over != nil {
		return w.over
	}
	return w.store
}

func (w *world) catalog() *history.Catalog { return history.NewCatalog(w.backing(), w.logger()) }

func (w *world) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// open opens the journal and makes an uploader that has not taken over.
func (w *world) open() *world {
	w.t.Helper()
	var err error
	if w.j, err = journal.Open(w.state, journal.Options{Log: w.logger()}); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.cut = w.j.State().Cut
	w.mu.Unlock()
	w.u = w.uploader(w.j)
	return w
}

func (w *world) uploader(q Queue) *Uploader {
	w.t.Helper()
	if w.queue != nil {
		q = w.queue(q)
	}
	u, err := New(Options{Cut: w.takeCut, Queue: q, Catalog: w.catalog(), Check: w.check, Interval: w.interval, Settle: w.settle, Keep: w.keep,
		LastMutation: w.lastMutation, Now: w.now, Rand: rand.Reader, Log: w.logger()})
	if err != nil {
		w.t.Fatal(err)
	}
	return u
}

// takeover makes w's uploader the writer.
func (w *world) takeover() *world {
	w.t.Helper()
	if err := w.tryTakeover(); err != nil {
		w.t.Fatal(err)
	}
	return w
}

func (w *world) tryTakeover() error {
	head, etag, err := w.catalog().Head(w.t.Context())
	if err != nil && !errors.Is(err, history.ErrNoBackup) {
		return err
	}
	_, err = w.u.Takeover(w.t.Context(), head, etag)
	return err
}

// close abandons the journal as a crash does: nothing is told to it.
func (w *world) close() {
	w.t.Helper()
	if err := w.j.Check(); err != nil {
		w.t.Errorf("the journal: %v", err)
	}
	if err := w.j.Close(); err != nil {
		w.t.Error(err)
	}
	w.j = nil
}

// write is a mutation as fusefs reports it: the mark comes first (J1).
func (w *world) write(path string, data []byte) {
	w.t.Helper()
	w.change(path, func(files map[string]file) {
		files[path] = file{data: data, mode: 0o644, inode: uint64(len(path)), mtime: w.now().UnixNano()}
	})
}

func (w *world) remove(path string) {
	w.t.Helper()
	w.change(path, func(files map[string]file) { delete(files, path) })
}

func (w *world) chmod(path string, mode uint32) {
	w.t.Helper()
	w.change(path, func(files map[string]file) {
		f := files[path]
		f.mode = mode
		files[path] = f
	})
}

func (w *world) chown(path string, uid uint32) {
	w.t.Helper()
	w.change(path, func(files map[string]file) {
		f := files[path]
		f.uid = uid
		files[path] = f
	})
}

func (w *world) change(path string, edit func(map[string]file)) {
	w.t.Helper()
	w.mu.Lock()
	cut := w.cut
	w.mu.Unlock()
	if err := w.j.Mark(cut, path); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files = maps.Clone(w.files)
	edit(w.files)
	w.last = w.now()
}

func (w *world) lastMutation() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

func (w *world) takeCut(context.Context) (View, error) {
	w.mu.Lock()
	w.cut++
	w.cuts++
	created := w.now()
	if created.Truncate(time.Millisecond).Equal(w.lastCut.Truncate(time.Millisecond)) { // ids go by milliseconds
		created = created.Add(time.Millisecond)
	}
	w.lastCut = created
	v := &memView{number: w.cut, created: created, files: w.files, verify: w.verify}
	onCut := w.onCut
	w.mu.Unlock()
	if onCut != nil {
		onCut()
	}
	return v, nil
}

func (w *world) snapshot() Result {
	w.t.Helper()
	r, err := w.u.Snapshot(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if r.Untidy != "" {
		w.t.Fatalf("untidy: %s", r.Untidy)
	}
	return r
}

func (w *world) head() history.Head {
	w.t.Helper()
	h, _, err := w.catalog().Head(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// get reads an object; "" and false where there is none.
func (w *world) get(key string) (string, bool) {
	w.t.Helper()
	body, _, err := w.backing().Get(w.t.Context(), key, objstore.GetOptions{})
	if errors.Is(err, objstore.ErrNotFound) {
		return "", false
	}
	if err != nil {
		w.t.Fatal(err)
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(data), true
}

func contents(files map[string]file) map[string]string {
	out := map[string]string{}
	for p, f := range files {
		out[p] = string(f.data)
	}
	return out
}

// published returns the newest snapshot's files, every byte of which was checked.
func (w *world) published() map[string]string {
	w.t.Helper()
	h := w.head()
	for _, id := range h.History {
		report, err := w.catalog().Verify(w.t.Context(), id)
		if err != nil || len(report.Damaged) > 0 {
			w.t.Fatalf("snapshot %s is not whole (S2): %v, %v", id, err, report.Damaged)
		}
	}
	return w.filesOf(h.Newest.ID)
}

func (w *world) filesOf(id history.ID) map[string]string {
	w.t.Helper()
	m, err := w.catalog().Manifest(w.t.Context(), id, "")
	if err != nil {
		w.t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range m.Entries {
		if r.Type == tree.File {
			got[r.Path], _ = w.get(history.ObjectKey(id, r.Path))
		}
	}
	return got
}

// checkTidy fails unless the store holds the listed snapshots, current as the
// newest one, and nothing else; and the journal has nothing pending.
func (w *world) checkTidy() {
	w.t.Helper()
	h := w.head()
	want := map[string]bool{history.HeadKey: true}
	for _, id := range h.History {
		want[history.ManifestKey(id)] = true
		for path := range w.filesOf(id) {
			want[history.ObjectKey(id, path)] = true
		}
	}
	for path, data := range w.filesOf(h.Newest.ID) {
		key := history.CurrentKey(path)
		want[key] = true
		if got, ok := w.get(key); ok && got != data {
			w.t.Errorf("current: %s is not the newest snapshot's", path)
		}
	}
	for o, err := range w.backing().List(w.t.Context(), "") {
		if err != nil {
			w.t.Fatal(err)
		}
		if !want[o.Key] {
			w.t.Errorf("litter: %s", o.Key)
		}
		delete(want, o.Key)
	}
	if len(want) > 0 {
		w.t.Errorf("missing: %v", slices.Sorted(maps.Keys(want)))
	}
	uploads, err := w.backing().Uploads(w.t.Context(), "")
	if err != nil && !errors.Is(err, objstore.ErrUnsupported) || len(uploads) > 0 {
		w.t.Errorf("unfinished uploads: %v, %v", uploads, err)
	}
	if s := w.j.State(); len(s.Pending) > 0 || s.Intent != nil || s.ID != string(h.Newest.ID) {
		w.t.Errorf("the journal: pending %v, intent %v, base %s; the newest is %s", s.Pending, s.Intent, s.ID, h.Newest.ID)
	}
}

// memView is a frozen DIR.
type memView struct {
	number  uint64
	created time.Time
	files   map[string]file
	verify  func() error
}

func (v *memView) Number() uint64      { return v.number }
func (v *memView) Created() time.Time  { return v.created }
func (v *memView) Consistency() string { return string(history.Quiescent) }
func (v *memView) Close() error        { return nil }

func (v *memView) Verify(context.Context) error {
	if v.verify != nil {
		return v.verify()
	}
	return nil
}

func (v *memView) Entries() []tree.Entry {
	var entries []tree.Entry
	dirs := map[string]bool{}
	for p, f := range v.files {
		entries = append(entries, tree.Entry{Path: p, Type: tree.File, Mode: f.mode, UID: f.uid, Size: int64(len(f.data)),
			ModTime: f.mtime, ChangeTime: f.mtime, Inode: f.inode, Nlink: 1})
		if dir, _, ok := strings.Cut(p, "/"); ok && !dirs[dir] {
			dirs[dir] = true
			entries = append(entries, tree.Entry{Path: dir, Type: tree.Dir, Mode: 0o755, Nlink: 2})
		}
	}
	tree.Sort(entries)
	return entries
}

func (v *memView) Open(path string) (tree.Reader, error) {
	f, ok := v.files[path]
	if !ok {
		return nil, os.ErrNotExist
	}
	return memFile{bytes.NewReader(f.data), f.data}, nil
}

// big returns content of two parts; the tail is the second one.
func big(tail string) []byte {
	b := bytes.Repeat([]byte("chromafs"), tree.MinPartSize/8)
	return append(b, tail...)
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// faults fails the operation number fail of store and journal together; with
// after, once it has had its effect; with dead, every later one too, as if the
// process had died there.
type faults struct {
	mu          sync.Mutex
	n, fail     int
	after, dead bool
	hit         bool
	ops         []string
}

var errInjected = errors.New("injected")

func (f *faults) begin(what string) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.n
	f.n++
	f.ops = append(f.ops, what)
	if f.hit && f.dead || n == f.fail && !f.after {
		f.hit = true
		return n, fmt.Errorf("%w: %s", errInjected, what)
	}
	return n, nil
}

func (f *faults) end(n int, what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n == f.fail && f.after {
		f.hit = true
		return fmt.Errorf("%w: after %s", errInjected, what)
	}
	return nil
}

func (f *faults) do(what string, op func() error) error {
	n, err := f.begin(what)
	if err != nil {
		return err
	}
	if err := op(); err != nil {
		return err
	}
	return f.end(n, what)
}

// ofStore returns what memstore asks.
func (f *faults) ofStore() func(memstore.Op) error {
	var mu sync.Mutex
	numbers := map[int]int{} // of the store → of ours
	return func(op memstore.Op) error {
		what := op.Kind + " " + op.Key
		if !op.After {
			n, err := f.begin(what)
			mu.Lock()
			numbers[op.N] = n
			mu.Unlock()
			return err
		}
		mu.Lock()
		n, ok := numbers[op.N]
		mu.Unlock()
		if !ok {
			return nil
		}
		return f.end(n, what)
	}
}

// faultyQueue is a journal whose changes fail.
type faultyQueue struct {
	Queue
	f *faults
}

func (q faultyQueue) AddPending(id string) error {
	return q.f.do("AddPending", func() error { return q.Queue.AddPending(id) })
}

func (q faultyQueue) DropPending(id string) error {
	return q.f.do("DropPending", func() error { return q.Queue.DropPending(id) })
}

func (q faultyQueue) SetIntent(i journal.Intent) error {
	return q.f.do("SetIntent", func() error { return q.Queue.SetIntent(i) })
}

func (q faultyQueue) Acknowledge(p journal.Published) error {
	return q.f.do("Acknowledge", func() error { return q.Queue.Acknowledge(p) })
}
