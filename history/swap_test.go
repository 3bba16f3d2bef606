package history

import (
	"context"
	"errors"
	"testing"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// The tests of SwapHead hold S3 and W1: every way that a swap can be answered.

// lostAnswer lets every put have its effect and then fail.
func lostAnswer(kind error) func(memstore.Op) error {
	return func(op memstore.Op) error {
		if op.Kind == "put" && op.After {
			return kind
		}
		return nil
	}
}

func TestSwapHeadAnswerLost(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	m, sha := w.upload(files{"a": "2"})
	h := w.headFor(m, sha)
	w.fail(lostAnswer(objstore.ErrUnavailable))
	etag, err := w.c.SwapHead(t.Context(), h, w.etag)
	if err != nil {
		t.Fatal(err)
	}
	w.fail(nil)
	if _, now, err := w.c.Head(t.Context()); err != nil || now != etag {
		t.Fatalf("ETag %q, head has %q: %v", etag, now, err)
	}
	if again, err := w.c.SwapHead(t.Context(), h, w.etag); err != nil || again != etag { // the retry inside a client
		t.Fatalf("412 of our own write: %q, %v", again, err)
	}
}

func TestSwapHeadFirstAnswerLost(t *testing.T) {
	w := newWorld(t)
	w.fail(lostAnswer(objstore.ErrUnavailable))
	etag, err := w.c.SwapHead(t.Context(), w.head, "")
	if _, now, herr := w.c.readHead(t.Context()); err != nil || herr != nil || etag != now {
		t.Fatalf("%q, %v, %v", etag, err, herr)
	}
}

func TestSwapHeadClearsAnswerLost(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	w.publish(files{"a": "2"})
	w.fail(lostAnswer(objstore.ErrPrecondition))
	if n, err := w.c.Clear(t.Context()); err != nil || n != 1 {
		t.Fatalf("Clear: %d, %v", n, err)
	}
}

func TestSwapHeadNotWritten(t *testing.T) {
	w := newWorld(t)
	for _, etag := range []string{"", "?"} {
		if etag != "" {
			w.publish(files{"a": "1"})
			etag = w.etag
		}
		m, sha := w.upload(files{"a": "2"})
		w.fail(func(op memstore.Op) error {
			if op.Kind == "put" {
				return objstore.ErrUnavailable
			}
			return nil
		})
		if _, err := w.c.SwapHead(t.Context(), w.headFor(m, sha), etag); !errors.Is(err, objstore.ErrUnavailable) {
			t.Fatalf("ETag %q: %v", etag, err)
		}
		w.fail(nil)
		if _, err := w.c.SwapHead(t.Context(), w.headFor(m, sha), etag); err != nil {
			t.Fatalf("ETag %q, again: %v", etag, err)
		}
		w.delete(HeadKey)
	}
}

func TestSwapHeadClearedMeanwhile(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	w.publish(files{"a": "2"})
	m, sha := w.upload(files{"a": "3"})
	h := w.headFor(m, sha)
	if n, err := w.c.Clear(t.Context()); err != nil || n != 1 {
		t.Fatalf("Clear: %d, %v", n, err)
	}
	_, err := w.c.SwapHead(t.Context(), h, w.etag)
	var stale *StaleError
	if !errors.As(err, &stale) || len(stale.Head.History) != 1 || !errors.Is(err, ErrStale) {
		t.Fatalf("swap after clear: %v", err)
	}
	h.History = append(stale.Head.History, m.ID)
	if _, err := w.c.SwapHead(t.Context(), h, stale.ETag); err != nil {
		t.Fatalf("merged: %v", err)
	}
}

func TestSwapHeadPublishedThenCleared(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	before := w.etag
	w.publish(files{"a": "2"})
	published := w.head
	if _, err := w.c.Clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	etag, err := w.c.SwapHead(t.Context(), published, before) // its answer was lost
	if _, now, herr := w.c.Head(t.Context()); err != nil || herr != nil || etag != now {
		t.Fatalf("own id in the list: %q, %v", etag, err)
	}
}

func TestSwapHeadFenced(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	m, sha := w.upload(files{"a": "2"})
	w.takeover("other")
	_, err := w.c.SwapHead(t.Context(), w.headFor(m, sha), w.etag)
	var fenced *FencedError
	if !errors.As(err, &fenced) || fenced.Head.Writer != "other" || exitcode.Of(err) != exitcode.Conflict {
		t.Fatalf("publish after a takeover: %v", err)
	}
	mine := w.head // a takeover of the same newest snapshot, which is not proof of anything
	mine.Epoch, mine.Writer, mine.Nonce = 2, "third", nonce(t)
	if _, err := w.c.SwapHead(t.Context(), mine, w.etag); !errors.Is(err, ErrFenced) {
		t.Fatalf("takeover after a takeover: %v", err)
	}
}

func TestSwapHeadPublishedThenTakenOver(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	before := w.etag
	w.publish(files{"a": "2"})
	w.takeover("other")
	etag, err := w.c.SwapHead(t.Context(), w.head, before) // its answer was lost
	if err != nil || etag != Superseded {
		t.Fatalf("own id in another's list: %q, %v", etag, err)
	}
	m, sha := w.upload(files{"a": "3"})
	if _, err := w.c.SwapHead(t.Context(), w.headFor(m, sha), etag); !errors.Is(err, ErrFenced) {
		t.Fatalf("the next one: %v", err)
	}
}

func TestSwapHeadHeadDeleted(t *testing.T) {
	w := newWorld(t)
	w.publish(files{"a": "1"})
	m, sha := w.upload(files{"a": "2"})
	w.delete(HeadKey)
	if _, err := w.c.SwapHead(t.Context(), w.headFor(m, sha), w.etag); !errors.Is(err, ErrHeadLost) {
		t.Fatalf("head deleted: %v", err)
	}
}

// takeover replaces the head as another writer does.
func (w *world) takeover(writer string) {
	w.t.Helper()
	h, etag, err := w.c.Head(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	h.Epoch, h.Writer, h.Nonce = h.Epoch+1, writer, nonce(w.t)
	if _, err := w.c.SwapHead(w.t.Context(), h, etag); err != nil {
		w.t.Fatal(err)
	}
}

// TestRaceOfWriters: W1, of many swaps on one ETag exactly one publishes.
func TestRaceOfWriters(t *testing.T) {
	for range 20 {
		w := newWorld(t)
		w.publish(files{"a": "1"})
		const writers = 8
		errs := make(chan error, writers)
		for range writers {
			h := w.head
			h.Epoch++
			h.Writer, h.Nonce = nonce(t), nonce(t)
			go func() {
				_, err := w.c.SwapHead(context.Background(), h, w.etag)
				errs <- err
			}()
		}
		won := 0
		for range writers {
			if err := <-errs; err == nil {
				won++
			} else if !errors.Is(err, ErrFenced) {
				t.Error(err)
			}
		}
		if won != 1 {
			t.Fatalf("%d writers won", won)
		}
	}
}
