package integration

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/integration/harness"
)

// patience is the --handoff-timeout of mounts that ask; others in these tests ask
// nobody for long.
const patience = 90 * time.Second

func (w *world) asks() harness.Options { return w.options("--handoff-timeout", patience.String()) }

// instance is a machine with a mount and a ChromaDB on it.
type instance struct {
	*world
	mount  *harness.Mount
	server *harness.Server
}

func (w *world) instance() *instance {
	w.t.Helper()
	m := harness.Start(w.t, w.asks())
	return &instance{w, m, harness.StartServer(w.t, w.point)}
}

// rolled is a rolling deploy: the next instance starts while the old one serves and is
// written to, and answers with everything that was acknowledged before it was started.
// The old one serves on. It returns what the next one holds.
func rolled(t *testing.T) (old, next *instance, held harness.Documents) {
	t.Helper()
	w := newWorld(t, harness.NewS3Store(t))
	w.seed()
	old = w.instance()
	busy := startLoad(old.server, harness.Documents{"first": 0, "second": 0})
	t.Cleanup(busy.wg.Wait)
	t.Cleanup(old.server.Kill)
	harness.Eventually(t, time.Minute, "the old instance is written to", func() bool { return busy.total() >= 400 })
	before := busy.counts()
	before["docs"] = fixtureCount

	next = w.another().instance()
	held = next.server.Verify(before)

	status := old.mount.Status()
	if status["yielded"] != true || !strings.Contains(old.mount.Log(), "this mount serves on") {
		t.Errorf("the old instance did not hand over: %v\n%s", status["lease"], old.mount.Log())
	}
	if lease, ok := next.mount.Status()["lease"].(map[string]any); !ok || lease["state"] != "held" {
		t.Errorf("the next instance does not hold the store: %v", lease)
	}
	during := busy.total()
	harness.Eventually(t, time.Minute, "the old instance serves on", func() bool { return busy.total() > during })
	old.server.Add("late", 0, 50)
	old.server.Verify(harness.Documents{"late": 50})
	return old, next, held
}

// DESIGN §8: the platform stops the old instance only when the new one answers.
func TestRollingDeploy(t *testing.T) {
	t.Parallel()
	old, next, held := rolled(t)
	next.server.Add("next", 0, 50)
	newest := next.mount.Snapshot().ID
	old.server.Stop()
	if code := old.mount.Stop(); code != 0 && code != 4 {
		t.Errorf("the old instance exits with %d: %s", code, old.mount.Log())
	}
	if got := old.store.Newest(); got != newest {
		t.Errorf("the old instance published %s after it yielded", got)
	}
	next.server.Stop()
	next.mount.Unmount()
	held["next"] = 50
	harness.Verify(t, old.store.Restored(old.store.Newest()), held)
	harness.Must(t, 0, old.store, "history", "verify", old.store.Newest())
}

// The platform stops the old instance as it starts the new one: the old one's final
// snapshot is the hand-over, and nothing waits for a timeout.
func TestStoppedAndStartedAtTheSameTime(t *testing.T) {
	t.Parallel()
	old := newWorld(t, harness.NewS3Store(t))
	old.seed()
	oldMount := harness.Start(t, old.asks())
	harness.Add(t, old.point, "more", 0, 20)
	next := old.another()
	newMount := harness.Launch(t, next.asks())
	if code := oldMount.Stop(); code != 0 {
		t.Errorf("the old instance exits with %d: %s", code, oldMount.Log())
	}
	newMount.WaitReady()
	harness.Verify(t, next.point, harness.Documents{"docs": fixtureCount, "more": 20})
	for _, word := range []string{"taken for dead", "did not yield in time"} {
		if strings.Contains(newMount.Log(), word) {
			t.Errorf("it waited in vain: %s", newMount.Log())
		}
	}
}

// A killed holder does not answer: another machine waits for 15 s, the same one not at
// all. A clean stop leaves nobody to wait for.
func TestDeadHolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	w.seed()
	m := harness.Start(t, w.asks())
	m.Snapshot()
	m.Kill()

	m = harness.Start(t, w.asks())
	if strings.Contains(m.Log(), "asked it to hand over") {
		t.Errorf("a restart on the same DIR asked its own past: %s", m.Log())
	}
	m.Kill()

	other := w.another()
	start := time.Now()
	otherMount := harness.Start(t, other.asks())
	if took := time.Since(start); took < 15*time.Second || took > 25*time.Second {
		t.Errorf("the wait for a dead holder took %v", took)
	}
	harness.Verify(t, other.point, seedDocuments())
	otherMount.Unmount()

	third := w.another()
	thirdMount := harness.Start(t, third.asks())
	if strings.Contains(thirdMount.Log(), "asked it to hand over") {
		t.Errorf("a mount after a clean stop asked: %s", thirdMount.Log())
	}
	thirdMount.Unmount()
}

// A holder that is stopped for a while is as good as dead. When it wakes up it finds
// out by itself, publishes nothing, and leaves `current` to its successor.
func TestStoppedHolderWakesUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	w.seed()
	o := w.asks()
	o.Lease = "1s,3s"
	m := harness.Start(t, o)
	m.Snapshot()
	harness.Add(t, w.point, "mine", 0, 20)
	m.Signal(unix.SIGSTOP)

	other := w.another()
	o = other.asks()
	o.Lease = "1s,3s"
	otherMount := harness.Start(t, o)
	harness.Verify(t, other.point, seedDocuments())
	harness.Add(t, other.point, "docs", fixtureCount, 10)
	newest := otherMount.Snapshot().ID
	m.Signal(unix.SIGCONT)
	harness.Eventually(t, 30*time.Second, "the one that woke up knows that it was left behind", func() bool {
		return m.Status()["fenced"] == true
	})
	harness.Verify(t, w.point, harness.Documents{"docs": fixtureCount, "mine": 20})
	if code := m.Stop(); code != 0 && code != 4 {
		t.Errorf("it exits with %d: %s", code, m.Log())
	}
	if got := w.store.Newest(); got != newest {
		t.Errorf("it published %s", got)
	}
	otherMount.Unmount()
	current := w.store.Current()
	harness.Verify(t, current, newestDocuments())
	if !harness.Exists(t, filepath.Join(w.store.Folder, "lease.json")) {
		t.Error("there is no lease")
	}
}
