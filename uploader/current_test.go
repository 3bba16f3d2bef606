package uploader

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/journal"
)

// stopped is a journal in front of whose acknowledgement (step 7) the process is
// stopped for a while.
type stopped struct {
	Queue
	meanwhile func()
}

func (s *stopped) Acknowledge(p journal.Published) error {
	if s.meanwhile != nil {
		s.meanwhile()
	}
	return s.Queue.Acknowledge(p)
}

// A writer that was stopped between steps 6 and 8, and wakes up after another one has
// taken over and published, never touches current. It says what it is then.
func TestAWokenWriterLeavesCurrentAlone(t *testing.T) {
	w := newWorld(t)
	s := &stopped{}
	w.queue = func(q Queue) Queue { s.Queue = q; return s }
	w.open().takeover()
	w.write("a", []byte("1"))
	w.write("goes", []byte("x"))
	w.snapshot()
	o := w.other()
	s.meanwhile = func() {
		o.takeover()
		o.write("a", []byte("the other's"))
		o.write("goes", []byte("stays"))
		if _, err := o.u.Snapshot(t.Context()); err != nil {
			t.Error(err)
		}
	}
	w.write("a", []byte("2"))
	w.remove("goes")
	r, err := w.u.Snapshot(t.Context())
	if err != nil || !r.Published || r.Untidy == "" {
		t.Errorf("%+v, %v", r, err) // it was published, before
	}
	if !w.u.Status().Fenced {
		t.Error("it does not know that it was left behind")
	}
	for path, want := range map[string]string{"a": "the other's", "goes": "stays"} {
		if got, _ := w.get(history.CurrentKey(path)); got != want {
			t.Errorf("current: %s holds %q", path, got)
		}
	}
	if h := w.head(); h.Sequence != 3 || h.Writer != o.j.State().Writer {
		t.Errorf("head %+v", h)
	}
}

// behind publishes two snapshots of which the second never gets to current, as by a
// crash between steps 6 and 8, and leaves that machine for good.
func behind(t *testing.T) *world {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("1"))
	w.write("goes", []byte("x"))
	w.snapshot()
	w.store.Fail = func(op memstore.Op) error {
		if op.Kind == "copy" && !strings.HasPrefix(op.Key, history.HistoryPrefix) ||
			op.Kind == "delete" && !strings.HasPrefix(op.Key, history.HistoryPrefix) {
			return errGone
		}
		return nil
	}
	w.write("a", []byte("2"))
	w.remove("goes")
	if r, err := w.u.Snapshot(t.Context()); err != nil || r.Untidy == "" {
		t.Fatalf("%+v, %v", r, err)
	}
	w.store.Fail = nil
	if got, _ := w.get(history.CurrentKey("a")); got != "1" {
		t.Fatalf("current holds %q", got)
	}
	return w
}

var errGone = errors.New("gone")

// A machine that takes over repairs what another one has left behind: at once where
// it runs, else with its next snapshot.
func TestTheNextHolderRepairsCurrent(t *testing.T) {
	for name, act := range map[string]func(t *testing.T, o *world){
		"at the start": func(t *testing.T, o *world) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- o.u.Run(ctx) }()
			synctest.Wait()
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		},
		"with its next snapshot": func(t *testing.T, o *world) {
			o.write("a", []byte("2")) // what a restore would have brought
			o.write("b", []byte("new"))
			o.snapshot()
			if got, _ := o.get(history.CurrentKey("b")); got != "new" {
				t.Errorf("current: b holds %q", got)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { repaired(t, act) })
		})
	}
}

func repaired(t *testing.T, act func(t *testing.T, o *world)) {
	o := behind(t).other()
	o.takeover()
	act(t, o)
	if got, _ := o.get(history.CurrentKey("a")); got != "2" {
		t.Errorf("current: a holds %q", got)
	}
	if o.u.Current() != o.head().Newest.ID {
		t.Errorf("it does not know what current follows: %q", o.u.Current())
	}
	if p := o.j.State().Pending; len(p) > 0 {
		t.Errorf("pending: %v", p)
	}
}

// Where it is known that current follows, a takeover causes nothing: no request of Run.
func TestNothingToRepair(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("1"))
	id := w.snapshot().ID
	if w.u.Current() != id {
		t.Errorf("after a snapshot current follows %q", w.u.Current())
	}
	o := w.other()
	o.u.KnowCurrent(id)
	o.takeover()
	if p := o.j.State().Pending; len(p) > 0 {
		t.Errorf("pending: %v", p)
	}
	asked := 0
	o.store.Fail = func(memstore.Op) error { asked++; return nil }
	o.u.repairAtStart(t.Context())
	if asked > 0 {
		t.Errorf("%d requests", asked)
	}
}
