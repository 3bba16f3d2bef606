package reconcile

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

func (m *machine) restore(at history.ID) Result {
	m.t.Helper()
	res, err := RestoreAt(m.t.Context(), m.env(), at)
	if err != nil {
		m.t.Fatal(err)
	}
	if p, err := history.Unfinished(m.dir); p != nil || err != nil {
		m.t.Errorf("unfinished: %v, %v", p, err)
	}
	if _, err := os.Stat(filepath.Join(m.path, datadir.StateName, goalName)); !errors.Is(err, os.ErrNotExist) {
		m.t.Errorf("%s is left: %v", goalName, err)
	}
	return res
}

func ids(t *testing.T, m *machine) []history.ID {
	t.Helper()
	h, _, err := m.catalog().Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h.History
}

func TestRestoreTheNewest(t *testing.T) {
	a, b := pair(t)
	before := b.objects()
	b.write("chroma.sqlite3", "mine") // R3: a dirty copy is kept
	mine := b.files()
	b.flags.NoLocalBackup = true
	if _, err := RestoreAt(t.Context(), b.env(), ""); !errors.Is(err, ErrRefused) || exitcode.Of(err) != exitcode.Conflict {
		t.Errorf("without a backup: %v", err)
	}
	b.wantFiles(mine)
	b.flags.NoLocalBackup = false
	b.restore("")
	b.wantFiles(two)
	b.wantDirty(false)
	if all := b.backups(); len(all) != 1 || !maps.Equal(all[0], mine) {
		t.Errorf("backups %v", all)
	}
	if !maps.Equal(b.objects(), before) {
		t.Error("a restore changed the store")
	}
	a.write("new", "still the writer")
	a.snapshot()
}

// DESIGN §7: `restore --at` leaves DIR dirty, based on the newest.
func TestRestoreAnOlderOne(t *testing.T) {
	a, _ := pair(t)
	older := ids(t, a)[0]
	a.restore(older)
	a.wantFiles(one)
	if d := a.j.Dirty(); !d.Covers("chroma.sqlite3") || !d.Covers("new") || d.Covers("seg/data") {
		t.Errorf("dirty %v", d.Marks)
	}
	if all := a.backups(); len(all) != 1 || !maps.Equal(all[0], two) {
		t.Errorf("backups %v", all)
	}
	a.restart().mount(RowDirty, Keep)
	a.wantFiles(one)
	r, err := a.u.Snapshot(t.Context())
	if err != nil || r.Sequence != 3 || r.BytesUploaded != int64(len("one")) {
		t.Errorf("%+v, %v", r, err)
	}
	fresh := newMachine(t, a.store).start()
	fresh.mount(RowEmpty, Restore)
	fresh.wantFiles(one)
}

func TestRestoreOverAForeignCopy(t *testing.T) {
	a, _ := pair(t)
	m := newMachine(t, memstore.New()).start()
	m.put("x", "another store's")
	m.mount(RowFirst, KeepAll)
	m.snapshot()
	m.stop()
	m.store = a.store
	m.start()
	m.flags.NoLocalBackup = true
	if _, err := RestoreAt(t.Context(), m.env(), ""); exitcode.Of(err) != exitcode.Conflict {
		t.Errorf("without a backup: %v", err)
	}
	m.flags.NoLocalBackup = false
	m.restore("")
	m.wantFiles(two)
	if all := m.backups(); len(all) != 1 || all[0]["x"] != "another store's" {
		t.Errorf("backups %v (R3)", all)
	}
	m.restart().mount(RowCurrent, Nothing)
}

