package integration

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/integration/harness"
)

// W2: a fenced writer that is killed at any step of storing a branch leaves it
// complete, or litter that its next mount collects; what it held is one branch then,
// also where that mount is killed in its turn before it replaces the local copy.
func TestKilledWhileABranchIsStored(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"branch-pending", "stored-file", "branch-objects", "branch-manifest", "branch-kept"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, harness.NewFileStore(t))
			w.mountOnce() // the takeover of an empty store
			writeFile(t, filepath.Join(w.dir, "shared"), "1")
			writeFile(t, filepath.Join(w.dir, "same"), "the same")
			w.publish()
			o := w.options()
			o.Failpoints = harness.KillAt("uploader/"+step, 1)
			left := harness.Start(t, o)

			right := w.another()
			rightMount := right.mount()
			writeFile(t, filepath.Join(right.point, "shared"), "2")
			newest := rightMount.Snapshot().ID
			rightMount.Unmount()

			writeFile(t, filepath.Join(w.point, "shared"), "mine")
			writeFile(t, filepath.Join(w.point, "also"), "mine")
			left.TrySnapshot()
			left.WaitHit("uploader/" + step)
			left.Kill()

			o.Failpoints = "reconcile/forked=kill"
			again := harness.Launch(t, o)
			again.WaitHit("reconcile/forked")
			again.Kill()
			if got := readFile(t, filepath.Join(w.dir, "shared")); got != "mine" {
				t.Errorf("the local copy holds %q before it may be replaced", got)
			}
			w.mountOnce("--no-local-backup")
			if got := readFile(t, filepath.Join(w.dir, "shared")); got != "2" || w.store.Newest() != newest {
				t.Errorf("serves %q, the newest is %s and not %s", got, w.store.Newest(), newest)
			}
			branches := w.store.Branches()
			if len(branches) != 1 {
				t.Fatalf("branches %v", branches)
			}
			mine := w.store.Restored(branches[0])
			for name, want := range map[string]string{"shared": "mine", "also": "mine", "same": "the same"} {
				if got := readFile(t, filepath.Join(mine, name)); got != want {
					t.Errorf("the branch holds %q in %s, want %q", got, name, want)
				}
			}
			w.store.CheckWhole()

			// A snapshot of the writer that it is again leaves the branch alone.
			m := w.mount()
			writeFile(t, filepath.Join(w.point, "shared"), "3")
			m.Snapshot()
			m.Unmount()
			if got := w.store.Branches(); !slices.Equal(got, branches) || strings.Contains(w.store.Newest(), "branch") {
				t.Errorf("branches %v, were %v", got, branches)
			}
			w.store.CheckWhole()
		})
	}
}
