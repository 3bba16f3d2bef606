package reconcile

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/uploader"
)

// The rows as a mount meets them; each is one life of a machine or two.
func TestRows(t *testing.T) {
	for row, live := range map[Row]func(t *testing.T){
		RowEmpty:        liveEmpty,
		RowFirst:        liveFirst,
		RowCurrent:      liveCurrent,
		RowOlder:        liveOlder,
		RowDirty:        liveDirty,
		RowDiverged:     liveDiverged,
		RowUnknown:      liveUnknown,
		RowUnknownEqual: liveUnknownEqual,
		RowForeign:      liveForeign,
	} {
		t.Run(string(row), live)
	}
}

func liveEmpty(t *testing.T) {
	a, _ := pair(t)
	a.wipe()
	a.restart().mount(RowEmpty, Restore)
	a.wantFiles(two)
	a.wantDirty(false)
	if id := a.snapshot(); string(id) != a.j.State().ID {
		t.Errorf("a wiped DIR was published: %s", id)
	}
}

func liveFirst(t *testing.T) {
	m := newMachine(t, memstore.New()).start()
	m.put("chroma.sqlite3", "one")
	m.mount(RowFirst, KeepAll)
	m.wantDirty(true)
	m.restart().mount(RowFirst, KeepAll) // and again before it was published
	m.snapshot()
	m.wantDirty(false)
	m.restart().mount(RowCurrent, Nothing)
}

func liveCurrent(t *testing.T) {
	a, _ := pair(t)
	a.restart().mount(RowCurrent, Nothing)
	a.wantFiles(two)
	a.wantDirty(false)
}

func liveOlder(t *testing.T) {
	_, b := pair(t)
	res := b.mount(RowOlder, Update)
	b.wantFiles(two)
	b.wantDirty(false)
	if len(b.backups()) != 1 || !maps.Equal(b.backups()[0], one) || res.Restored == nil || res.Restored.Backup == "" {
		t.Errorf("backups %v, result %+v", b.backups(), res.Restored)
	}
	if res.Restored.Fetched >= res.Restored.Bytes {
		t.Errorf("fetched %d of %d bytes", res.Restored.Fetched, res.Restored.Bytes)
	}
	b.write("chroma.sqlite3", "three")
	b.snapshot() // it is the writer now, and copies what it restored
	b.restart().mount(RowCurrent, Nothing)
}

func liveDirty(t *testing.T) {
	a, _ := pair(t)
	a.write("chroma.sqlite3", "three")
	a.restart().mount(RowDirty, Keep)
	a.wantDirty(true)
	a.snapshot()
	a.wantDirty(false)
}

func liveDiverged(t *testing.T) {
	_, b := pair(t)
	b.write("chroma.sqlite3", "mine")
	mine := b.files()
	res := b.mount(RowDiverged, Fork)
	if !strings.HasSuffix(res.Restored.Backup, "-unsaved") { // which no later restore removes
		t.Errorf("backup %s", res.Restored.Backup)
	}
	b.wantFiles(two)
	b.wantDirty(false)
	if all := b.backups(); len(all) != 1 || !maps.Equal(all[0], mine) {
		t.Errorf("backups %v (R3)", all)
	}
	if all := b.branches(); !slices.Equal(all, []history.ID{res.Branch}) || slices.Contains(res.Head.History, res.Branch) {
		t.Errorf("branches %v, result %+v (W2)", all, res)
	}
	b.write("new", "later") // it is the writer now, and its branch stays
	b.snapshot()
	b.restart().mount(RowCurrent, Nothing)
	b.restore(res.Branch)
	b.wantFiles(mine)
	b.wantDirty(true)
	b.restart().mount(RowDirty, Keep)
	b.snapshot()
	fresh := newMachine(t, b.store).start()
	fresh.mount(RowEmpty, Restore)
	fresh.wantFiles(mine)
	if all := b.branches(); len(all) != 1 {
		t.Errorf("branches %v", all)
	}
}

func liveUnknown(t *testing.T) {
	a, _ := pair(t)
	m := newMachine(t, a.store).start()
	m.put("chroma.sqlite3", "an image's")
	m.put("extra", "x")
	mine := m.files()
	m.flags.NoLocalBackup = true
	m.refuse(RowUnknown, exitcode.Conflict)
	m.flags.NoLocalBackup = false
	m.mount(RowUnknown, Replace)
	m.wantFiles(two)
	if all := m.backups(); len(all) != 1 || !maps.Equal(all[0], mine) {
		t.Errorf("backups %v (R3)", all)
	}
}

