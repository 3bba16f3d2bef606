package integration

import (
	"path/filepath"
	"testing"

	"github.com/chromafs/chromafs/integration/harness"
)

// An interrupted restore is finished before anything is served; without a store
// that cannot be, and then even --offline refuses.
func TestOfflineRefusesAnUnfinishedRestore(t *testing.T) {
	t.Parallel()
	store, gate := harness.Behind(t, harness.NewS3Store(t))
	w := older(t, store)
	o := w.options()
	o.Failpoints = harness.KillAt("history/restore-install-entry", 1)
	harness.Launch(t, o).Died("history/restore-install-entry")
	gate.Set(harness.Dead)
	r := harness.RunToEnd(t, w.options("--offline", "--store-timeout", "1s"), 3)
	harness.Explain(t, r, "whole")
	gate.Set(harness.None)
	m := w.mount()
	harness.Verify(t, w.point, newestDocuments())
	m.Unmount()
}

// F5: a daemon that is killed in its self-test leaves a mount below scratch, and the next
// one clears it away.
func TestKilledInTheSelftest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	w.seed()
	o := w.options()
	o.Failpoints = harness.KillAt("fusefs/selftest-write", 1)
	harness.Launch(t, o).Died("fusefs/selftest-write")
	w.mountOnce()
	if left := harness.Entries(t, filepath.Join(w.dir, ".chromafs", "scratch")); len(left) > 0 {
		t.Errorf("scratch holds %v", left)
	}
}
