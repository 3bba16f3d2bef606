package history

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// refuse makes all operations of these kinds fail.
func (w *world) refuse(kind error, ops ...string) {
	w.fail(func(op memstore.Op) error {
		if slices.Contains(ops, op.Kind) {
			return kind
		}
		return nil
	})
}

// What is off the list goes, whether or not the store lets anyone see to unfinished
// uploads; a store that is not available is another matter.
func TestRemoveWithoutUploads(t *testing.T) {
	for _, ops := range [][]string{{"uploads"}, {"abort-upload"}} {
		for _, kind := range []error{objstore.ErrRefused, objstore.ErrUnsupported, objstore.ErrUnavailable} {
			w := newWorld(t)
			old := w.publish(files{"a": "1"})
			w.publish(files{"a": "2"})
			if _, err := w.store.NewUpload(t.Context(), ObjectKey(old.ID, "big")); err != nil {
				t.Fatal(err)
			}
			next := w.head
			next.History, next.Nonce = next.History[1:], nonce(t)
			if _, err := w.c.SwapHead(t.Context(), next, w.etag); err != nil {
				t.Fatal(err)
			}
			w.refuse(kind, ops...)
			err := w.c.Remove(t.Context(), old.ID)
			gone := len(w.objects(SnapshotPrefix(old.ID))) == 0
			if refused := kind != objstore.ErrUnavailable; refused != gone || refused != (err == nil) {
				t.Errorf("%v of %q: %v, objects gone: %t", kind, ops, err, gone)
			}
			report, err := w.c.Prune(t.Context(), w.now.Add(100*time.Hour), DefaultPruneAge)
			if refused := kind != objstore.ErrUnavailable; refused != (err == nil) || refused && !errors.Is(report.Blind, kind) {
				t.Errorf("%v of %q: prune: %+v, %v", kind, ops, report, err)
			}
		}
	}
}

// What killed probes left goes once it is old.
func TestPruneProbes(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	w.store.Now = func() time.Time { return testTime }
	w.put(objstore.ProbePrefix+"old/source", "x")
	w.store.Now = func() time.Time { return testTime.Add(DefaultPruneAge) }
	w.put(objstore.ProbePrefix+"young/source", "x")
	report, err := w.c.Prune(t.Context(), testTime.Add(DefaultPruneAge+time.Minute), DefaultPruneAge)
	if err != nil || report.Probes != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	if got := slices.Collect(maps.Keys(w.objects(objstore.ProbePrefix))); len(got) != 1 || got[0] != objstore.ProbePrefix+"young/source" {
		t.Errorf("left %q", got)
	}
}

// Without copies current is read back and sent, big files by parts, and a failure
// leaves no upload behind.
func TestCurrentWithoutCopies(t *testing.T) {
	big := strings.Repeat("chromafs", tree.MinPartSize/8) + "tail"
	for _, kind := range []error{objstore.ErrUnsupported, objstore.ErrRefused} {
		w := newWorld(t)
		w.refuse(kind, "copy", "copy-part")
		w.publish(files{"small": "1", "empty": "", "big": big})
		w.publish(files{"small": "2", "empty": "", "big": big})
		for key, want := range map[string]string{"small": "2", "empty": "", "big": big} {
			body, _, err := w.store.Get(t.Context(), key, objstore.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			if err != nil || !bytes.Equal(got, []byte(want)) {
				t.Errorf("%v: %s holds %d bytes, not what the snapshot does: %v", kind, key, len(got), err)
			}
		}
		m, _ := w.upload(files{"big": "x" + big})
		w.refuse(kind, "copy", "complete")
		if err := w.c.RefreshCurrent(t.Context(), w.head, w.last, m); err == nil {
			t.Error("a refresh that failed was taken for done")
		}
		if uploads, err := w.store.Uploads(t.Context(), ""); err != nil || len(uploads) > 0 {
			t.Errorf("unfinished uploads: %v, %v", uploads, err)
		}
		w.refuse(objstore.ErrUnavailable, "copy")
		if err := w.c.RefreshCurrent(t.Context(), w.head, w.last, m); !errors.Is(err, objstore.ErrUnavailable) {
			t.Errorf("a store that is unavailable: %v", err)
		}
	}
}
