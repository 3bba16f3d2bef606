package history

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// Where a snapshot is damaged, the newest older one is offered that is right there and
// has all its objects, and what was not looked at is said.
func TestOfferOlder(t *testing.T) {
	w := newWorld(t)
	var all []*Manifest
	f := files{"a": content(1, 3*testPart), "b": "b"}
	for i := range 5 {
		f["b"] = fmt.Sprint("b", i)
		all = append(all, w.publish(f))
	}
	damage := func(m *Manifest, path string) {
		data := []byte(f[path])
		data[testPart+3] ^= 1
		w.put(ObjectKey(m.ID, path), string(data))
	}
	damage(all[4], "a")
	damage(all[3], "a")                    // in the same part
	w.delete(ObjectKey(all[2].ID, "b"))    // not whole
	w.put(ManifestKey(all[1].ID), "{what") // not even readable
	_, err := w.c.Verify(t.Context(), all[4].ID)
	var bad *IntegrityError
	if !errors.As(err, &bad) || bad.Path != "a" || bad.Part != 1 {
		t.Fatalf("verify: %v", err)
	}
	err = w.c.OfferOlder(t.Context(), fmt.Errorf("wrapped: %w", err))
	if bad.Offer != all[0].ID || exitcode.Of(err) != exitcode.Integrity {
		t.Fatalf("offered %q: %v", bad.Offer, err)
	}
	for _, say := range []string{"restore --at " + string(all[0].ID), "verify " + string(all[0].ID), "were not read"} {
		if !strings.Contains(exitcode.Hint(err), say) {
			t.Errorf("the hint does not say %q: %s", say, exitcode.Hint(err))
		}
	}

	damage(all[0], "a")
	_, err = w.c.Verify(t.Context(), all[4].ID)
	if err = w.c.OfferOlder(t.Context(), err); !errors.As(err, &bad) || bad.Offer != "" || !strings.Contains(bad.Hint(), "no older snapshot") {
		t.Errorf("offered %q: %s", bad.Offer, bad.Hint())
	}

	// A file that the older one has in another state, or not at all, is no obstacle.
	w = newWorld(t)
	first := w.publish(files{"b": "b"})
	last := w.publish(files{"a": content(2, 3*testPart), "b": "b"})
	w.put(ManifestKey(last.ID), "{what")
	_, err = w.c.Verify(t.Context(), last.ID)
	if err = w.c.OfferOlder(t.Context(), err); !errors.As(err, &bad) || bad.Offer != first.ID {
		t.Errorf("for a manifest: %v", err)
	}
	w.fail(func(op memstore.Op) error {
		if op.Kind == "list" {
			return objstore.ErrRefused
		}
		return nil
	})
	plain := &IntegrityError{ID: last.ID, Path: "a", Err: errMismatch}
	if err := w.c.OfferOlder(t.Context(), plain); err != error(plain) || plain.Asked || plain.Offer != "" {
		t.Errorf("a store that does not list: %v", err)
	}
	if err := w.c.OfferOlder(t.Context(), nil); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}

// R1: reads are pinned to the object that was stored. Where all objects have other
// ETags, as in a bucket that was copied, their bytes decide, and it is asked once.
func TestReadsArePinned(t *testing.T) {
	w := newWorld(t)
	m := w.publish(newTree())
	var mu sync.Mutex
	var gets int
	count := func() {
		w.fail(func(op memstore.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if op.Kind == "get" && !op.After && strings.HasPrefix(op.Key, SnapshotPrefix(m.ID)) && op.Key != ManifestKey(m.ID) {
				gets++
			}
			return nil
		})
	}
	count()
	o := w.options(openDir(t, t.TempDir()), m)
	o.Parallel = 1
	w.restore(o)
	pinned := gets
	for i := range m.Entries {
		if m.Entries[i].ETag != "" {
			m.Entries[i].ETag = "another"
		}
	}
	gets = 0
	o = w.options(openDir(t, t.TempDir()), m)
	o.Parallel = 1
	w.restore(o)
	sameTree(t, "DIR", readTree(t, o.Dir.Path()), withFolders(newTree()))
	if gets != pinned+1 {
		t.Errorf("%d requests, want one more than %d", gets, pinned)
	}

	// Pinned: the bytes of another object are not even fetched to be found wrong.
	w = newWorld(t)
	m = w.publish(files{"a": content(1, 3*testPart)})
	w.put(ObjectKey(m.ID, "a"), content(2, 3*testPart))
	var body int64
	w.fail(func(op memstore.Op) error { return nil })
	_, err := w.c.fetchPinned(t.Context(), ObjectKey(m.ID, "a"), m.Entries[0].ETag, &m.Entries[0], 0, func(p []byte, _ int64) error {
		body += int64(len(p))
		return nil
	})
	if !errors.Is(err, objstore.ErrPrecondition) || body != 0 {
		t.Errorf("%v after %d bytes", err, body)
	}
}
