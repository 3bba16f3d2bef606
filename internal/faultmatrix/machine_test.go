package faultmatrix

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/dirview"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/retry"
	"github.com/chromafs/chromafs/internal/objstore/s3"
	"github.com/chromafs/chromafs/internal/reconcile"
	"github.com/chromafs/chromafs/internal/testutil/faultproxy"
	"github.com/chromafs/chromafs/internal/testutil/versitygw"
	"github.com/chromafs/chromafs/internal/tree"
	"github.com/chromafs/chromafs/journal"
	"github.com/chromafs/chromafs/uploader"
)

// startServer starts the S3 server of a test, and gives its credentials to all.
func startServer(t *testing.T) *versitygw.Server {
	t.Helper()
	server := versitygw.Start(t)
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": server.AccessKey, "AWS_SECRET_ACCESS_KEY": server.SecretKey,
		"AWS_SESSION_TOKEN": "", "AWS_EC2_METADATA_DISABLED": "true"} {
		t.Setenv(name, value)
	}
	return server
}

// openStore returns the store as chromafs opens it, without repeating what fails, so
// that it is seen what becomes of a failure.
func openStore(t *testing.T, p place, endpoint string, timeouts s3.Timeouts) objstore.Store {
	t.Helper()
	s, err := s3.New(s3.Options{Bucket: p.bucket, Prefix: prefix, Endpoint: endpoint, Region: p.server.Region, Timeouts: timeouts})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// repeating is a store as mounts use it: what fails is tried again, at once here.
func repeating(s objstore.Store) objstore.Store {
	soon := func(ctx context.Context, _ time.Duration) error { return objstore.Ended(ctx) }
	return retry.New(retry.Options{Policy: retry.Patient, Wait: soon}).Over(s)
}

const prefix = "chromadb"

// place is a bucket of its own, behind a proxy of its own.
type place struct {
	server *versitygw.Server
	proxy  *faultproxy.Proxy
	bucket string
}

var buckets atomic.Int64

func newPlace(t *testing.T, server *versitygw.Server) place {
	t.Helper()
	bucket := fmt.Sprintf("bucket-%d", buckets.Add(1))
	server.CreateBucket(bucket)
	return place{server, faultproxy.Start(t, server.Endpoint), bucket}
}

// objects returns what the bucket holds under the prefix, by key, as the server
// keeps it on disk: nothing here rests on what is under test.
func (p place) objects(t *testing.T) map[string]string {
	t.Helper()
	return filesBelow(t, filepath.Join(p.server.Dir, p.bucket, prefix))
}

// filesBelow returns what files hold; of big ones samples of each part, and the tail.
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
		if !e.Type().IsRegular() {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err == nil {
			files[rel], err = sample(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func sample(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	size, step := info.Size(), info.Size()
	if size > 1<<20 {
		step = 16 << 10
	}
	h := sha256.New()
	for off := int64(0); off < size-tail; off += tree.MinPartSize / 4 {
		if _, err := io.Copy(h, io.NewSectionReader(f, off, step)); err != nil {
			return "", err
		}
	}
	_, err = io.Copy(h, io.NewSectionReader(f, max(0, size-tail), tail))
	return fmt.Sprintf("%d bytes, %x", size, h.Sum(nil)), err
}

// changeable is a store that is opened anew between two runs.
type changeable struct{ objstore.Store }

// machine is a DIR with its journal, as a daemon or a command has it, and the store.
type machine struct {
	place
	t       *testing.T // that it is made for; what fails is reported to the case
	path    string
	store   *changeable
	catalog *history.Catalog
	direct  *history.Catalog // past the proxy
	log     *logBuffer
	keep    int

	dir   *datadir.Dir
	j     *journal.Journal
	up    *uploader.Uploader
	round int
}

func newMachine(t *testing.T, p place, keep int) *machine {
	t.Helper()
	m := &machine{place: p, t: t, path: filepath.Join(t.TempDir(), "dir"), store: &changeable{}, log: &logBuffer{}, keep: keep}
	m.catalog = history.NewCatalog(m.store, m.logger())
	m.reopenStore(t, patient)
	m.direct = history.NewCatalog(openStore(t, p, p.server.Endpoint, patient), m.logger())
	t.Cleanup(func() { m.stop(t) })
	m.start(t)
	return m
}

// reopenStore opens the store anew.
func (m *machine) reopenStore(t *testing.T, timeouts s3.Timeouts) {
	t.Helper()
	m.store.Store = openStore(t, m.place, m.proxy.URL, timeouts)
}

func (m *machine) logger() *slog.Logger { return slog.New(slog.NewTextHandler(m.log, nil)) }

// start opens DIR as a process does.
func (m *machine) start(t *testing.T) {
	t.Helper()
	var err error
	if m.dir, err = datadir.Open(m.path); err != nil {
		t.Fatal(err)
	}
	if err := m.dir.Lock("test"); err != nil {
		t.Fatal(err)
	}
	if m.j, err = journal.Open(m.dir.State(), journal.Options{Log: m.logger()}); err != nil {
		t.Fatal(err)
	}
	m.up, err = uploader.New(uploader.Options{Cut: m.cut, Queue: m.j, Catalog: m.catalog, Keep: m.keep, Parallel: 1,
		Now: time.Now, Rand: rand.Reader, Log: m.logger()})
	if err != nil {
		t.Fatal(err)
	}
}

// stop is how a process dies: nothing is told to the journal.
func (m *machine) stop(t *testing.T) {
	t.Helper()
	if m.j == nil {
		return
	}
	if err := m.j.Check(); err != nil {
		t.Errorf("the journal: %v", err)
	}
	if err := errors.Join(m.j.Close(), m.dir.Close()); err != nil {
		t.Error(err)
	}
	m.j = nil
}

// view knows, as a mount does, that of the big file nothing was touched but the tail.
type view struct{ *dirview.View }

func (view) Touched(path string, _ uint64) (touched func(off, length int64) bool, known bool) {
	return func(off, _ int64) bool { return off%tree.MinPartSize != 0 || off/tree.MinPartSize >= bigParts }, path == bigFile
}

func (view) Acknowledged() {}

func (m *machine) cut(ctx context.Context) (uploader.View, error) {
	v, err := dirview.New(ctx, dirview.Options{
		Root: m.dir.Root(), Number: m.j.State().Cut + 1, Skip: datadir.Outside(m.dir.Root()), Now: time.Now, Log: m.logger(),
	})
	return view{v}, err
}

// mount decides and carries out what a mount does.
func (m *machine) mount(t *testing.T) (reconcile.Result, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return reconcile.Run(ctx, reconcile.Env{Dir: m.dir, Journal: m.j, Catalog: m.catalog, Backups: 1,
		Takeover: m.up.Takeover, Now: time.Now, Log: m.logger()})
}

// write is a mutation through a mount: the mark comes first (J1).
func (m *machine) write(t *testing.T, name string, off int64, content []byte) {
	t.Helper()
	m.mark(t, name)
	path := filepath.Join(m.path, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(content, off)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) remove(t *testing.T, name string) {
	t.Helper()
	m.mark(t, name)
	if err := os.Remove(filepath.Join(m.path, name)); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) mark(t *testing.T, name string) {
	t.Helper()
	if err := m.j.Mark(m.j.State().Cut, name); err != nil {
		t.Fatal(err)
	}
}

// The big file has whole parts, which stay, and a tail, which changes.
const (
	bigFile  = "segment/data_level0.bin"
	bigParts = 2
	tail     = 300_000
)

// change makes the next round's files of the last one's: one stays, one changes, one
// goes, one comes, and of the big file one part changes.
func (m *machine) change(t *testing.T) {
	t.Helper()
	m.round++
	part := make([]byte, tail)
	mrand.NewChaCha8([32]byte{byte(m.round), byte(m.round >> 8), 1}).Read(part)
	m.write(t, "chroma.sqlite3", 0, fmt.Appendf(nil, "round %6d", m.round))
	m.write(t, fmt.Sprintf("segment/comes-%d", m.round), 0, fmt.Appendf(nil, "came in round %d", m.round))
	if m.round == 1 {
		m.write(t, "segment/header.bin", 0, []byte("stays"))
		m.write(t, bigFile, 0, slices.Concat(clean, part))
		return
	}
	m.write(t, bigFile, bigParts*tree.MinPartSize, part)
	m.remove(t, fmt.Sprintf("segment/comes-%d", m.round-1))
}

// clean is what the big file's whole parts hold: no zeros, which would not be fetched,
// and no two the same.
var clean = func() []byte {
	b := make([]byte, bigParts*tree.MinPartSize)
	mrand.NewChaCha8([32]byte{2}).Read(b)
	return b
}()

func (m *machine) files(t *testing.T) map[string]string { return filesBelow(t, m.path) }

// published returns the newest snapshot's files, every byte of which was checked (S2);
// with all, so are those of the others that are listed.
func (m *machine) published(t *testing.T, all bool) map[string]string {
	t.Helper()
	head, _, err := m.direct.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range head.History {
		if !all && id != head.Newest.ID {
			continue
		}
		if _, err := m.direct.Verify(t.Context(), id); err != nil {
			t.Fatalf("a listed snapshot is not whole (S2): %v", err)
		}
	}
	newest := map[string]string{}
	for key, data := range m.objects(t) {
		if name, ok := strings.CutPrefix(key, "history/"+string(head.Newest.ID)+"/"); ok && name != "manifest.json" {
			newest[name] = data
		}
	}
	return newest
}

// checkTidy fails unless the store holds the listed snapshots, current as the newest
// one, and nothing else; the journal waits for nothing; and scratch is empty.
func (m *machine) checkTidy(t *testing.T) {
	t.Helper()
	head, _, err := m.direct.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	objects := m.objects(t)
	want := map[string]bool{history.HeadKey: true}
	for _, id := range head.History {
		man, err := m.direct.Manifest(t.Context(), id, "")
		if err != nil {
			t.Fatal(err)
		}
		want[history.ManifestKey(id)] = true
		for _, r := range man.Entries {
			if r.Type != tree.File {
				continue
			}
			want[history.ObjectKey(id, r.Path)] = true
			if key := history.CurrentKey(r.Path); id == head.Newest.ID {
				want[key] = true
				if objects[key] != objects[history.ObjectKey(id, r.Path)] {
					t.Errorf("current: %s is not the newest snapshot's", key)
				}
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		if !want[key] {
			t.Errorf("litter: %s", key)
		}
		delete(want, key)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", slices.Sorted(maps.Keys(want)))
	}
	if len(head.History) > m.keep {
		t.Errorf("%d snapshots are listed, to keep are %d (H2)", len(head.History), m.keep)
	}
	if left, err := m.direct.Store().Uploads(t.Context(), ""); err != nil || len(left) > 0 {
		t.Errorf("unfinished uploads: %v, %v", left, err)
	}
	if s := m.j.State(); len(s.Pending) > 0 || s.Intent != nil || s.ID != string(head.Newest.ID) {
		t.Errorf("the journal: pending %v, intent %v, base %s; the newest is %s", s.Pending, s.Intent, s.ID, head.Newest.ID)
	}
	if d := m.j.Dirty(); !d.Empty() {
		t.Errorf("still dirty: %v", d.Marks)
	}
	m.checkScratch(t)
}

// differ names the first few paths in which two trees differ.
func differ(got, want map[string]string) (paths []string) {
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if data, ok := got[p]; !ok {
			paths = append(paths, p+" is missing")
		} else if data != want[p] {
			paths = append(paths, p+" differs")
		}
	}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[p]; !ok {
			paths = append(paths, p+" should not be there")
		}
	}
	return paths
}
