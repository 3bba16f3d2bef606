package integration

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/integration/harness"
)

// The kill matrix: at every failpoint of publishing, rotating, taking over and
// restoring, a process is killed. What it left must be the state before or the one
// after, and the next process must put everything in order: DIR holds what it should,
// the next snapshot succeeds, and nothing is left, in the store or on disk.

// deadly is a failpoint, and where it is reached.
type deadly struct {
	at    string
	scene func(k *killed)
	nth   int  // the time at which the process dies; 0: the first
	s3    bool // also with an S3 server
}

// killMatrix has an entry for every failpoint of the source that is not in elsewhere:
// TestNoFailpointIsForgotten holds that. One that is reached in several ways may have
// several.
var killMatrix = []deadly{
	{at: "uploader/takeover", scene: publishing},
	{at: "uploader/taken-over", scene: publishing},
	{at: "fusefs/freeze", scene: publishing},
	{at: "fusefs/frozen", scene: publishing},
	{at: "uploader/after-cut", scene: publishing},
	{at: "uploader/pending", scene: publishing},
	{at: "objstore/file-written", scene: publishing, nth: 3}, // the takeover writes an object too
	{at: "objstore/file-renamed", scene: publishing, nth: 3},
	{at: "uploader/stored-part", scene: publishing, s3: true},
	{at: "uploader/stored-file", scene: publishing, nth: 2},
	{at: "uploader/objects", scene: publishing},
	{at: "uploader/manifest", scene: publishing, s3: true},
	{at: "uploader/intent", scene: publishing, s3: true},
	{at: "uploader/published", scene: publishing, s3: true},
	{at: "uploader/acknowledged", scene: publishing},
	{at: "history/refresh-current", scene: publishing, nth: 2},
	{at: "uploader/current", scene: publishing},
	{at: "history/remove", scene: publishing},
	{at: "uploader/removed", scene: publishing, s3: true},
	{at: "history/clear-swapped", scene: clearing},

	// The journal's steps of a publication, each before and after its transaction.
	{at: "journal/set-epoch-before", scene: publishingOffline},
	{at: "journal/set-epoch-after", scene: publishingOffline},
	{at: "journal/add-pending-before", scene: publishingOffline},
	{at: "journal/add-pending-after", scene: publishingOffline},
	{at: "journal/set-intent-before", scene: publishingOffline},
	{at: "journal/set-intent-after", scene: publishingOffline},
	{at: "journal/add-pending-after", scene: publishingOffline, nth: 2}, // the one that rotation takes off
	{at: "journal/acknowledge-before", scene: publishingOffline},
	{at: "journal/acknowledge-after", scene: publishingOffline},
	{at: "journal/drop-pending-before", scene: publishingOffline},
	{at: "journal/drop-pending-after", scene: publishingOffline},
	{at: "journal/clear-intent-before", scene: publishingAgain},
	{at: "journal/clear-intent-after", scene: publishingAgain},
	{at: "journal/rebase-before", scene: updating},
	{at: "journal/rebase-after", scene: updating},

	{at: "history/restore-fetch", scene: hydrating, s3: true},
	{at: "history/restore-file", scene: updating},
	{at: "history/restore-file", scene: hydrating, nth: 2},
	{at: "history/restore-staged", scene: updating},
	{at: "history/restore-manifest", scene: updating},
	{at: "history/restore-intent-retire", scene: updating},
	{at: "history/restore-retire", scene: updating},
	{at: "history/restore-retire-entry", scene: updating, s3: true},
	{at: "history/restore-intent-install", scene: updating},
	{at: "history/restore-install", scene: updating},
	{at: "history/restore-install-entry", scene: updating, nth: 2},
	{at: "history/restore-install-entry", scene: hydrating},
	{at: "history/restore-retire-entry", scene: updatingBare},
	{at: "history/restore-install-entry", scene: updatingBare},
	{at: "history/restore-installed", scene: updatingBare},
	{at: "history/restore-intent-installed", scene: updating},
	{at: "history/restore-installed", scene: updating},
	{at: "history/restore-intent-in-place", scene: updatingInPlace},
	{at: "history/restore-in-place", scene: updatingInPlace},
	{at: "history/restore-clear-entry", scene: updatingInPlace},
	{at: "history/restore-file", scene: updatingInPlace, nth: 2},
	{at: "fusefs/undo", scene: persisting},
	{at: "fusefs/recover", scene: recovering},
	{at: "reconcile/goal", scene: goingBack},
	{at: "reconcile/restored", scene: goingBack},
	{at: "reconcile/restored", scene: updating},
	{at: "reconcile/rebased", scene: goingBack},
	{at: "reconcile/rebased", scene: updating, s3: true},
}