// R3: a copy whose snapshot was left behind, and published again by another under
// the same sequence, is not what the store has.
func TestRestoreOverALostBranch(t *testing.T) {
	a, b := pair(t)
	mine := a.files()
	if err := a.store.Delete(t.Context(), []string{history.HeadKey}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.catalog().Adopt(t.Context(), history.ID(b.j.State().ID)); err != nil {
		t.Fatal(err)
	}
	b.mount(RowCurrent, Nothing)
	b.write("chroma.sqlite3", "another two")
	b.snapshot()
	a.flags.NoLocalBackup = true
	if _, err := RestoreAt(t.Context(), a.env(), ""); exitcode.Of(err) != exitcode.Conflict {
		t.Errorf("without a backup: %v", err)
	}
	a.wantFiles(mine)
	a.flags.NoLocalBackup = false
	res := a.restore("")
	if all := a.backups(); len(all) != 1 || !maps.Equal(all[0], mine) || !strings.Contains(res.Restored.Backup, "-unsaved") {
		t.Errorf("%s, backups %v", res.Restored.Backup, all)
	}
}

func TestNothingToRestore(t *testing.T) {
	m := newMachine(t, memstore.New()).start()
	m.put("x", "x")
	_, err := RestoreAt(t.Context(), m.env(), "")
	if !errors.Is(err, ErrNothing) || exitcode.Hint(err) == "" {
		t.Errorf("%v", err)
	}
	m.wantFiles(map[string]string{"x": "x"})
}

// interrupt leaves DIR as a crash between the restore and the journal does.
func (m *machine) interrupt(at history.ID) {
	m.t.Helper()
	manifest, err := m.catalog().Manifest(m.t.Context(), at, "")
	if err != nil {
		m.t.Fatal(err)
	}
	_, err = history.Restore(m.t.Context(), m.catalog(), history.RestoreOptions{Dir: m.dir, Manifest: manifest,
		KeepLocal: true, Backups: 1, Now: time.Now, Log: logger(m.t)})
	if err != nil {
		m.t.Fatal(err)
	}
}

func TestInterruptedRestoreIsFinishedFirst(t *testing.T) {
	t.Run("of the newest", func(t *testing.T) {
		_, b := pair(t)
		b.interrupt(ids(t, b)[1])
		b.restart().mount(RowCurrent, Nothing)
		b.wantFiles(two)
		b.wantDirty(false)
	})
	t.Run("of one that is no longer the newest", func(t *testing.T) {
		a, b := pair(t)
		b.interrupt(ids(t, b)[1])
		a.write("new", "moved on")
		a.snapshot()
		b.restart().mount(RowOlder, Update)
		b.wantFiles(a.files())
		b.wantDirty(false)
	})
	t.Run("of an older one, on request", func(t *testing.T) {
		a, _ := pair(t)
		r := &runner{Env: a.env()}
		if err := r.setGoal(ids(t, a)[0]); err != nil {
			t.Fatal(err)
		}
		a.interrupt(ids(t, a)[0])
		a.restart().mount(RowDirty, Keep)
		a.wantFiles(one)
		a.restart().mount(RowDirty, Keep)
	})
	t.Run("on request, but it never began", func(t *testing.T) {
		a, _ := pair(t)
		r := &runner{Env: a.env()}
		if err := r.setGoal(ids(t, a)[0]); err != nil {
			t.Fatal(err)
		}
		a.restart().mount(RowCurrent, Nothing)
		r = &runner{Env: a.env()}
		if goal, err := r.goal(); goal != "" || err != nil {
			t.Errorf("still asked for: %s, %v", goal, err)
		}
	})
	t.Run("while the store is down", func(t *testing.T) {
		_, b := pair(t)
		b.interrupt(ids(t, b)[1])
		b.restart()
		b.flags.Offline = true
		b.store.Fail = func(memstore.Op) error { return errors.New("down") }
		b.refuse(RowUnavailable, exitcode.Store)
	})
}

// R2, R3: whichever request of a restore fails, DIR stays as it was or the next
// attempt finishes it, and a dirty copy is in backups once it is replaced.
func TestEveryRequestOfARestoreMayFail(t *testing.T) {
	for n := 0; ; n++ {
		_, b := pair(t)
		b.write("chroma.sqlite3", "mine")
		mine := b.files()
		hit, count := false, 0
		var mu sync.Mutex
		b.store.Fail = func(op memstore.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if !op.After {
				count++
				hit = hit || count > n
			}
			if hit {
				return errors.New("down")
			}
			return nil
		}
		_, err := Run(t.Context(), b.env())
		if !hit {
			if err != nil || n < 4 {
				t.Fatalf("%d requests, %v", n, err)
			}
			return
		}
		if err == nil {
			t.Fatalf("request %d failed, and nobody was told", n)
		}
		b.wantFiles(mine)
		b.store.Fail = nil
		b.restart().mount(RowDiverged, Fork)
		b.wantFiles(two)
		if all := b.branches(); len(all) != 1 {
			t.Fatalf("request %d: branches %v (W2)", n, all)
		}
		if all := b.backups(); len(all) != 1 || !maps.Equal(all[0], mine) {
			t.Fatalf("request %d: backups %v", n, all)
		}
		b.stop()
	}
}

func FuzzGoal(f *testing.F) {
	f.Add([]byte("20261122T201530.123Z-4f2a"))
	f.Add([]byte("../../etc/passwd"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		m := newMachine(t, memstore.New()).start()
		if err := os.WriteFile(filepath.Join(m.path, datadir.StateName, goalName), data, 0o600); err != nil {
			t.Fatal(err)
		}
		r := &runner{Env: m.env()}
		id, err := r.goal()
		if err != nil {
			t.Fatal(err)
		}
		if id != "" && strings.TrimSpace(string(data[:min(len(data), 1<<10)])) != string(id) {
			t.Errorf("%q was read as %q", data, id)
		}
	})
}
