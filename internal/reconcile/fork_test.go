package reconcile

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// failBranches makes the store refuse the objects of branches.
func failBranches(store *memstore.Store, kind error) {
	store.Fail = func(op memstore.Op) error {
		if strings.Contains(op.Key, "-branch-") && (op.Kind == "put" || op.Kind == "copy") {
			return kind
		}
		return nil
	}
}

// W2, R3: with --no-local-backup the branch is stored first, and only then is DIR
// replaced. Where it cannot be stored, nothing of DIR is touched and nobody fenced.
func TestDivergedWithoutALocalBackup(t *testing.T) {
	a, b := pair(t)
	b.write("chroma.sqlite3", "mine")
	mine := b.files()
	b.flags.NoLocalBackup = true
	failBranches(b.store, objstore.ErrRefused)
	_, err := Run(t.Context(), b.env())
	var refusal *Refusal
	if !errors.As(err, &refusal) || refusal.Row != RowDiverged || exitcode.Of(err) != exitcode.Conflict || !errors.Is(err, objstore.ErrRefused) {
		t.Fatalf("%v", err)
	}
	for _, word := range []string{"--no-local-backup", "nothing local was touched", "changes that are not in the store", b.path} {
		if text := err.Error() + exitcode.Hint(err); !strings.Contains(text, word) {
			t.Errorf("%q is not in: %s", word, text)
		}
	}
	b.store.Fail = nil
	b.wantFiles(mine)
	a.write("new", "goes on")
	a.snapshot() // it was not fenced

	e := b.env()
	e.Branch = nil
	if _, err := Run(t.Context(), e); !errors.As(err, &refusal) || exitcode.Of(err) != exitcode.Conflict {
		t.Errorf("by a command that stores no branches: %v", err)
	}
	b.wantFiles(mine)

	times := 0
	e = b.env()
	e.Branch = func(ctx context.Context) (history.ID, error) {
		b.wantFiles(mine)
		times++
		return b.branch(ctx)
	}
	res, err := Run(t.Context(), e)
	if err != nil || res.Decision != (Decision{RowDiverged, Fork}) || times != 1 || res.Restored.Backup != "" {
		t.Fatalf("%+v, %v", res, err)
	}
	b.wantFiles(a.files())
	if all := b.branches(); !slices.Equal(all, []history.ID{res.Branch}) {
		t.Errorf("branches %v, %+v", all, res)
	}
	fresh := newMachine(t, b.store).start()
	fresh.restore(res.Branch)
	fresh.wantFiles(mine)
}

// A store that takes no branch does not keep a mount from serving: what is local is
// in backups.
func TestDivergedAndNoBranch(t *testing.T) {
	for _, kind := range []error{objstore.ErrRefused, objstore.ErrUnavailable} {
		_, b := pair(t)
		b.write("chroma.sqlite3", "mine")
		mine := b.files()
		failBranches(b.store, kind)
		res := b.mount(RowDiverged, Fork)
		b.store.Fail = nil
		if res.Branch != "" || len(b.branches()) > 0 {
			t.Errorf("%+v", res)
		}
		b.wantFiles(two)
		if all := b.backups(); len(all) != 1 || !maps.Equal(all[0], mine) || !strings.HasSuffix(res.Restored.Backup, "-unsaved") {
			t.Errorf("%s: backups %v (R3)", res.Restored.Backup, all)
		}
		b.write("new", "x")
		b.snapshot()
		for key := range b.objects() {
			if strings.Contains(key, "-branch-") {
				t.Errorf("litter: %s", key)
			}
		}
	}
}

// A signal while the branch is being stored ends the start, and DIR is as it was.
func TestInterruptedBranch(t *testing.T) {
	_, b := pair(t)
	b.write("chroma.sqlite3", "mine")
	mine := b.files()
	stop := errors.New("a signal")
	ctx, cancel := context.WithCancelCause(t.Context())
	b.store.Fail = func(op memstore.Op) error {
		if strings.Contains(op.Key, "-branch-") {
			cancel(stop)
		}
		return nil
	}
	b.flags.NoLocalBackup = true
	if _, err := Run(ctx, b.env()); !errors.Is(err, stop) || errors.Is(err, ErrRefused) {
		t.Errorf("%v", err)
	}
	b.store.Fail = nil
	b.wantFiles(mine)
	b.restart().mount(RowDiverged, Fork)
	if all := b.branches(); len(all) != 1 {
		t.Errorf("branches %v", all)
	}
}