// elsewhere are failpoints that no publication, rotation, takeover or restore passes,
// and what kills or fails there.
var elsewhere = map[string]string{
	"uploader/branch-pending":  "TestKilledWhileABranchIsStored",
	"uploader/branch-objects":  "TestKilledWhileABranchIsStored",
	"uploader/branch-manifest": "TestKilledWhileABranchIsStored",
	"uploader/branch-kept":     "TestKilledWhileABranchIsStored",
	"reconcile/forked":         "TestKilledWhileABranchIsStored",
	"fusefs/barrier":           "TestPowerCut",
	"fusefs/sync":              "TestKilledUnderLoad",
	"fusefs/write":             "TestKilledUnderLoad, TestKilledWhilePushing",
	"fusefs/write/*":           "TestKilledUnderLoad, one for each file's name",
	"fusefs/truncated/*":       "integration/proof stops there; between two others of a persist",
	"fusefs/push":              "TestKilledWhilePushing",
	"fusefs/selftest-write":    "TestKilledInTheSelftest",
	"journal/mark-before":      "TestKilledUnderLoad, TestJ3Killed",
	"journal/mark-after":       "TestKilledUnderLoad, TestJ3Killed",
	"journal/scan-before":      "TestFailNthStep; what a scan marks the next one finds",
	"journal/scan-after":       "TestFailNthStep",
	"journal/stop-before":      "TestFailNthStep; without it the next mount looks at every file",
	"journal/stop-after":       "TestFailNthStep",
	"journal/forget-before":    "TestFailNthStep; DIR and store are both empty",
	"journal/forget-after":     "TestFailNthStep",
	"journal/commit":           "TestFailNthStep: between what a transaction writes and its sync",
	"journal/reserve-before":   "TestFailNthStep",
	"journal/reserve-after":    "TestFailNthStep",
	"journal/rewrite-create":   "TestFailNthStep: a new file after a failed sync",
	"journal/rewrite-commit":   "TestFailNthStep",
	"journal/rewrite-rename":   "TestFailNthStep",
	"journal/rewrite-sync":     "TestFailNthStep",
}

// killed is a world in which a process is to die, and what is known of it.
type killed struct {
	*world
	deadly
	flags []string
	dirs  []map[string]string // what DIR may hold afterwards, the likeliest first
	again func()              // what a person does next, before the mount; nil: nothing
	prune bool                // who died left litter that no journal knows of
	old   map[string]string   // what the one local backup holds (R2); nil: there is none
}

func (k *killed) time() int { return max(k.nth, 1) }

func TestKillMatrix(t *testing.T) {
	t.Parallel()
	for i, d := range killMatrix {
		name := fmt.Sprintf("%02d %s", i, strings.ReplaceAll(d.at, "/", "-"))
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := &killed{world: newWorld(t, harness.NewFileStore(t)), deadly: d}
			d.scene(k)
			k.recovers()
		})
		if d.s3 {
			t.Run(name+" on S3", func(t *testing.T) {
				t.Parallel()
				k := &killed{world: newWorld(t, harness.NewS3Store(t)), deadly: d}
				d.scene(k)
				k.recovers()
			})
		}
	}
}

const bigFile = 8*mib + 100_000 // two parts

// first makes a disk and publishes it; second changes it: the second part of the big
// file is another, one file goes, one comes, one changes.
func (k *killed) first() {
	k.t.Helper()
	k.seed()
	big := bytes.Repeat([]byte("chromafs"), bigFile/8)
	writeFile(k.t, filepath.Join(k.dir, "big"), string(big))
	for name, content := range map[string]string{"goes": "it goes", "changes": "before"} {
		writeFile(k.t, filepath.Join(k.dir, name), content)
	}
	k.publish()
}

