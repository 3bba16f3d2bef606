package uploader

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// Run stores branches as it does snapshots, with backoff, and rotates its own: none
// that is younger than a day, and never the newest few.
func TestRunStoresBranches(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.rival().snapshot()
		w.write("a", []byte("a"))
		cuts := run(t, w)
		time.Sleep(time.Hour)
		expect(t, cuts(), 30*time.Second)
		if n := w.log.count("publishes nothing any more"); n != 1 || !w.u.Status().Fenced {
			t.Errorf("said %d times", n)
		}
		for hour := range 60 {
			w.write("a", fmt.Appendf(nil, "%d", hour))
			time.Sleep(time.Hour)
		}
		ids := w.branches()
		if len(ids) < 24 || len(ids) > 26 {
			t.Errorf("%d branches after 60 hours", len(ids))
		}
		if got := w.filesOf(ids[len(ids)-1])["a"]; got != "59" && got != "58" {
			t.Errorf("the last holds %q", got)
		}
		for _, id := range ids {
			if time.Since(id.Time()) > history.BranchAge+2*time.Hour {
				t.Errorf("%s is still there", id)
			}
		}
		time.Sleep(10 * history.BranchAge) // nothing changes
		if got := w.branches(); !slices.Contains(got, ids[len(ids)-1]) {
			t.Errorf("the last branch is gone: %v", got)
		}
		w.write("a", []byte("last"))
		time.Sleep(2 * time.Hour)
		w.checkBranchTidy(keptBranches)
	})
}

func TestBranchesThatFailBackOff(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.rival().snapshot()
		var mu sync.Mutex
		tries, down := 0, true
		w.store.Fail = func(op memstore.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if down && op.Kind == "put" {
				tries++
				return objstore.ErrUnavailable
			}
			return nil
		}
		w.write("a", []byte("a"))
		run(t, w)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		mu.Lock()
		if day := int(24 * time.Hour / maxBackoff); tries < day || tries > 2*day+20 {
			t.Errorf("%d tries in a day", tries)
		}
		down = false
		mu.Unlock()
		if s := w.u.Status(); s.LastError == "" || s.FailingSince.IsZero() || !s.Fenced || s.Branch != nil {
			t.Errorf("status %+v", s)
		}
		time.Sleep(maxBackoff)
		synctest.Wait()
		if s := w.u.Status(); s.LastError != "" || !s.FailingSince.IsZero() || s.Branch == nil {
			t.Errorf("status %+v", s)
		}
		w.checkBranchTidy(1)
	})
}

// The writer that publishes rotates the branches of others, at its first snapshot on
// top of another and then once a day, but keeps the newest few of each.
func TestTheHolderRotatesBranches(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.write("a", []byte("a"))
		w.snapshot()
		r := w.rival()
		r.snapshot()
		var all []history.ID
		for i := range 5 {
			w.write("a", fmt.Appendf(nil, "%d", i))
			all = append(all, w.branch().ID)
			time.Sleep(time.Minute)
		}
		next := func(what string, want []history.ID) {
			t.Helper()
			r.write("theirs", []byte(what))
			r.snapshot()
			if got := w.branches(); !slices.Equal(got, want) {
				t.Errorf("%s: branches %v, want %v", what, got, want)
			}
		}
		next("young", all)
		time.Sleep(history.BranchAge - time.Hour)
		next("nearly a day old", all)
		time.Sleep(2 * time.Hour)
		next("a day old", all[2:])
		if p := r.j.State().Pending; len(p) > 0 {
			t.Errorf("pending %v", p)
		}
		time.Sleep(10 * history.BranchAge)
		next("old", all[2:])
		if asked := r.requests(func() { next("again", all[2:]) }); asked["list"] > 1+keptBranches { // those of the test
			t.Errorf("on the same day the store was asked %v", asked)
		}
	})
}
