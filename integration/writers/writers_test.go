package writers

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/integration/harness"
)

// The flags make the same test a long run: see scripts/soak --writers.
var (
	rounds   = flag.Int("rounds", 40, "how many rounds")
	perStore = flag.Int("rounds-per-store", 40, "how many rounds with one store, before a new one is begun")
	seed     = flag.Uint64("seed", rand.Uint64(), "seed of all that is random, to run the same again")
	progress = flag.Bool("progress", false, "say on stdout how far it is")
)

// W1, W2: whatever several writers of one store do to each other, the chain of
// snapshots stays linear, and nothing that was acknowledged or synced is lost.
func TestManyWritersOfOneStore(t *testing.T) {
	t.Parallel()
	for done := 0; done < *rounds; done += *perStore {
		n, runSeed := min(*perStore, *rounds-done), *seed+uint64(done)
		ok := t.Run(fmt.Sprintf("from-round-%d", done), func(t *testing.T) {
			t.Logf("seed %d", runSeed)
			newCluster(t, runSeed).run(n)
		})
		if !ok {
			t.Fatalf("failed: -seed %d", runSeed)
		}
		if *progress {
			fmt.Printf("%d of %d rounds\n", done+n, *rounds)
		}
	}
}

// cluster is the machines of one store, and what happens to them.
type cluster struct {
	t        *testing.T
	random   *rand.Rand
	machines []*machine
	oracle   *oracle
	story    []string // what happened, for people
}

func newCluster(t *testing.T, seed uint64) *cluster {
	t.Helper()
	store := harness.NewS3Store(t)
	c := &cluster{t: t, random: rand.New(rand.NewPCG(seed, 0)), oracle: newOracle(store)}
	folder := t.TempDir()
	for n := range 2 + c.random.IntN(3) {
		c.machines = append(c.machines, newMachine(t, n, filepath.Join(folder, fmt.Sprint(n)), store))
	}
	return c
}

func (c *cluster) run(rounds int) {
	c.t.Helper()
	t := c.t
	t.Cleanup(func() {
		if t.Failed() {
			for _, line := range c.story {
				t.Log(line)
			}
		}
		for _, m := range c.machines { // harness ends daemons by SIGTERM
			if m.paused {
				m.mount.Signal(unix.SIGCONT)
			}
		}
	})
	for range rounds {
		c.act(c.machines[c.random.IntN(len(c.machines))])
		c.settle()
		for until := time.Now().Add(c.pause()); time.Now().Before(until); c.settle() {
			time.Sleep(10 * time.Millisecond)
		}
	}
	c.end()
}

// pause is how long a round takes: mostly none, sometimes enough for a mount or a
// snapshot to come to its end.
func (c *cluster) pause() time.Duration {
	return time.Duration(c.random.IntN(2)) * time.Duration(c.random.IntN(800)) * time.Millisecond
}

