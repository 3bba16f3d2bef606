package uploader

import (
	"context"
	"errors"
	"testing"

	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// S2: an upload that holds more parts than a file has now is not gone on with, whatever
// else fits: what is completed is the file, and no byte more.
func TestUploadsOfLongerFilesAreLeftAlone(t *testing.T) {
	for name, now := range map[string]string{"it was truncated": "big", "another file begins alike": "other"} {
		t.Run(name, func(t *testing.T) {
			w, _ := resumeWorld(t)
			w.write("big", slabs("1", "2", "3", "end")[:3*part])
			w.store.Fail = func(op memstore.Op) error {
				if op.Kind == "complete" {
					return errInjected
				}
				return nil
			}
			if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, errInjected) {
				t.Fatal(err)
			}
			w.store.Fail = nil
			w.remove("big")
			w.write(now, slabs("1", "2", "end")[:2*part])
			r := w.snapshot()
			if report, err := w.catalog().Verify(t.Context(), r.ID); err != nil {
				t.Errorf("%v: %+v", err, report)
			}
			w.checkTidy()
		})
	}
}

// A branch is refused and made ready for as a snapshot is: no hollow file fills the
// bucket by that way, and no store is written to before it was tried.
func TestBranchesAreCheckedAsSnapshotsAre(t *testing.T) {
	w := newWorld(t).open().takeover()
	w.write("a", []byte("1"))
	w.snapshot()
	w.rival().snapshot()
	w.write("hollow", sparse(3, 0))
	w.u.o.MaxSparse = part
	var hollow *SparseError
	if _, err := w.u.Snapshot(t.Context()); !errors.As(err, &hollow) || len(w.branches()) > 0 {
		t.Errorf("a hollow file: %v, branches %v", err, w.branches())
	}
	w.u.o.MaxSparse = 0
	w.u.o.Ready = func(context.Context) error { return errInjected }
	if _, err := w.u.Snapshot(t.Context()); !errors.Is(err, errInjected) || len(w.branches()) > 0 {
		t.Errorf("a store that was not tried: %v, branches %v", err, w.branches())
	}
	w.u.o.Ready = nil
	if _, err := w.u.Snapshot(t.Context()); len(w.branches()) != 1 {
		t.Errorf("%v, branches %v", err, w.branches())
	}
}
