package reconcile

import (
	"context"
	"errors"
	"testing"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// What the holder publishes while it is waited for is what is served.
func TestTheStoreIsReadAgainAfterAHandOver(t *testing.T) {
	a, b := pair(t)
	a.mount(RowCurrent, Nothing)
	b.stop()
	c := newMachine(t, a.store).start()
	e, asked := c.env(), 0
	e.HandOver = func(_ context.Context, head history.Head) (bool, error) {
		asked++
		if head.Writer != a.j.State().Writer {
			t.Errorf("asked %s, the holder is %s", head.Writer, a.j.State().Writer)
		}
		a.write("chroma.sqlite3", "final")
		a.snapshot() // it is not fenced yet
		return true, nil
	}
	res, err := Run(t.Context(), e)
	if err != nil || res.Action != Restore || asked != 1 {
		t.Fatalf("%+v, %v, asked %d times", res.Decision, err, asked)
	}
	want := map[string]string{}
	for name, data := range two {
		want[name] = data
	}
	want["chroma.sqlite3"] = "final"
	c.wantFiles(want)
}

// A local copy that is not the newest snapshot any more when the holder has yielded
// falls under another row, a refusal too.
func TestTheTableIsDecidedAgainAfterAHandOver(t *testing.T) {
	a, _ := pair(t)
	m := newMachine(t, a.store).start()
	for name, content := range two {
		m.put(name, content) // an image that equals the newest snapshot
	}
	m.flags.NoLocalBackup = true
	e := m.env()
	e.HandOver = func(context.Context, history.Head) (bool, error) {
		a.write("chroma.sqlite3", "final")
		a.snapshot()
		return true, nil
	}
	e.Branch = noBranch
	_, err := Run(t.Context(), e)
	var refusal *Refusal
	if !errors.As(err, &refusal) || refusal.Row != RowUnknown {
		t.Errorf("Run: %v", err)
	}
	if err := a.u.CheckWriter(t.Context()); err != nil {
		t.Errorf("a mount that was refused fenced the holder: %v", err)
	}
}

// A holder that came between is asked too; the same one is not asked twice.
func TestEveryHolderIsAskedOnce(t *testing.T) {
	for _, waits := range []bool{false, true} {
		a, b := pair(t)
		a.mount(RowCurrent, Nothing)
		c := newMachine(t, a.store).start()
		e, asked := c.env(), []uint64(nil)
		e.HandOver = func(_ context.Context, head history.Head) (bool, error) {
			if asked = append(asked, head.Epoch); len(asked) == 1 {
				b.mount(RowOlder, Update)
			}
			return waits, nil
		}
		res, err := Run(t.Context(), e)
		if err != nil || len(asked) != 2 || asked[1] != asked[0]+1 || res.Head.Epoch != asked[1]+1 {
			t.Errorf("waits %v: asked those of the epochs %v; %+v, %v", waits, asked, res.Head, err)
		}
	}
}

// Who is going to be refused asks nobody to yield, and neither does who serves offline.
func TestNobodyIsAskedInVain(t *testing.T) {
	a, b := pair(t)
	m := newMachine(t, a.store).start()
	m.put("chroma.sqlite3", "an image's")
	asked := func(m *machine, f Flags) (n int, err error) {
		m.flags = f
		e := m.env()
		e.HandOver = func(context.Context, history.Head) (bool, error) { n++; return false, nil }
		e.Branch = noBranch
		_, err = Run(t.Context(), e)
		return n, err
	}
	if n, err := asked(m, Flags{NoLocalBackup: true}); n != 0 || exitcode.Of(err) != exitcode.Conflict {
		t.Errorf("refused: asked %d times, %v", n, err)
	}
	b.store.Fail = func(memstore.Op) error { return objstore.ErrUnavailable }
	if n, err := asked(b, Flags{Offline: true}); n != 0 || err != nil {
		t.Errorf("offline: asked %d times, %v", n, err)
	}
}

// A wait that was interrupted ends the mount, and the holder stays the writer.
func TestInterruptedHandOver(t *testing.T) {
	a, b := pair(t)
	a.mount(RowCurrent, Nothing)
	e := b.env()
	interrupted := errors.New("interrupted")
	e.HandOver = func(context.Context, history.Head) (bool, error) { return true, interrupted }
	if _, err := Run(t.Context(), e); !errors.Is(err, interrupted) {
		t.Errorf("Run: %v", err)
	}
	if err := a.u.CheckWriter(t.Context()); err != nil {
		t.Errorf("the holder: %v", err)
	}
}

// noBranch is a store that takes no branch.
func noBranch(context.Context) (history.ID, error) { return "", objstore.ErrRefused }