func liveUnknownEqual(t *testing.T) {
	a, _ := pair(t)
	m := newMachine(t, a.store).start()
	for name, content := range two {
		m.put(name, content)
	}
	if err := os.Chmod(filepath.Join(m.path, "new"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.mount(RowUnknownEqual, Adopt)
	if d := m.j.Dirty(); len(d.Marks) != 1 || !d.Covers("new") {
		t.Errorf("dirty %v: only the mode of one differs", d.Marks)
	}
	r, err := m.u.Snapshot(t.Context())
	if err != nil || r.BytesUploaded != 0 || !r.Published {
		t.Errorf("%+v, %v", r, err)
	}
}

func liveForeign(t *testing.T) {
	a, _ := pair(t)
	a.stop()
	a.store = memstore.New()
	a.start().refuse(RowForeign, exitcode.Conflict) // a store now empty
	other := newMachine(t, a.store).start()
	other.put("x", "x")
	other.mount(RowFirst, KeepAll)
	other.snapshot()
	a.refuse(RowForeign, exitcode.Conflict) // another lineage
}

// A DIR that was wiped but for .chromafs, and a store that was emptied: both sides
// begin anew.
func TestWipedAndEmptied(t *testing.T) {
	m, _ := pair(t)
	m.wipe()
	m.stop()
	m.store = memstore.New()
	r := m.start().mount(RowNewAndEmpty, StartEmpty)
	m.write("chroma.sqlite3", "new")
	m.snapshot()
	if s := m.restart().j.State(); s.Lineage != r.Head.Lineage || s.Sequence != 1 {
		t.Errorf("state %+v after %+v", s, r.Head)
	}
	m.mount(RowCurrent, Nothing)
}

// The first snapshot was stored and its publication never came: an empty disk does
// not start empty beside it; the disk that has the data goes on.
func TestStoredButNeverPublished(t *testing.T) {
	m := newMachine(t, memstore.New()).start()
	m.mount(RowNewAndEmpty, StartEmpty)
	m.write("chroma.sqlite3", "one")
	m.store.Fail = func(op memstore.Op) error {
		if op.Kind == "put" && op.Key == history.HeadKey {
			return errors.New("killed")
		}
		return nil
	}
	if _, err := m.u.Snapshot(t.Context()); err == nil {
		t.Fatal("published")
	}
	m.store.Fail = nil
	newMachine(t, m.store).start().refuse(RowUnpublished, exitcode.Integrity)
	m.restart().mount(RowFirst, KeepAll)
	m.snapshot()
	m.restart().mount(RowCurrent, Nothing)
}

func TestPreferLocal(t *testing.T) {
	a, _ := pair(t)
	m := newMachine(t, a.store).start()
	m.put("chroma.sqlite3", "mine")
	m.put("seg/data", "vectors")
	mine := m.files()
	m.flags = Flags{PreferLocal: true}
	m.mount(RowUnknown, KeepOver)
	m.wantFiles(mine)
	if d := m.j.Dirty(); d.Covers("seg/data") || !d.Covers("chroma.sqlite3") || !d.Covers("new") {
		t.Errorf("dirty %v", d.Marks)
	}
	r, err := m.u.Snapshot(t.Context())
	if err != nil || r.Sequence != 3 || r.BytesUploaded != int64(len("mine")) {
		t.Errorf("%+v, %v", r, err)
	}
	m.restart().mount(RowCurrent, Nothing)
	m.wantFiles(mine)
}

// J4: what was changed while nobody served it is not taken for clean.
func TestChangedBehindTheJournalsBack(t *testing.T) {
	a, b := pair(t)
	a.stop()
	a.put("chroma.sqlite3", "TWO")
	a.start().mount(RowDirty, Keep)
	b.put("chroma.sqlite3", "ONE")
	b.mount(RowDiverged, Fork)
	if all := b.backups(); len(all) != 1 || all[0]["chroma.sqlite3"] != "ONE" {
		t.Errorf("backups %v (R3)", all)
	}
}

// The intent of a snapshot that was published after all is finished, not diverged.
func TestPublishedAndNotAcknowledged(t *testing.T) {
	a, _ := pair(t)
	a.write("chroma.sqlite3", "three")
	var dead atomic.Bool // files are stored at the same time
	a.store.Fail = func(op memstore.Op) error {
		if op.Kind == "put" && op.Key == history.HeadKey && op.After {
			dead.Store(true)
		}
		if dead.Load() {
			return errors.New("killed")
		}
		return nil
	}
	if _, err := a.u.Snapshot(t.Context()); err == nil {
		t.Fatal("the snapshot succeeded")
	}
	a.store.Fail = nil
	a.write("new", "later")
	a.restart().mount(RowDirty, Keep)
	if s := a.j.State(); s.Sequence != 3 || s.Intent != nil {
		t.Errorf("journal %+v", s)
	}
	if d := a.j.Dirty(); d.Covers("chroma.sqlite3") {
		t.Errorf("dirty %v", d.Marks)
	}
	want := a.files()
	a.snapshot()
	fresh := newMachine(t, a.store).start()
	fresh.mount(RowEmpty, Restore)
	fresh.wantFiles(want)
}

func TestStoreThatDoesNotAnswer(t *testing.T) {
	a, _ := pair(t)
	a.write("chroma.sqlite3", "three")
	for row, kind := range map[Row]error{RowRefused: objstore.ErrRefused, RowUnavailable: objstore.ErrUnavailable} {
		fail := func(memstore.Op) error { return kind }
		a.store.Fail = fail
		a.flags.Offline = false
		a.refuse(row, exitcode.Store)
		a.store.Fail = fail
		a.flags.Offline = true
		if res := a.mount(row, ServeOffline); !res.Offline {
			t.Errorf("%+v", res)
		}
		fresh := newMachine(t, a.store).start()
		fresh.flags.Offline = true
		fresh.refuse(row, exitcode.Store) // nothing to serve
	}
	a.store.Fail = nil
	a.snapshot() // the store answers, and nothing moved meanwhile
	a.wantDirty(false)
}

func TestUnavailableStoreIsAskedAgain(t *testing.T) {
	for _, comesBack := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			m := newMachine(t, memstore.New()).start()
			start := time.Now()
			m.store.Fail = func(memstore.Op) error {
				if comesBack && time.Since(start) > 20*time.Second {
					return nil
				}
				return objstore.ErrUnavailable
			}
			e := m.env()
			e.StoreTimeout = time.Minute
			_, err := Run(t.Context(), e)
			if took := time.Since(start); comesBack && (err != nil || took > 40*time.Second) {
				t.Errorf("after %v: %v", took, err)
			} else if !comesBack && (!errors.Is(err, ErrRefused) || took < time.Minute || took > 61*time.Second) {
				t.Errorf("gave up after %v: %v", took, err)
			}
			m.stop()
		})
	}
}

