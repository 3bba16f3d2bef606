package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/integration/harness"
)

// killAfter kills the daemon at the n-th time that a failpoint is reached.
func killAfter(failpoint string, n int) string { return fmt.Sprintf("%s=kill+%d", failpoint, n-1) }

// publishSteps are the failpoints of publishing a snapshot, in their order. The
// takeover at mount writes an object too, so those of the store come later.
var publishSteps = []struct {
	name string
	nth  int
}{
	{"fusefs/freeze", 1}, {"uploader/after-cut", 1}, {"uploader/pending", 1},
	{"objstore/file-written", 3}, {"objstore/file-renamed", 3}, {"uploader/stored-file", 1},
	{"uploader/objects", 1}, {"uploader/manifest", 1}, {"uploader/intent", 1}, {"uploader/published", 1},
	{"uploader/acknowledged", 1}, {"history/refresh-current", 1}, {"uploader/current", 1},
	{"history/remove", 1}, {"uploader/removed", 1},
}

// A daemon that is killed at any step of publishing leaves the snapshot before or
// the snapshot after (S2, S3); the next mount keeps the local copy and what was
// written to it later, and finishes or collects the rest (J2, J3).
func TestKilledDuringASnapshot(t *testing.T) {
	t.Parallel()
	for _, step := range publishSteps {
		t.Run(strings.ReplaceAll(step.name, "/", "-"), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, harness.NewFileStore(t))
			w.seed()
			w.publish()
			w.advance()
			o := w.options("--keep", "1") // so that there is something to remove
			o.Failpoints = killAfter(step.name, step.nth)
			m := harness.Launch(t, o) // a mount with something dirty begins at once
			m.WaitHit(step.name)
			m.Kill()

			// Another machine finds a whole snapshot.
			other := w.another()
			other.mountOnce()
			found := harness.Inspect(t, other.dir).Collections["docs"].Count
			if found != fixtureCount && found != fixtureCount+10 {
				t.Errorf("another machine restored %d documents", found)
			}

			w.add("docs", fixtureCount+10, 5)
			want := harness.Documents{"docs": fixtureCount + 15}
			m = w.mount()
			harness.Verify(t, w.point, want)
			m.Snapshot()
			m.Unmount()
			if b := w.backups(); len(b) != 0 {
				t.Errorf("the local copy was taken for a diverged one: %v", b)
			}
			w.store.CheckWhole()
			harness.Verify(t, w.store.Restored(w.store.Newest()), want)
			harness.Verify(t, w.store.Current(), want)
		})
	}
}

// restoreSteps are the failpoints of a restore, in their order.
var restoreSteps = []struct {
	name      string
	replacing bool // reached only where there is a local copy
}{
	{"restore-file", false}, {"restore-staged", false}, {"restore-intent-retire", false}, {"restore-retire", false},
	{"restore-retire-entry", true}, {"restore-install", false}, {"restore-install-entry", false}, {"restore-installed", false},
}

// A daemon that is killed at any step of a restore never serves half of one, and
// the old copy stays whole until the new one is (R2).
func TestKilledDuringARestore(t *testing.T) {
	t.Parallel()
	for _, step := range restoreSteps {
		t.Run(step.name, func(t *testing.T) {
			t.Parallel()
			if !step.replacing {
				w := older(t, harness.NewFileStore(t))
				w.lose()
				w.killRestore(step.name)
				w.recovered()
				w.store.CheckWhole()
			}
			w := older(t, harness.NewFileStore(t))
			w.killRestore(step.name)
			w.recovered()
			harness.Verify(t, w.oneBackup(), seedDocuments())

			w = older(t, harness.NewFileStore(t))
			w.killRestore(step.name, "--no-local-backup")
			w.recovered("--no-local-backup")
			if b := w.backups(); len(b) != 0 {
				t.Errorf("local backups: %v", b)
			}
		})
	}
}

// recovered checks that the next mount serves the newest snapshot.
func (w *world) recovered(flags ...string) {
	w.t.Helper()
	m := w.mount(flags...)
	harness.Verify(w.t, w.point, newestDocuments())
	m.Unmount()
}

func (w *world) killRestore(step string, flags ...string) {
	w.t.Helper()
	o := w.options(flags...)
	o.Failpoints = "history/" + step + "=kill"
	m := harness.Launch(w.t, o)
	m.WaitHit("history/" + step)
	m.Kill()
}

// An interrupted restore is finished before anything is served; without a store
// that cannot be, and then even --offline refuses.
func TestOfflineRefusesAnUnfinishedRestore(t *testing.T) {
	t.Parallel()
	store, gate := harness.Behind(t, harness.NewS3Store(t))
	w := older(t, store)
	w.killRestore("restore-install-entry")
	gate.Set(harness.Dead)
	r := harness.RunToEnd(t, w.options("--offline", "--store-timeout", "1s"), 3)
	harness.Explain(t, r, "whole")
	gate.Set(harness.None)
	m := w.mount()
	harness.Verify(t, w.point, newestDocuments())
	m.Unmount()
}
