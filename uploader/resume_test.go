package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/tree"
	"github.com/chromafs/chromafs/journal"
)

// metered counts the bytes of bodies whose arrival was answered.
type metered struct {
	*memstore.Store
	arrived atomic.Int64
}

func (m *metered) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o objstore.PutOptions) (objstore.Object, error) {
	made, err := m.Store.Put(ctx, key, body, size, o)
	if err == nil && strings.HasPrefix(key, "history/") && !strings.HasSuffix(key, "/manifest.json") {
		m.arrived.Add(size)
	}
	return made, err
}

func (m *metered) NewUpload(ctx context.Context, key string) (objstore.Upload, error) {
	up, err := m.Store.NewUpload(ctx, key)
	return &meteredUpload{up, m}, err
}

func (m *metered) ResumeUpload(ctx context.Context, u objstore.PendingUpload, parts []objstore.UploadPart) (objstore.Upload, error) {
	up, err := m.Store.ResumeUpload(ctx, u, parts)
	return &meteredUpload{up, m}, err
}

type meteredUpload struct {
	objstore.Upload
	m *metered
}

func (u *meteredUpload) Part(n int) (objstore.UploadPart, bool) { return objstore.PartOf(u.Upload, n) }

func (u *meteredUpload) PutPart(ctx context.Context, n int, body io.ReaderAt, off, size int64) error {
	err := u.Upload.PutPart(ctx, n, body, off, size)
	if err == nil {
		u.m.arrived.Add(size)
	}
	return err
}

// resumeWorld has a first backup before it: one file of two parts and some small ones.
func resumeWorld(t *testing.T) (w *world, m *metered) {
	w = newWorld(t)
	m = &metered{Store: w.store}
	w.over = m
	w.open().takeover()
	w.write("big", slabs("1", "2"))
	for i := range 3 {
		w.write(fmt.Sprintf("small%d", i), fmt.Appendf(nil, "small file %d", i))
	}
	return w, m
}

// slabs returns content whose parts are told by names; the last is a short one.
func slabs(names ...string) []byte {
	var b []byte
	for i, name := range names {
		part := bytes.Repeat([]byte(name+"-chromafs-part "), tree.MinPartSize/16+1)
		if i == len(names)-1 {
			part = part[:1000]
		}
		b = append(b, part[:min(len(part), tree.MinPartSize)]...)
	}
	return b
}

func (w *world) bytes() (n int64) {
	for _, f := range w.files {
		n += int64(len(f.data))
	}
	return n
}

// S4: whichever request of a first backup fails, before or after it took effect, what
// arrived is not sent again by the next attempt: neither in the same process nor in
// one that knows only the journal, nor when part of the content changed in between.
func TestWhatArrivedIsNotSentAgain(t *testing.T) {
	for _, mode := range []struct {
		name                 string
		after, dead, changed bool
	}{
		{"fails", false, false, false},
		{"answer lost, content changed", true, false, true},
		{"dies after", true, true, false},
		{"dies before, content changed", false, true, true},
	} {
		t.Run(mode.name, func(t *testing.T) {
			hits := 0
			for n := 0; resumeAt(t, n, mode.after, mode.dead, mode.changed); n++ {
				hits++
			}
			if hits < 8 {
				t.Errorf("only %d requests were reached", hits)
			}
		})
	}
}

func resumeAt(t *testing.T, n int, after, dead, changed bool) (hit bool) {
	w, m := resumeWorld(t)
	var reached atomic.Int64
	var down atomic.Bool
	where := ""
	w.store.Fail = func(op memstore.Op) error {
		if dead && down.Load() {
			return errInjected
		}
		if !strings.HasPrefix(op.Key, "history/") || op.Kind == "list" || op.After != after {
			return nil
		}
		if reached.Add(1)-1 == int64(n) {
			where = fmt.Sprintf("request %d, %s %s", n, op.Kind, op.Key)
			down.Store(true)
			return errInjected
		}
		return nil
	}
	_, err := w.u.Snapshot(t.Context())
	w.store.Fail = nil
	if !down.Load() {
		if err != nil {
			t.Fatal(err)
		}
		w.close()
		return false
	}
	if !errors.Is(err, errInjected) {
		t.Fatalf("%s: %v", where, err)
	}
	if dead {
		w.close()
		w.open().takeover()
	}
	want := w.bytes() - m.arrived.Load()
	if changed {
		w.write("big", slabs("1", "changed"))
		w.write("small1", []byte("changed"))
		want = min(want+1000+int64(len("small file 1")), w.bytes())
	}
	r := w.snapshot()
	if r.BytesUploaded > want || !changed && r.BytesUploaded != want {
		t.Errorf("%s: %d of %d bytes had arrived, %d were sent, not %d", where, w.bytes()-want, w.bytes(), r.BytesUploaded, want)
	}
	if got := w.published(); !maps.Equal(got, contents(w.files)) {
		t.Errorf("%s: the snapshot is not what is there", where)
	}
	w.checkTidy()
	w.close()
	if t.Failed() {
		t.FailNow()
	}
	return true
}