// A store that answers a question and not the takeover does not answer.
func TestTakeoverOfAStoreThatDoesNotAnswer(t *testing.T) {
	for row, kind := range map[Row]error{RowRefused: objstore.ErrRefused, RowUnavailable: objstore.ErrUnavailable} {
		a, _ := pair(t)
		a.write("chroma.sqlite3", "three")
		fail := func(op memstore.Op) error {
			if op.Kind == "put" {
				return kind
			}
			return nil
		}
		a.store.Fail = fail
		a.refuse(row, exitcode.Store)
		a.store.Fail = fail
		a.flags.Offline = true
		if res := a.mount(row, ServeOffline); !res.Offline {
			t.Errorf("%+v", res)
		}
		a.store.Fail = nil
		a.snapshot()
		a.wantDirty(false)
	}
}

func TestTakeoverIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, memstore.New()).start()
		start := time.Now()
		m.store.Fail = func(op memstore.Op) error {
			if op.Kind == "put" && time.Since(start) < 20*time.Second {
				return objstore.ErrUnavailable
			}
			return nil
		}
		e := m.env()
		e.StoreTimeout = time.Minute
		if res, err := Run(t.Context(), e); err != nil || res.Action != StartEmpty {
			t.Errorf("after %v: %v, %v", time.Since(start), res.Action, err)
		}
		m.stop()
	})
}

func TestHeadLost(t *testing.T) {
	a, _ := pair(t)
	if err := a.store.Delete(t.Context(), []string{history.HeadKey}); err != nil {
		t.Fatal(err)
	}
	refusal := a.refuse(RowHeadLost, exitcode.Integrity)
	if !strings.Contains(exitcode.Hint(refusal), a.j.State().ID) {
		t.Errorf("hint %q does not name %s", exitcode.Hint(refusal), a.j.State().ID)
	}
	fresh := newMachine(t, a.store).start()
	fresh.refuse(RowHeadLost, exitcode.Integrity)
}

