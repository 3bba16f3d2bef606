package uploader

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/adapt"
	"github.com/chromafs/chromafs/internal/objstore/open"
	"github.com/chromafs/chromafs/internal/objstore/probe"
	"github.com/chromafs/chromafs/internal/testutil/fakes3"
	"github.com/chromafs/chromafs/internal/tree"
)

// on puts w over a server. Where the store was probed it is known what it lacks.
func (w *world) on(server *fakes3.Server, probed bool) *world {
	w.t.Helper()
	server.Setenv(w.t)
	bare := func() objstore.Store { // one that is probed learns by itself
		s, err := open.Bare("s3://"+fakes3.Bucket+"/chromadb", open.Options{Endpoint: server.URL, Region: "us-east-1", Log: w.logger()})
		if err != nil {
			w.t.Fatal(err)
		}
		return s
	}
	adapted := adapt.New(bare())
	if probed {
		report, err := probe.Run(w.t.Context(), bare(), probe.Options{Rand: rand.Reader})
		if err != nil {
			w.t.Fatal(err)
		}
		adapted.Know(report.Lacks)
		server.Requests()
	}
	w.over = adapted
	return w
}

// restored restores a snapshot to an empty folder and returns what came.
func (w *world) restored(id history.ID) map[string]string {
	w.t.Helper()
	path := w.t.TempDir()
	dir, err := datadir.Open(path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer dir.Close()
	if err := dir.Lock("test"); err != nil {
		w.t.Fatal(err)
	}
	m, err := w.catalog().Manifest(w.t.Context(), id, "")
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := history.Restore(w.t.Context(), w.catalog(), history.RestoreOptions{Dir: dir, Manifest: m, Now: time.Now, Log: w.logger()}); err != nil {
		w.t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range m.Entries {
		if r.Type == tree.File {
			data, err := os.ReadFile(filepath.Join(path, r.Path))
			if err != nil {
				w.t.Fatal(err)
			}
			got[r.Path] = string(data)
		}
	}
	return got
}

var (
	unable  = fakes3.Refusal{Status: http.StatusNotImplemented, Code: "NotImplemented"}
	denied  = fakes3.Refusal{Status: http.StatusForbidden, Code: "AccessDenied"}
	noParts = map[string]fakes3.Refusal{
		"501":      unable,
		"411":      {Status: http.StatusLengthRequired, Code: "MissingContentLength"},
		"405 page": {Status: http.StatusMethodNotAllowed},
		"403":      denied,
	}
)

// lacking is a store that lacks something, and what must follow.
type lacking struct {
	options fakes3.Options
	probed  bool
	never   []string // requests that must not be tried once it was probed
	sent    int64    // bytes of the second snapshot
	small   bool     // the files are: it has nothing to do with parts
}

func stores() map[string]lacking {
	delta, whole := int64(len("22")), int64(tree.MinPartSize+len("22"))
	all := map[string]lacking{
		"nothing":             {fakes3.Options{EqualParts: true}, true, nil, delta, false},
		"no copies":           {fakes3.Options{Copy: unable, PartCopy: unable}, true, []string{"copy", "copy-part"}, whole + 1, false},
		"no copies, unprobed": {fakes3.Options{Copy: unable, PartCopy: unable}, false, nil, whole + 1, false},
		"copies denied":       {fakes3.Options{Copy: denied, PartCopy: denied}, false, nil, whole + 1, false},
		"no bulk delete":      {fakes3.Options{BulkDelete: unable}, true, []string{"bulk-delete"}, delta, true},
		"no list of uploads":  {fakes3.Options{ListUploads: denied}, true, []string{"uploads"}, delta, true},
		"conditions refused":  {fakes3.Options{Conditions: fakes3.Refused}, true, nil, delta, true},
		"conditions ignored":  {fakes3.Options{Conditions: fakes3.Ignored}, true, nil, delta, true},
		"quoted ETags":        {fakes3.Options{Conditions: fakes3.Unquoted}, true, nil, delta, true},
	}
	for name, refusal := range noParts {
		all["no part copy, "+name] = lacking{fakes3.Options{PartCopy: refusal}, true, []string{"copy-part"}, whole, false}
	}
	all["no part copy, unprobed"] = lacking{fakes3.Options{PartCopy: unable}, false, nil, whole, false}
	return all
}

// Whatever a store lacks: snapshots are published, whole, and rotated; current follows;
// a restore brings the bytes back; and what is lacking is not tried again.
func TestStoresThatLackSomething(t *testing.T) {
	for name, tc := range stores() {
		t.Run(name, func(t *testing.T) {
			server := fakes3.New(t, tc.options)
			w := newWorld(t).on(server, tc.probed)
			w.keep = 2
			w.open().takeover()
			data := big
			if tc.small {
				data = func(tail string) []byte { return []byte(tail) }
			}
			w.write("big", data("1"))
			w.write("same", []byte("s"))
			first := w.snapshot()
			w.write("big", data("22"))
			second := w.snapshot()
			if second.BytesUploaded != tc.sent {
				t.Errorf("%d bytes were sent, want %d", second.BytesUploaded, tc.sent)
			}
			w.write("small", []byte("small"))
			if r := w.snapshot(); r.Removed != 1 {
				t.Errorf("rotation removed %d snapshots", r.Removed)
			}
			w.checkTidy()
			if _, err := w.catalog().Manifest(t.Context(), first.ID, ""); !errors.Is(err, history.ErrGone) {
				t.Errorf("the rotated snapshot: %v", err)
			}
			if got := w.restored(w.head().Newest.ID); !maps.Equal(got, contents(w.files)) {
				t.Errorf("restored is something else")
			}
			ops := fakes3.Ops(server.Requests())
			for _, op := range tc.never {
				if ops[op] > 0 {
					t.Errorf("%d times %s, which the store is known to lack", ops[op], op)
				}
			}
			if server.Uploads() > 0 {
				t.Error("an unfinished upload is left")
			}
			for _, key := range server.Keys() {
				if strings.Contains(key, string(first.ID)) {
					t.Errorf("litter: %s", key)
				}
			}
		})
	}
}

// Without conditions the fence is what reading back shows: a writer that another one
// came after publishes nothing.
func TestFenceByLooking(t *testing.T) {
	for _, conditions := range []fakes3.Conditions{fakes3.Refused, fakes3.Ignored, fakes3.Unquoted} {
		server := fakes3.New(t, fakes3.Options{Conditions: conditions})
		old := newWorld(t).on(server, true).open().takeover()
		old.write("a", []byte("1"))
		old.snapshot()
		late := newWorld(t).on(server, true).open()
		head := late.head()
		old.verify = func() error { // while the old one's objects are in the store already
			old.verify = nil
			return late.tryTakeover()
		}
		old.write("a", []byte("2"))
		if _, err := old.u.Snapshot(t.Context()); !errors.Is(err, ErrFenced) {
			t.Errorf("conditions %d: a writer that was left behind while it was sending: %v", conditions, err)
		}
		before := server.Keys()
		if _, err := old.u.Snapshot(t.Context()); !errors.Is(err, ErrFenced) {
			t.Errorf("conditions %d: a writer that was left behind: %v", conditions, err)
		}
		if after := server.Keys(); len(after) != len(before) {
			t.Errorf("conditions %d: it stored something: %q", conditions, after)
		}
		if h := late.head(); h.Epoch != head.Epoch+1 {
			t.Errorf("conditions %d: epoch %d", conditions, h.Epoch)
		}
	}
}

// What a mount relies on is made sure of before its first write, and only then.
func TestReadyComesBeforeTheFirstWrite(t *testing.T) {
	w := newWorld(t).open()
	unfit := errors.New("unfit")
	asked := 0
	w.u.o.Ready = func(ctx context.Context) error {
		asked++
		return unfit
	}
	w.write("a", []byte("1"))
	if err := w.tryTakeover(); !errors.Is(err, unfit) {
		t.Errorf("takeover: %v", err)
	}
	if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, unfit) {
		t.Errorf("snapshot: %v", err)
	}
	for o := range w.store.List(t.Context(), "") {
		t.Errorf("stored: %s", o.Key)
	}
	w.u.o.Ready = func(ctx context.Context) error {
		asked++
		return nil
	}
	w.snapshot()
	w.write("a", []byte("2"))
	w.snapshot()
	w.snapshot()
	if asked != 3 {
		t.Errorf("asked %d times, want 3: once per takeover", asked)
	}
}
