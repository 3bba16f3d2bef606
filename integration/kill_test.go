package integration

import (
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

// load adds documents to three collections until the server fails, and counts what
// was acknowledged.
type load struct {
	server *harness.Server
	wg     sync.WaitGroup

	mu           sync.Mutex
	acknowledged harness.Documents // guarded by mu
}

func startLoad(server *harness.Server, from harness.Documents) *load {
	l := &load{server: server, acknowledged: maps.Clone(from)}
	for name, n := range from {
		l.wg.Go(func() {
			const batch = 20
			for ; l.server.TryAdd(name, n, batch) == nil; n += batch {
				l.mu.Lock()
				l.acknowledged[name] = n + batch
				l.mu.Unlock()
			}
		})
	}
	return l
}

// so far.
func (l *load) counts() harness.Documents {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.acknowledged)
}

func (l *load) total() (n int) {
	for _, count := range l.counts() {
		n += count
	}
	return n
}

// killRounds is how often the daemon of one database is killed.
const killRounds = 4

// F5, F3: the daemon is killed under load, again and again, on the way past
// several persists of each vector index (sync_threshold is 200). Nothing that
// ChromaDB acknowledged is missing after the next mount, each document found by
// its own vector.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	// Between the arrival of a request and its reply.
	segment := []string{"header.bin", "data_level0.bin", "length.bin", "link_lists.bin"}
	cases := map[string]func(round int) string{
		"at any time":    func(int) string { return "" },
		"before a write": func(round int) string { return harness.KillAt("fusefs/write", 2000*round+1500) },
		// The persist of a segment: its files are rewritten in place.
		"within a persist":     func(round int) string { return harness.KillAt("fusefs/write/"+segment[round], 5+round) },
		"at a pickle":          func(round int) string { return harness.KillAt("fusefs/write/index_metadata.pickle", round+2) },
		"before a sync":        func(round int) string { return harness.KillAt("fusefs/sync", 60*round+60) },
		"after a first mark":   func(round int) string { return harness.KillAt("journal/mark-after", 4*round+14) },
		"within a publication": func(round int) string { return harness.KillAt("uploader/stored-file", 20*round+30) },
	}
	for name, failpoint := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, harness.NewFileStore(t))
			counts := harness.Documents{"first": 0, "second": 0, "third": 0}
			for round := range killRounds {
				o := w.options("--interval", "2s", "--settle", "100ms")
				o.Failpoints = failpoint(round)
				counts = killOnce(t, w, o, counts)
				m := w.mount()
				harness.VerifyAtLeast(t, w.point, counts)
				m.Unmount()
				t.Logf("round %d: nothing is missing of %v", round, counts)
			}
			w.store.CheckWhole()
			w.lose()
			w.mountOnce()
			harness.VerifyAtLeast(t, w.dir, counts)
		})
	}
}

// killOnce mounts and adds until the daemon is dead, and returns what is
// acknowledged by then. Documents that are there already are added again, which
// ChromaDB takes for nothing.
func killOnce(t *testing.T, w *world, o harness.Options, counts harness.Documents) harness.Documents {
	t.Helper()
	m := harness.Launch(t, o)
	if !m.ReadyUnlessEnded() {
		return counts // killed before anyone could add anything
	}
	server := harness.StartServerUnless(t, w.point, m.Ended)
	if server == nil {
		return counts
	}
	l := startLoad(server, counts)
	target := l.total() + 700
	deadline := time.Now().Add(2 * time.Minute)
	for !m.Ended() && (o.Failpoints != "" || l.total() < target) && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if o.Failpoints != "" && !m.Ended() {
		t.Fatalf("%s was never reached", o.Failpoints)
	}
	m.Kill()
	server.Kill() // ends the writers
	l.wg.Wait()
	return l.counts()
}

// F5: SIGKILL while the daemon is pushing what the kernel caches, which a thread of
// it waits for: daemon and mount can be replaced within seconds.
func TestKilledWhilePushing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	w.seed()
	o := w.options()
	o.Failpoints = "fusefs/write=sleep:20s+300"
	m := harness.Start(t, o)
	server := harness.StartServer(t, w.point)
	l := startLoad(server, server.Verify(seedDocuments()))
	m.WaitHit("fusefs/write")
	start := time.Now()
	m.Kill()
	server.Kill()
	l.wg.Wait()
	again := w.mount()
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("the next mount answered after %v", took)
	}
	harness.VerifyAtLeast(t, w.point, l.counts())
	again.Unmount()
}