// A crash between the branch and the restore stores no second one.
func TestBranchIsStoredOnce(t *testing.T) {
	_, b := pair(t)
	b.write("chroma.sqlite3", "mine")
	id, err := b.branch(t.Context())
	if err != nil || id == "" {
		t.Fatal(id, err)
	}
	if res := b.restart().mount(RowDiverged, Fork); res.Branch != id {
		t.Errorf("%s, and then %+v", id, res)
	}
	if all := b.branches(); !slices.Equal(all, []history.ID{id}) {
		t.Errorf("branches %v", all)
	}
}

// DESIGN §8: a mount that began without the store serves what it has; when the store
// answers, and moved on meanwhile, what is local becomes a branch.
func TestOfflineAndTheStoreMovedOn(t *testing.T) {
	_, b := pair(t)
	b.store.Fail = func(memstore.Op) error { return objstore.ErrUnavailable }
	b.flags.Offline = true
	if res := b.mount(RowUnavailable, ServeOffline); !res.Offline {
		t.Fatalf("%+v", res)
	}
	b.write("chroma.sqlite3", "offline")
	mine := b.files()
	b.store.Fail = nil
	head := ids(t, b)
	res, err := b.u.Snapshot(t.Context())
	if exitcode.Of(err) != exitcode.Conflict || !res.ID.IsBranch() {
		t.Fatalf("%+v, %v", res, err)
	}
	b.wantFiles(mine)
	if now := ids(t, b); !slices.Equal(now, head) {
		t.Errorf("list %v", now)
	}
	next := b.restart().mount(RowDiverged, Fork)
	if next.Branch != res.ID {
		t.Errorf("stored again: %s, then %s", res.ID, next.Branch)
	}
	b.restore(res.ID)
	b.wantFiles(mine)
}

// A branch in a store where nothing was published yet can be restored, also after a
// crash in the middle, and is published then.
func TestRestoreABranchOfAStoreWithoutSnapshots(t *testing.T) {
	for _, crash := range []bool{false, true} {
		store := memstore.New()
		a := newMachine(t, store).start()
		a.mount(RowNewAndEmpty, StartEmpty)
		b := newMachine(t, store).start()
		b.mount(RowNewAndEmpty, StartEmpty)
		a.write("chroma.sqlite3", "mine")
		mine := a.files()
		res, err := a.u.Snapshot(t.Context())
		if exitcode.Of(err) != exitcode.Conflict || !res.ID.IsBranch() {
			t.Fatalf("%+v, %v", res, err)
		}
		if all := b.branches(); !slices.Equal(all, []history.ID{res.ID}) {
			t.Errorf("branches %v", all)
		}
		var log bytes.Buffer
		c := newMachine(t, store).start()
		e := c.env()
		e.Log = slog.New(slog.NewTextHandler(&log, nil))
		if r, err := Run(t.Context(), e); err != nil || r.Action != StartEmpty || !strings.Contains(log.String(), string(res.ID)) {
			t.Errorf("an empty mount does not say that there is a branch: %+v, %v: %s", r, err, &log)
		}
		if crash {
			if err := (&runner{Env: b.env()}).setGoal(res.ID); err != nil {
				t.Fatal(err)
			}
			b.interrupt(res.ID)
			b.restart()
		} else {
			b.restore(res.ID)
			b.wantDirty(true)
		}
		b.wantFiles(mine)
		b.restart().mount(RowFirst, KeepAll)
		b.snapshot()
		fresh := newMachine(t, store).start()
		fresh.mount(RowEmpty, Restore)
		fresh.wantFiles(mine)
	}
}

// W2: two machines began with an empty store, and the other one published first: what
// this one holds was never published, and is a branch.
func TestNeverPublishedAndOvertaken(t *testing.T) {
	for _, noBackup := range []bool{false, true} {
		a := newMachine(t, memstore.New()).start()
		a.mount(RowNewAndEmpty, StartEmpty)
		a.write("chroma.sqlite3", "mine")
		a.put("unseen", "written beside the mount")
		mine := a.files()
		b := newMachine(t, a.store).start()
		b.mount(RowNewAndEmpty, StartEmpty)
		b.write("chroma.sqlite3", "theirs")
		b.snapshot()
		theirs := b.files()
		a.flags.NoLocalBackup = noBackup
		res := a.restart().mount(RowDiverged, Fork)
		a.wantFiles(theirs)
		a.wantDirty(false)
		if kept := a.backups(); noBackup != (len(kept) == 0) {
			t.Errorf("no backup: %v, backups %v", noBackup, kept)
		}
		a.restore(res.Branch)
		a.wantFiles(mine)
	}
}
