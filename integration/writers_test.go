package integration

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/integration/harness"
)

// W1: of two mounts on one prefix the later one publishes. The earlier one keeps
// serving, publishes nothing and says so; what it holds is kept as branches, which any
// machine can restore (W2).
func TestTheLaterOfTwoWritersPublishes(t *testing.T) {
	harness.EachStore(t, func(t *testing.T, store *harness.Store) {
		left := newWorld(t, store)
		left.seed()
		leftMount := left.mount()
		leftMount.Snapshot()

		right := left.another()
		rightMount := right.mount()
		harness.Verify(t, right.point, seedDocuments())
		harness.Add(t, right.point, "docs", fixtureCount, 10)
		newest := rightMount.Snapshot().ID

		harness.Add(t, left.point, "mine", 0, 20)
		r := leftMount.TrySnapshot()
		if r.Code != 4 {
			t.Errorf("a fenced writer's snapshot exits with %d: %s", r.Code, r.Output())
		}
		branches := store.Branches()
		if len(branches) != 1 || !strings.Contains(r.Output(), branches[0]) {
			t.Fatalf("the store holds the branches %v; the fenced writer said %s", branches, r.Output())
		}
		harness.Verify(t, store.Restored(branches[0]), harness.Documents{"docs": fixtureCount, "mine": 20})
		if got := store.Newest(); got != newest {
			t.Errorf("the fenced writer published %s", got)
		}
		if r := harness.Chromafs(t, nil, "status", "--check", left.point); r.Code != 1 {
			t.Errorf("status --check of a fenced writer exits with %d", r.Code)
		}
		harness.Verify(t, left.point, harness.Documents{"docs": fixtureCount, "mine": 20})
		harness.Add(t, left.point, "mine", 20, 5)
		if code := leftMount.Stop(); code != 4 {
			t.Errorf("a fenced writer that left changes behind ended with %d: %s", code, leftMount.Log())
		}
		last := store.Branches()[1]
		if !strings.Contains(leftMount.Log(), "chromafs restore --at "+last) {
			t.Errorf("it did not say how to restore %s: %s", last, leftMount.Log())
		}
		rightMount.Unmount()
		store.CheckWhole()

		left.mountOnce()
		harness.Verify(t, left.dir, newestDocuments())
		mine := harness.Documents{"docs": fixtureCount, "mine": 25}
		harness.Verify(t, left.oneBackup(), mine)

		third := left.another()
		harness.Must(t, 0, store, "restore", "--at", last, third.dir)
		harness.Verify(t, third.dir, mine)
		third.mountOnce()
		harness.Verify(t, store.Restored(store.Newest()), mine)
		store.CheckWhole()
	})
}

// As an ordinary user, with fusermount3. Nobody else may look into the mount, so
// the command of the mount does it.
func TestAsAnOrdinaryUser(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	o := w.options()
	if os.Geteuid() == 0 {
		o.User = 65534
		openDevice(t)
	}
	image := newWorld(t, w.store) // what the user's program puts on the mount
	image.seed()
	w.ownedBy(o.User, w.dir, w.point, w.store.Folder, filepath.Join(filepath.Dir(w.dir), "run"), image.dir)
	database := filepath.Join(w.point, "chroma.sqlite3")
	o.Command = []string{"sh", "-ec", `cp -r "$0"/. "$1"; sqlite3 "$1/chroma.sqlite3" "CREATE TABLE made_by_a_user (x)"`, image.dir, w.point}
	harness.RunToEnd(t, o, 0)

	w.lose()
	w.ownedBy(o.User, w.dir)
	o.Command = []string{"sqlite3", "-bail", database, "SELECT * FROM made_by_a_user"}
	harness.RunToEnd(t, o, 0)
	harness.Verify(t, w.dir, seedDocuments())
}

// ownedBy makes folders that a user can reach and owns, with all that is in them.
func (w *world) ownedBy(user uint32, folders ...string) {
	w.t.Helper()
	for _, folder := range folders {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			w.t.Fatal(err)
		}
		if user == 0 {
			continue
		}
		reachable(w.t, folder)
		err := filepath.WalkDir(folder, func(name string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(name, int(user), int(user)))
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// openDevice lets everybody use /dev/fuse until the test ends, as every distribution
// does; some containers do not.
func openDevice(t testing.TB) {
	t.Helper()
	const device = "/dev/fuse"
	info, err := os.Stat(device)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm()&0o666 == 0o666 {
		return
	}
	if err := os.Chmod(device, 0o666); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Chmod(device, info.Mode().Perm()); err != nil {
			t.Error(err)
		}
	})
}

// reachable lets every user pass through the folders above path that a test made.
func reachable(t testing.TB, path string) {
	t.Helper()
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, info.Mode().Perm()|0o055); err != nil {
			t.Fatal(err)
		}
	}
}

// Credentials appear in no log, error or process list.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewS3Store(t))
	w.seed()
	m := w.mount("--log-level", "debug")
	m.Snapshot()
	cmdline := readFile(t, m.Proc("cmdline"))
	r := harness.Must(t, 0, nil, "status", "--json", w.point)
	m.Unmount()
	for where, text := range map[string]string{"the log": m.Log(), "the process list": cmdline, "status": r.Output()} {
		if strings.Contains(text, w.store.Secret) {
			t.Errorf("the secret is in %s", where)
		}
	}
	if !strings.Contains(m.Log(), w.store.Newest()) {
		t.Errorf("the log does not name the snapshot: %s", m.Log())
	}
}