// A file that was renamed, and one whose content is elsewhere now, are found by what
// they hold.
func TestWhatArrivedIsFoundByItsContent(t *testing.T) {
	w, m := resumeWorld(t)
	w.failOn("put", "manifest.json")
	data := w.files["big"].data
	w.remove("big")
	w.write("renamed", data)
	w.write("small1", []byte("small file 2"))
	w.remove("small2")
	if r := w.snapshot(); r.BytesUploaded != 0 || m.arrived.Load() != 3*int64(len("small file 2"))+int64(len(data)) {
		t.Errorf("%d bytes sent, %d arrived in all", r.BytesUploaded, m.arrived.Load())
	}
	w.checkTidy()
	if got := w.published(); !maps.Equal(got, contents(w.files)) {
		t.Error("the snapshot is not what is there")
	}
}

// failOn takes a snapshot whose requests of that kind, to keys that end so, fail.
func (w *world) failOn(kind, suffix string) {
	w.t.Helper()
	w.store.Fail = func(op memstore.Op) error {
		if op.Kind == kind && strings.HasPrefix(op.Key, "history/") && strings.HasSuffix(op.Key, suffix) && !op.After {
			return errInjected
		}
		return nil
	}
	if _, err := w.u.Snapshot(w.t.Context()); !errors.Is(err, errInjected) {
		w.t.Fatal(err)
	}
	w.store.Fail = nil
}

// Where an upload is gone, its parts are others, or the store cannot copy, the bytes
// are sent again.
func TestNothingToGoOnWith(t *testing.T) {
	for name, spoil := range map[string]func(w *world){
		"the upload was aborted": func(w *world) {
			uploads, err := w.store.Uploads(w.t.Context(), "")
			if err != nil || len(uploads) != 1 {
				w.t.Fatal(uploads, err)
			}
			if err := w.store.AbortUpload(w.t.Context(), uploads[0]); err != nil {
				w.t.Fatal(err)
			}
		},
		"a part is another": func(w *world) {
			id := w.j.State().Pending[0]
			stored, err := w.j.Stored(id)
			if err != nil {
				w.t.Fatal(err)
			}
			for _, s := range stored {
				if s.Part == 1 {
					s.ETag = strings.Repeat("0", 32)
					if err := w.j.AddStored(id, s); err != nil {
						w.t.Fatal(err)
					}
				}
			}
		},
		"no copies": func(w *world) {
			w.store.Fail = func(op memstore.Op) error {
				if op.Kind == "copy" && strings.HasPrefix(op.Key, "history/") || op.Kind == "copy-part" {
					return objstore.ErrUnsupported
				}
				return nil
			}
		},
		"the objects are gone": func(w *world) {
			for o, err := range w.store.List(w.t.Context(), "history/") {
				if err != nil {
					w.t.Fatal(err)
				}
				if err := w.store.Delete(w.t.Context(), []string{o.Key}); err != nil {
					w.t.Fatal(err)
				}
			}
		},
	} {
		for _, at := range []string{"complete", "put"} {
			t.Run(name+", "+at, func(t *testing.T) {
				w, _ := resumeWorld(t)
				if at == "complete" {
					w.failOn("complete", "big")
				} else if w.failOn("put", "manifest.json"); strings.Contains(name, "upload") {
					return
				}
				spoil(w)
				w.snapshot()
				w.store.Fail = nil
				if got := w.published(); !maps.Equal(got, contents(w.files)) {
					t.Error("the snapshot is not what is there")
				}
				w.checkTidy()
			})
		}
	}
}

// While attempts keep failing, few of them are left in the store, and what arrived
// still counts.
func TestFailedAttemptsAreBounded(t *testing.T) {
	w, m := resumeWorld(t)
	for i := range 8 {
		w.write(fmt.Sprintf("more%d", i), fmt.Appendf(nil, "more %d", i))
		w.failOn("put", "manifest.json")
		if n := len(w.j.State().Pending); n > 4 {
			t.Fatalf("after %d failed attempts %d are left", i+1, n)
		}
	}
	if arrived := m.arrived.Load(); arrived != w.bytes() {
		t.Errorf("%d bytes arrived, of %d", arrived, w.bytes())
	}
	if r := w.snapshot(); r.BytesUploaded != 0 {
		t.Errorf("%d bytes sent", r.BytesUploaded)
	}
	w.checkTidy()
}

