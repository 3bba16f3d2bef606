package reconcile

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/dirview"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/journal"
	"github.com/chromafs/chromafs/uploader"
)

// machine is one DIR on local disk, with its journal, and a store it may share.
type machine struct {
	t     *testing.T
	path  string
	store *memstore.Store
	dir   *datadir.Dir
	j     *journal.Journal
	u     *uploader.Uploader
	flags Flags
	keep  int
}

func newMachine(t *testing.T, store *memstore.Store) *machine {
	t.Helper()
	m := &machine{t: t, path: filepath.Join(t.TempDir(), "dir"), store: store, keep: 24}
	t.Cleanup(m.stop)
	return m
}

func logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// start opens DIR as a process does.
func (m *machine) start() *machine {
	m.t.Helper()
	var err error
	if m.dir, err = datadir.Open(m.path); err != nil {
		m.t.Fatal(err)
	}
	if err := m.dir.Lock("test"); err != nil {
		m.t.Fatal(err)
	}
	if m.j, err = journal.Open(m.dir.State(), journal.Options{}); err != nil {
		m.t.Fatal(err)
	}
	m.u = m.uploader()
	return m
}

func (m *machine) uploader() *uploader.Uploader {
	m.t.Helper()
	u, err := uploader.New(uploader.Options{Cut: m.cut, Queue: m.j, Catalog: m.catalog(), Keep: m.keep,
		Now: time.Now, Rand: rand.Reader, Log: logger(m.t)})
	if err != nil {
		m.t.Fatal(err)
	}
	return u
}

// branch stores DIR as a branch, as the commands do.
func (m *machine) branch(ctx context.Context) (history.ID, error) {
	res, err := m.uploader().Branch(ctx)
	return res.ID, err
}