// The takeover comes after the rows that refuse, and what it read is decided on.
func TestAnotherWriterComesBetween(t *testing.T) {
	a, b := pair(t)
	e, raced := b.env(), false
	e.Takeover = func(ctx context.Context, head history.Head, etag string) (history.Head, error) {
		if !raced {
			raced = true
			a.write("chroma.sqlite3", "three")
			a.snapshot()
		}
		return b.u.Takeover(ctx, head, etag)
	}
	res, err := Run(t.Context(), e)
	if err != nil || res.Action != Update || res.Head.Sequence != 3 {
		t.Fatalf("%+v, %v", res, err)
	}
	b.wantFiles(a.files())
	a.write("chroma.sqlite3", "four")
	if _, err := a.u.Snapshot(t.Context()); !errors.Is(err, uploader.ErrFenced) {
		t.Errorf("the writer that was left behind (W1): %v", err)
	}
}

// H2: a restore whose snapshot is rotated away under it starts again from the newest.
func TestRotatedAwayUnderARestore(t *testing.T) {
	a, b := pair(t)
	a.stop()
	a.keep = 1
	a.start().mount(RowCurrent, Nothing)
	var raced atomic.Bool
	b.store.Fail = func(op memstore.Op) error {
		if !op.After && op.Kind == "get" && strings.HasPrefix(op.Key, "history/") && raced.CompareAndSwap(false, true) {
			a.write("chroma.sqlite3", "three")
			a.snapshot()
		}
		return nil
	}
	e := b.env()
	e.Takeover = nil // a restore takes nothing over, so the other one goes on
	res, err := Run(t.Context(), e)
	if err != nil || !raced.Load() || res.Action != Update {
		t.Fatalf("%+v, %v, raced: %v", res, err, raced.Load())
	}
	b.store.Fail = nil
	b.wantFiles(a.files())
	b.wantDirty(false)
}

func TestLocalOnlyReplacesNothing(t *testing.T) {
	_, b := pair(t)
	e := b.env()
	e.LocalOnly = true
	files, objects := b.files(), b.objects()
	_, err := Run(t.Context(), e)
	if !errors.Is(err, ErrRefused) || exitcode.Of(err) != exitcode.Conflict || !strings.Contains(exitcode.Hint(err), "sync") {
		t.Errorf("%v, hint %q", err, exitcode.Hint(err))
	}
	if !maps.Equal(b.files(), files) || !maps.Equal(b.objects(), objects) {
		t.Error("touched something")
	}
}

// What an interrupted restore has fetched takes room until another restore needs
// it; where none follows it is removed.
func TestPartialRestoreIsDiscarded(t *testing.T) {
	a, _ := pair(t)
	partial := filepath.Join(a.path, datadir.StateName, datadir.ScratchName, datadir.RestorePrefix+"-20261122T201530.123Z-4f2a")
	if err := os.Mkdir(partial, 0o700); err != nil {
		t.Fatal(err)
	}
	a.restart().mount(RowCurrent, Nothing)
	if _, err := os.Stat(partial); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the partial copy: %v", err)
	}
}

// A takeover that comes for an empty store begins a lineage; it is kept.
func TestLineageIsKept(t *testing.T) {
	m := newMachine(t, memstore.New()).start()
	first := m.mount(RowNewAndEmpty, StartEmpty)
	second := m.restart().mount(RowNewAndEmpty, StartEmpty)
	if first.Head.Lineage == "" || first.Head.Lineage != second.Head.Lineage || second.Head.Epoch != 2 {
		t.Errorf("%+v then %+v", first.Head, second.Head)
	}
	m.write("a", "a")
	m.snapshot()
	ids := m.restart().mount(RowCurrent, Nothing).Head.History
	if !slices.Equal(ids, []history.ID{history.ID(m.j.State().ID)}) {
		t.Errorf("list %v", ids)
	}
}

// sync: the table, then a snapshot if something is dirty. Bringing a copy up to
// date fences nobody; publishing does.
func TestSyncFencesOnlyToPublish(t *testing.T) {
	a, b := pair(t)
	sync := func() {
		t.Helper()
		e := b.env()
		e.Takeover = nil
		if _, err := Run(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		b.snapshot()
	}
	sync()
	b.wantFiles(two)
	a.write("chroma.sqlite3", "three")
	a.snapshot()
	b.restart()
	sync()
	b.wantFiles(a.files())
	b.write("new", "mine")
	sync()
	b.wantDirty(false)
	a.write("chroma.sqlite3", "four")
	if _, err := a.u.Snapshot(t.Context()); !errors.Is(err, uploader.ErrFenced) {
		t.Errorf("the other writer: %v (W1)", err)
	}
}