// Nor where each of them has something that no other one has.
func TestFailedAttemptsOfUseAreBounded(t *testing.T) {
	w, _ := resumeWorld(t)
	w.failOn("put", "manifest.json")
	for i := range 6 {
		name := fmt.Sprintf("0new%d", 9-i) // it comes first, so that it is sent while the copies wait
		w.write(name, fmt.Appendf(nil, "new %d", i))
		sent := make(chan struct{})
		w.store.Fail = func(op memstore.Op) error {
			switch {
			case op.Kind == "put" && strings.HasSuffix(op.Key, name) && op.After:
				close(sent)
			case op.Kind == "copy" && strings.HasPrefix(op.Key, "history/") && !op.After:
				select {
				case <-sent:
				case <-time.After(20 * time.Second):
					t.Error("the new file is not sent")
				}
				return errInjected
			}
			return nil
		}
		if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, errInjected) {
			t.Fatal(err)
		}
		w.store.Fail = nil
		if n := len(w.j.State().Pending); n > 4 {
			t.Fatalf("after %d failed attempts %d are left", i+2, n)
		}
	}
	if r := w.snapshot(); r.BytesUploaded > 6*int64(len("new 0")) { // the most useful one was kept
		t.Errorf("%d bytes sent", r.BytesUploaded)
	}
	if got := w.published(); !maps.Equal(got, contents(w.files)) {
		t.Error("the snapshot is not what is there")
	}
	w.checkTidy()
}

// A part that was being replaced when the attempt died is not believed, and costs
// itself alone.
func TestPartThatWasBeingReplaced(t *testing.T) {
	for _, after := range []bool{false, true} {
		w, _ := resumeWorld(t)
		w.failOn("complete", "big")
		w.write("big", slabs("1", "changed"))
		w.store.Fail = func(op memstore.Op) error {
			if op.Kind == "put-part" && op.After == after {
				return errInjected
			}
			return nil
		}
		if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, errInjected) {
			t.Fatal(err)
		}
		w.store.Fail = nil
		w.close()
		w.open().takeover()
		w.write("big", slabs("1", "2")) // as the first attempt had it
		if r := w.snapshot(); r.BytesUploaded != 1000 {
			t.Errorf("after=%v: %d bytes sent", after, r.BytesUploaded)
		}
		if got := w.published(); !maps.Equal(got, contents(w.files)) {
			t.Error("the snapshot is not what is there")
		}
		w.checkTidy()
		w.close()
	}
}

// S2: what a view delivered is noted as what it was, not as what it should have been.
func TestViewThatMoves(t *testing.T) {
	w, _ := resumeWorld(t)
	right := w.files
	moved := maps.Clone(right)
	for path, f := range moved {
		f.data = bytes.ReplaceAll(f.data, []byte("a"), []byte("A"))
		moved[path] = f
	}
	changed := errors.New("it was written to")
	w.verify = func() error { return changed }
	cut := w.takeCut
	u, err := New(Options{Cut: func(ctx context.Context) (View, error) {
		v, err := cut(ctx)
		if w.verify == nil {
			return v, err
		}
		return &movingView{memView: v.(*memView), moved: moved}, err
	}, Queue: w.j, Catalog: w.catalog(), Keep: 24, Parallel: 1, Now: w.now, Rand: w.u.o.Rand, Log: w.logger()})
	if err != nil {
		t.Fatal(err)
	}
	w.u = u
	w.takeover()
	if _, err := u.Snapshot(t.Context()); !errors.Is(err, changed) {
		t.Fatal(err)
	}
	w.verify = nil
	if r := w.snapshot(); r.BytesUploaded != w.bytes() {
		t.Errorf("%d bytes sent, of %d", r.BytesUploaded, w.bytes())
	}
	if got := w.published(); !maps.Equal(got, contents(right)) {
		t.Error("the snapshot is not what is there")
	}
	w.checkTidy()
}

// movingView delivers other content than what lies there.
type movingView struct {
	*memView
	moved map[string]file
}

func (v *movingView) Open(path string) (tree.Reader, error) {
	return (&memView{files: v.moved}).Open(path)
}

// A journal that cannot note anything costs nothing but sending again.
func TestNotesThatCannotBeMade(t *testing.T) {
	w, m := resumeWorld(t)
	w.queue = func(q Queue) Queue { return mute{q} }
	w.u = w.uploader(w.j)
	w.failOn("put", "manifest.json")
	if r := w.snapshot(); r.BytesUploaded != w.bytes() || m.arrived.Load() != 2*w.bytes() {
		t.Errorf("%d bytes sent, %d arrived", r.BytesUploaded, m.arrived.Load())
	}
	if n := w.log.count("cannot be noted"); n != 2 {
		t.Errorf("said %d times", n)
	}
	w.checkTidy()
}

type mute struct{ Queue }

func (mute) AddStored(string, ...journal.Stored) error { return errInjected }