// branches returns the ids of the store's complete branches.
func (m *machine) branches() (ids []history.ID) {
	m.t.Helper()
	all, err := m.catalog().Branches(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	for _, b := range all {
		if _, err := m.catalog().Verify(m.t.Context(), b.ID); err != nil {
			m.t.Error(err)
		}
		ids = append(ids, b.ID)
	}
	return ids
}

// stop is how a process ends: nothing is told to the journal.
func (m *machine) stop() {
	if m.j == nil {
		return
	}
	if err := m.j.Check(); err != nil {
		m.t.Errorf("the journal: %v", err)
	}
	if err := errors.Join(m.j.Close(), m.dir.Close()); err != nil {
		m.t.Error(err)
	}
	m.j = nil
}

func (m *machine) restart() *machine { m.stop(); return m.start() }

func (m *machine) cut(ctx context.Context) (uploader.View, error) {
	return dirview.New(ctx, dirview.Options{
		Root: m.dir.Root(), Number: m.j.State().Cut + 1, Skip: datadir.Outside(m.dir.Root()), Now: time.Now, Log: logger(m.t),
	})
}

func (m *machine) catalog() *history.Catalog { return history.NewCatalog(m.store, logger(m.t)) }

func (m *machine) env() Env {
	return Env{Dir: m.dir, Journal: m.j, Catalog: m.catalog(), Flags: m.flags, Backups: 1, Takeover: m.u.Takeover, Branch: m.branch,
		Now: time.Now, Log: logger(m.t)}
}

// mount is Run, which must decide as said.
func (m *machine) mount(row Row, action Action) Result {
	m.t.Helper()
	res, err := Run(m.t.Context(), m.env())
	if err != nil {
		m.t.Fatal(err)
	}
	if res.Decision != (Decision{row, action}) {
		m.t.Errorf("%q: %s, want %q: %s", res.Row, res.Action, row, action)
	}
	if s := m.j.State(); !res.Offline && (s.Epoch != res.Head.Epoch || s.Lineage != res.Head.Lineage) {
		m.t.Errorf("journal of lineage %s, epoch %d; the head's are %s, %d", s.Lineage, s.Epoch, res.Head.Lineage, res.Head.Epoch)
	}
	if p, err := history.Unfinished(m.dir); p != nil || err != nil {
		m.t.Errorf("unfinished: %v, %v", p, err)
	}
	return res
}

// refuse is Run, which must refuse, and touch nothing.
func (m *machine) refuse(row Row, code int) *Refusal {
	m.t.Helper()
	files, objects := m.files(), m.objects()
	_, err := Run(m.t.Context(), m.env())
	var refusal *Refusal
	if !errors.As(err, &refusal) || refusal.Row != row || exitcode.Of(err) != code || exitcode.Hint(err) == "" {
		m.t.Fatalf("Run: %v (exit %d, hint %q), want %q, exit %d", err, exitcode.Of(err), exitcode.Hint(err), row, code)
	}
	if !maps.Equal(m.files(), files) {
		m.t.Error("a refusal touched DIR")
	}
	if m.store.Fail = nil; !maps.Equal(m.objects(), objects) {
		m.t.Error("a refusal touched the store")
	}
	return refusal
}

func (m *machine) snapshot() history.ID {
	m.t.Helper()
	r, err := m.u.Snapshot(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	return r.ID
}

// write is a mutation through a mount.
func (m *machine) write(name, content string) {
	m.t.Helper()
	if err := m.j.Mark(m.j.State().Cut, name); err != nil {
		m.t.Fatal(err)
	}
	m.put(name, content)
}

// put changes DIR behind the journal's back.
func (m *machine) put(name, content string) {
	m.t.Helper()
	path := filepath.Join(m.path, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// wipe is the loss of the disk's files, but for .chromafs.
func (m *machine) wipe() {
	m.t.Helper()
	names, err := os.ReadDir(m.path)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, e := range names {
		if e.Name() != datadir.StateName {
			if err := os.RemoveAll(filepath.Join(m.path, e.Name())); err != nil {
				m.t.Fatal(err)
			}
		}
	}
}

func (m *machine) files() map[string]string { return filesBelow(m.t, m.path) }

// backups returns the local copies that were kept.
func (m *machine) backups() []map[string]string {
	m.t.Helper()
	folder := filepath.Join(m.path, datadir.StateName, datadir.BackupsName)
	entries, err := os.ReadDir(folder)
	if err != nil {
		m.t.Fatal(err)
	}
	var all []map[string]string
	for _, e := range entries {
		all = append(all, filesBelow(m.t, filepath.Join(folder, e.Name())))
	}
	return all
}

func filesBelow(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Name() == datadir.StateName {
			return fs.SkipDir
		}
		if e.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name, _ := filepath.Rel(root, path)
			files[name] = string(data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (m *machine) objects() map[string]string {
	m.t.Helper()
	fail := m.store.Fail
	m.store.Fail = nil
	defer func() { m.store.Fail = fail }()
	all := map[string]string{}
	for o, err := range m.store.List(context.Background(), "") {
		if err != nil {
			m.t.Fatal(err)
		}
		all[o.Key] = o.ETag
	}
	return all
}

func (m *machine) wantFiles(want map[string]string) {
	m.t.Helper()
	if got := m.files(); !maps.Equal(got, want) {
		m.t.Errorf("DIR holds %v, want %v", got, want)
	}
}

func (m *machine) wantDirty(want bool) {
	m.t.Helper()
	if d := m.j.Dirty(); d.Empty() == want {
		m.t.Errorf("dirty: %v (%v), want %v", !d.Empty(), d.Marks, want)
	}
}

// pair makes a store of two snapshots and two machines on it: a at the newest, b
// at the older one.
func pair(t *testing.T) (a, b *machine) {
	t.Helper()
	store := memstore.New()
	b = newMachine(t, store).start()
	b.mount(RowNewAndEmpty, StartEmpty)
	b.write("chroma.sqlite3", "one")
	b.write("seg/data", "vectors")
	b.snapshot()
	b.stop()
	a = newMachine(t, store).start()
	a.mount(RowEmpty, Restore)
	a.wantFiles(one)
	a.wantDirty(false)
	a.write("chroma.sqlite3", "two")
	a.write("new", "file")
	a.snapshot()
	b.start()
	return a, b
}

var (
	one = map[string]string{"chroma.sqlite3": "one", "seg/data": "vectors"}
	two = map[string]string{"chroma.sqlite3": "two", "seg/data": "vectors", "new": "file"}
)
