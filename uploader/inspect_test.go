package uploader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// torn finds files whose content begins with "torn" damaged, if they changed.
func torn(_ context.Context, v View, changed func(string) bool) (damage []string, err error) {
	for _, e := range v.Entries() {
		f, err := v.Open(e.Path)
		if err != nil {
			continue // a folder
		}
		head := make([]byte, 4)
		if n, _ := f.ReadAt(head, 0); string(head[:n]) == "torn" && changed(e.Path) {
			damage = append(damage, e.Path+": torn")
		}
	}
	return damage, nil
}

// damagedWorld has one good snapshot, and db torn since.
func damagedWorld(t *testing.T) (w *world, good history.ID) {
	t.Helper()
	w = newWorld(t)
	w.check, w.keep = torn, 1
	w.open().takeover()
	w.write("db", []byte("good"))
	good = w.snapshot().ID
	w.write("db", []byte("torn"))
	return w, good
}

// S5, F4: the snapshot fails after two cuts and says why; history keeps what it
// has although one snapshot is all that is kept; what is dirty stays so, and the
// next one, of a repaired database, is published.
func TestADamagedViewIsNotPublished(t *testing.T) {
	w, good := damagedWorld(t)
	for range 3 {
		cuts := w.cuts
		_, err := w.u.Snapshot(t.Context())
		var damaged *DamagedError
		if !errors.As(err, &damaged) || !errors.Is(err, ErrDamaged) || exitcode.Of(err) != exitcode.Integrity {
			t.Fatalf("got %v, code %d", err, exitcode.Of(err))
		}
		if hint := exitcode.Hint(err); damaged.LastGood != good || !strings.Contains(hint, "restore --at "+string(good)) ||
			!strings.Contains(hint, "--verify none") || !strings.Contains(hint, "delete its collection") || !strings.Contains(err.Error(), "db: torn") {
			t.Errorf("error %q, hint %q", err, hint)
		}
		if w.cuts != cuts+2 {
			t.Errorf("%d cuts, want 2", w.cuts-cuts)
		}
		if h := w.head(); !slices.Equal(h.History, []history.ID{good}) || h.Newest.ID != good {
			t.Errorf("history is %v", h.History)
		}
	}
	s := w.u.Status()
	if s.DirtyPaths != 1 || s.Failures != 3 || !strings.Contains(s.LastError, "db: torn; next: ") {
		t.Errorf("status %+v", s)
	}
	if got := w.published(); got["db"] != "good" {
		t.Errorf("published %v", got)
	}
	w.write("db", []byte("repaired"))
	w.snapshot()
	if got := w.published(); got["db"] != "repaired" {
		t.Errorf("published %v", got)
	}
	w.checkTidy()
}

// What is whole at the second cut is published, by the same call.
func TestAViewThatIsWholeAtTheSecondCutIsPublished(t *testing.T) {
	w, _ := damagedWorld(t)
	cuts := w.cuts
	w.onCut = func() {
		w.onCut = nil
		w.write("db", []byte("whole again"))
	}
	w.snapshot()
	if got := w.published(); got["db"] != "whole again" || w.cuts != cuts+2 {
		t.Errorf("published %v after %d cuts", got, w.cuts-cuts)
	}
	w.checkTidy()
}

// A database that stays damaged costs traffic once at most: from then on it is
// checked before anything is sent.
func TestWhatStaysDamagedIsNotSent(t *testing.T) {
	w, _ := damagedWorld(t)
	sent := make(chan string, 100)
	w.store.Fail = func(op memstore.Op) error {
		if op.Kind == "put" && strings.HasPrefix(op.Key, "history/") && op.After {
			sent <- op.Key
		}
		return nil
	}
	checks, early := 0, 0
	w.u.o.Check = func(ctx context.Context, v View, changed func(string) bool) ([]string, error) {
		checks++
		wait := 100 * time.Millisecond
		if checks == 1 {
			wait = 10 * time.Second
		}
		select { // what is sent meanwhile
		case <-sent:
			early++
		case <-time.After(wait):
		}
		return torn(ctx, v, changed)
	}
	for range 2 {
		if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	}
	w.store.Fail = nil
	if checks != 4 || early != 1 {
		t.Errorf("in %d checks, something was sent during %d; want 4 and 1", checks, early)
	}
}

// Only what differs from the previous snapshot's has to be looked at.
func TestTheCheckIsToldWhatChanged(t *testing.T) {
	w := newWorld(t)
	var got []string
	w.check = func(_ context.Context, _ View, changed func(string) bool) ([]string, error) {
		got = nil
		for _, path := range []string{"same", "touched", "changed", "new", "gone", "mode", "never"} {
			if changed(path) {
				got = append(got, path)
			}
		}
		return nil, nil
	}
	w.open().takeover()
	for _, path := range []string{"same", "touched", "changed", "gone", "mode"} {
		w.write(path, []byte("1"))
	}
	w.snapshot()
	if want := []string{"same", "touched", "changed", "gone", "mode"}; !slices.Equal(got, want) {
		t.Errorf("the first time: %v, want %v", got, want)
	}
	w.write("touched", []byte("1"))
	w.write("changed", []byte("2"))
	w.write("new", []byte("1"))
	w.remove("gone")
	w.chmod("mode", 0o600)
	w.snapshot()
	if want := []string{"changed", "new", "gone"}; !slices.Equal(got, want) {
		t.Errorf("then: %v, want %v", got, want)
	}
}

// A check that could not be made fails the snapshot, without a second cut: nothing
// is known of the view.
func TestACheckThatFailsIsNoDamage(t *testing.T) {
	w := newWorld(t)
	broken := fmt.Errorf("the view was given up")
	w.check = func(context.Context, View, func(string) bool) ([]string, error) { return nil, broken }
	w.open().takeover()
	w.write("db", []byte("good"))
	if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, broken) || errors.Is(err, ErrDamaged) || w.cuts != 1 {
		t.Errorf("%v after %d cuts", err, w.cuts)
	}
}

// A cancelled snapshot ends the check, and a store that fails does.
func TestACheckEndsWithTheSnapshot(t *testing.T) {
	for name, end := range map[string]func(w *world, cancel func()){
		"cancelled":       func(_ *world, cancel func()) { cancel() },
		"the store fails": func(*world, func()) {},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w.check = func(ctx context.Context, _ View, _ func(string) bool) ([]string, error) {
				end(w, cancel)
				<-ctx.Done()
				return nil, context.Cause(ctx)
			}
			w.open().takeover()
			w.write("db", []byte("good"))
			w.store.Fail = func(op memstore.Op) error {
				if strings.HasPrefix(op.Key, "history/") && name != "cancelled" {
					return errInjected
				}
				return nil
			}
			if _, err := w.u.Snapshot(ctx); err == nil || errors.Is(err, ErrDamaged) {
				t.Errorf("got %v", err)
			}
		})
	}
}