func (c *cluster) tell(format string, args ...any) {
	c.story = append(c.story, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// killers are the failpoints that a machine may be killed at.
var killers = []string{"uploader/takeover", "uploader/taken-over", "uploader/after-cut", "uploader/pending", "uploader/stored-file",
	"uploader/objects", "uploader/manifest", "uploader/intent", "uploader/published", "uploader/acknowledged", "uploader/current",
	"uploader/removed", "history/remove", "history/refresh-current", "history/restore-fetch", "history/restore-staged",
	"history/restore-retire-entry", "history/restore-install-entry", "reconcile/restored", "reconcile/rebased"}

// sleepers are those that a machine may be slow at: between a look at the head and the
// write that it leads to, above all.
var sleepers = []string{"uploader/takeover", "uploader/intent", "uploader/intent", "uploader/intent", "uploader/published", "history/refresh-current"}

// act does one thing to a machine.
func (c *cluster) act(m *machine) {
	c.t.Helper()
	what := c.random.IntN(100)
	switch {
	case m.paused && what < 50:
		c.tell("%s goes on", m.name)
		m.resume()
	case what < 5:
		offset := skew(c.random)
		c.tell("%s has its clock off by %v", m.name, offset)
		m.setClock(offset)
	case m.paused && what < 60, !m.paused && m.phase != off && what < 13:
		c.tell("%s is killed", m.name)
		m.kill()
	case m.paused:
	case m.phase == off:
		failpoints := ""
		switch {
		case what < 35:
			failpoints = killers[c.random.IntN(len(killers))] + "=kill"
		case what < 80:
			failpoints = fmt.Sprintf("%s=sleep:%dms", sleepers[c.random.IntN(len(sleepers))], 200+c.random.IntN(1500))
		}
		c.tell("%s starts %s", m.name, failpoints)
		m.start(failpoints, len(c.oracle.last.History) == 0)
	case what < 20:
		c.tell("%s stands still", m.name)
		m.pause()
	case m.phase == serving && what < 28:
		c.tell("%s is stopped", m.name)
		m.stop()
	case m.phase == serving && what < 60 && m.call == nil:
		c.tell("%s takes a snapshot of %d tokens", m.name, len(m.holds))
		m.snapshot()
	case m.phase == serving:
		if token, ok := m.write(); ok {
			c.tell("%s wrote %s", m.name, token)
			c.oracle.synced[token] = true
		}
	}
}

// settle notices what has happened meanwhile, and looks at the store.
func (c *cluster) settle() {
	c.t.Helper()
	for _, m := range c.machines {
		c.collect(m)
		was := m.phase
		began, err := m.poll()
		if err != nil {
			c.t.Fatal(err)
		}
		if began {
			c.tell("%s serves %d tokens", m.name, len(m.holds))
		} else if m.phase != was {
			c.tell("%s has ended", m.name)
		}
	}
	if err := c.oracle.look(); err != nil {
		c.t.Fatal(err)
	}
}

// collect takes the result of a snapshot that has ended.
func (c *cluster) collect(m *machine) {
	c.t.Helper()
	if m.call == nil {
		return
	}
	select {
	case r := <-m.call.done:
		c.tell("%s has its snapshot: %d %s", m.name, r.Code, r.Stdout)
		if err := c.oracle.acknowledged(m, m.call, r); err != nil {
			c.t.Fatal(err)
		}
		m.call = nil
	default:
	}
}

// end stops everything, mounts every disk once more and looks for every token (4, 5).
func (c *cluster) end() {
	c.t.Helper()
	for _, m := range c.machines {
		if m.paused {
			m.resume()
		}
	}
	for _, m := range c.machines {
		harness.Eventually(c.t, 2*time.Minute, m.name+" comes to rest", func() bool {
			c.settle()
			return m.phase != starting && m.call == nil
		})
		if m.phase == serving {
			m.stop()
		}
		harness.Eventually(c.t, 2*time.Minute, m.name+" ends", func() bool {
			c.settle()
			return m.phase == off
		})
	}
	c.tell("everything is stopped")
	left := c.random.Perm(len(c.machines))
	for tries := 0; len(left) > 0; tries++ {
		m := c.machines[left[0]]
		c.tell("%s is mounted once more", m.name)
		mount := harness.Launch(c.t, harness.Options{Dir: m.dir, Point: m.point, Store: m.store, Flags: m.flags, Clock: m.clock,
			Lease: leaseTimes, Command: []string{"true"}})
		code := mount.Wait(time.Minute)
		left = left[1:]
		if code == exitIntegrity && len(c.oracle.last.History) == 0 && tries < len(c.machines) {
			left = append(left, slices.Index(c.machines, m)) // another disk has what was never published
		} else if code != 0 {
			c.t.Fatalf("the last mount of %s ended with %d: %s", m.name, code, mount.Log())
		}
		c.settle()
	}
	c.lookForEverything()
}

func (c *cluster) lookForEverything() {
	c.t.Helper()
	store := c.oracle.store
	aside, err := branches(store)
	if err != nil {
		c.t.Fatal(err)
	}
	kept := tokens{}
	if listed := c.oracle.last.History; len(listed) > 0 {
		kept = c.oracle.seen[listed[len(listed)-1]].clone()
	}
	for _, branch := range aside {
		for token := range branch {
			kept[token] = true
		}
	}
	if lost := kept.lacks(c.oracle.synced); lost != "" {
		c.t.Fatalf("%s was synced, and is neither in the newest snapshot nor in one of %d branches", lost, len(aside))
	}
	for _, id := range c.oracle.last.History {
		harness.Must(c.t, 0, store, "history", "verify", id)
	}
	for id, branch := range aside {
		harness.Must(c.t, 0, store, "history", "verify", id)
		to := filepath.Join(c.t.TempDir(), "restored")
		harness.Must(c.t, 0, store, "restore", "--at", id, to)
		if got, err := readTokens(filepath.Join(to, logName)); err != nil || got.lacks(branch) != "" {
			c.t.Fatalf("%s was not restored: %v, %v", id, got, err)
		}
	}
	c.t.Logf("%d machines, %d tokens, %d acknowledged, epoch %d, %d snapshots, %d branches", len(c.machines), len(c.oracle.synced),
		len(c.oracle.acked), c.oracle.last.Epoch, c.oracle.last.Sequence, len(aside))
}