func (k *killed) second() {
	k.t.Helper()
	k.advance()
	f, err := os.OpenFile(filepath.Join(k.dir, "big"), os.O_WRONLY, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("changed"), bigFile-1000); err != nil {
		k.t.Fatal(err)
	}
	for name, content := range map[string]string{"comes": "it came", "changes": "after"} {
		writeFile(k.t, filepath.Join(k.dir, name), content)
	}
	remove(k.t, filepath.Join(k.dir, "goes"))
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// publishing: a mount with something dirty takes a snapshot at once, which rotates.
func publishing(k *killed) {
	k.first()
	k.second()
	k.flags = []string{"--keep", "1"}
	k.dirs = []map[string]string{filesOf(k.t, k.dir)}
	k.mountDies()
}

// publishingOffline: the same by a command, without a mount.
func publishingOffline(k *killed) {
	k.first()
	k.second()
	k.flags = []string{"--keep", "1"}
	k.dirs = []map[string]string{filesOf(k.t, k.dir)}
	harness.Killed(k.t, k.at, k.time(), k.store, "snapshot", "--keep", "1", k.dir)
}

// publishingAgain: and one that another was killed before, about to publish.
func publishingAgain(k *killed) {
	k.first()
	k.second()
	k.flags = []string{"--keep", "1"}
	k.dirs = []map[string]string{filesOf(k.t, k.dir)}
	harness.Killed(k.t, "uploader/intent", 1, k.store, "snapshot", "--keep", "1", k.dir)
	k.mountDies()
}

// clearing: a command that takes all but the newest off the list.
func clearing(k *killed) {
	k.first()
	k.second()
	k.publish()
	k.dirs = []map[string]string{filesOf(k.t, k.dir)}
	k.prune = true
	harness.Killed(k.t, k.at, k.time(), k.store, "history", "clear", "--yes")
}

// hydrating: a mount on an empty disk brings the newest snapshot.
func hydrating(k *killed) {
	k.first()
	k.dirs = []map[string]string{filesOf(k.t, k.dir)}
	k.lose()
	k.mountDies()
}

// updating: a mount on a disk that is one snapshot old.
func updating(k *killed) {
	k.behind(func(*world) {})
	k.old = filesOf(k.t, k.dir)
	k.mountDies()
}

// updatingBare: that keeps no backup of it.
func updatingBare(k *killed) {
	k.behind(func(*world) {})
	k.flags = []string{"--no-local-backup"}
	k.mountDies()
}

// updatingInPlace: where there is no room for two copies.
func updatingInPlace(k *killed) {
	k.behind(func(w *world) { w.onSmallDisk("16m") })
	k.mountDies()
}

// behind makes a second machine, whose disk is one snapshot old, the world.
func (k *killed) behind(prepare func(*world)) {
	k.t.Helper()
	k.first()
	b := k.another()
	prepare(b)
	harness.Must(k.t, 0, k.store, "sync", b.dir)
	k.second()
	k.publish()
	k.dirs = []map[string]string{filesOf(k.t, k.dir)}
	k.world = b
}

// persisting: ChromaDB overwrites the files of an index, which are as before once the
// undo log was applied.
func persisting(k *killed) {
	k.first()
	k.dirs = []map[string]string{filesOf(k.t, k.dir)}
	k.persistDies(k.at)
}

// recovering: and the mount that applies it is killed as well.
func recovering(k *killed) {
	k.first()
	k.dirs = []map[string]string{filesOf(k.t, k.dir)}
	k.persistDies("fusefs/write/" + pickle)
	k.mountDies()
}

// persistDies begins to persist an index on a mount that dies before it is done.
func (k *killed) persistDies(at string) {
	k.t.Helper()
	o := k.options()
	o.Failpoints = harness.KillAt(at, 1)
	m := harness.Start(k.t, o)
	pickles, err := filepath.Glob(filepath.Join(k.world.point, "*", pickle))
	if err != nil || len(pickles) != 1 {
		k.t.Fatalf("segments: %v, %v", pickles, err)
	}
	bin, err := os.OpenFile(filepath.Join(filepath.Dir(pickles[0]), "data_level0.bin"), os.O_WRONLY, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	defer bin.Close()
	if _, err := bin.WriteAt(bytes.Repeat([]byte("new"), 10_000), 100); err != nil {
		k.t.Fatal(err)
	}
	_ = os.WriteFile(pickles[0], []byte("half of a pickle"), 0o644) // the mount dies under it
	m.Died(at)
}

// goingBack: an older snapshot is restored on request.
func goingBack(k *killed) {
	k.first()
	old := k.store.Newest()
	k.dirs = []map[string]string{filesOf(k.t, k.dir)}
	k.second()
	k.publish()
	harness.Killed(k.t, k.at, k.time(), k.store, "restore", "--at", old, k.dir)
	k.again = func() { harness.Must(k.t, 0, k.store, "restore", "--at", old, k.dir) }
}

func (k *killed) mountDies() {
	k.t.Helper()
	o := k.options(k.flags...)
	o.Failpoints = harness.KillAt(k.at, k.time())
	harness.Launch(k.t, o).Died(k.at)
}

// recovers checks what the dead process left, and that the next ones put everything
// in order.
func (k *killed) recovers() {
	k.t.Helper()
	for _, id := range k.store.Head().History {
		harness.Must(k.t, 0, k.store, "history", "verify", id)
	}
	if k.again != nil {
		k.again()
	}
	m := k.mount(k.flags...)
	want := k.dirs[0]
	k.same("the mount", filesOf(k.t, k.point), want)
	writeFile(k.t, filepath.Join(k.point, "later"), "written after the kill")
	want = maps.Clone(want)
	want["later"] = "written after the kill"
	m.Snapshot()
	m.Unmount()
	k.same("DIR", filesOf(k.t, k.dir), want)
	k.same("the snapshot", filesOf(k.t, k.store.Restored(k.store.Newest())), withManifest(k.t, k.store, want))
	if k.old != nil {
		k.same("the backup", filesOf(k.t, k.oneBackup()), k.old)
	} else if b := k.backups(); len(b) > 0 && k.again == nil {
		k.t.Errorf("local backups: %v", b)
	}
	if k.prune {
		clock := filepath.Join(k.t.TempDir(), "clock") // litter is left alone for a day
		writeFile(k.t, clock, "25h")
		if r := harness.ChromafsAt(k.t, clock, k.store, "history", "prune"); r.Code != 0 {
			k.t.Errorf("history prune: %s", r.Output())
		}
	}
	k.store.CheckWhole()
	k.store.CheckTidy()
	for _, name := range harness.Entries(k.t, filepath.Join(k.dir, ".chromafs", "scratch")) {
		k.t.Errorf("left in scratch: %s", name)
	}
	if harness.Exists(k.t, filepath.Join(k.dir, ".chromafs", "restore.json")) {
		k.t.Error("a restore is still under way")
	}
}

// withManifest adds what a snapshot's folder holds besides the files.
func withManifest(t testing.TB, s *harness.Store, files map[string]string) map[string]string {
	t.Helper()
	all := maps.Clone(files)
	all["manifest.json"] = readFile(t, filepath.Join(s.Snapshot(s.Newest()), "manifest.json"))
	return all
}

// filesOf reads the files of a tree.
func filesOf(t testing.TB, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	walk(t, root, func(path string, info os.FileInfo) {
		if info.Mode().IsRegular() {
			files[path] = readFile(t, filepath.Join(root, path))
		}
	})
	return files
}

func (k *killed) same(what string, got, want map[string]string) {
	k.t.Helper()
	for path := range want {
		if data, ok := got[path]; !ok || data != want[path] {
			k.t.Errorf("%s: %s is missing or differs", what, path)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			k.t.Errorf("%s: %s should not be there", what, path)
		}
	}
	if k.t.Failed() {
		k.t.FailNow()
	}
}
