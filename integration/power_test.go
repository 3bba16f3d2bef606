package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

// machine is a world whose disk can lose its power. Beside DIR there is room on it
// for the same database without chromafs. What is random comes from a seed that is
// printed.
type machine struct {
	*world
	disk   *harness.Disk
	bare   string
	random *rand.Rand
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	m := &machine{newWorld(t, harness.NewFileStore(t)), harness.NewDisk(t), "", rand.New(rand.NewPCG(seed, 0))}
	m.dir, m.bare = filepath.Join(m.disk.Point, "chromafs"), filepath.Join(m.disk.Point, "bare")
	return m
}

// failing are options with failpoints. Each mount takes itself for one of another run
// of the machine than the mounts before.
func (m *machine) failing(failpoints ...string) harness.Options {
	o := m.options("--interval", "2s", "--settle", "100ms")
	o.Failpoints = strings.Join(append(without(), append(failpoints, "fusefs/same-boot=off")...), ";")
	return o
}

// without are failpoints that leave out the mechanisms which CHROMAFS_TEST_WITHOUT
// names, for whoever wants to see a test fail without them.
func without() (failpoints []string) {
	for name := range strings.FieldsSeq(os.Getenv("CHROMAFS_TEST_WITHOUT")) {
		failpoints = append(failpoints, name+"=off")
	}
	return failpoints
}

// neighbour is another program on the disk, which syncs a file: with it goes what the
// log of the file system holds, of all files.
func (m *machine) neighbour() {
	m.t.Helper()
	f, err := os.OpenFile(filepath.Join(m.disk.Point, "neighbour"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("more"); err != nil {
		m.t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		m.t.Fatal(err)
	}
}

// powerCut is a moment at which the power goes.
type powerCut struct {
	name string
	hold string // at the n-th time that this failpoint is reached; "": at any time
	nth  func(m *machine) int
}

var powerCuts = []powerCut{
	{name: "at any time"},
	// Truncated and not written: the persist is at its worst.
	{"in the pickle of a persist", "fusefs/write/index_metadata.pickle", func(m *machine) int { return 2 + m.random.IntN(4) }},
	{"in a barrier, between undo logs and data", "fusefs/barrier", func(m *machine) int { return 60 + m.random.IntN(60) }},
	{name: "at any time, once more"},
}

// F3: power is cut under load, past several persists of each vector index. Nothing
// that ChromaDB acknowledged is missing after the next mount, each document found by
// its own vector. The same ChromaDB with the same load on the bare disk, at the same
// cut, loses vectors: without that the test would prove nothing.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.seed()
	counts, lost := seedDocuments(), false
	for _, c := range powerCuts {
		bare := ""
		if !lost { // it has shown what it does
			if err := os.RemoveAll(m.bare); err != nil {
				t.Fatal(err)
			}
			bare = m.bare
			harness.CopyTree(t, databases.get(t).first, bare)
		}
		m.disk.Sync()
		var bareCounts harness.Documents
		counts, bareCounts = m.loadUntil(c, counts, bare)
		if bare != "" {
			err := harness.CheckAtLeast(t, bare, bareCounts)
			lost = err != nil
			t.Logf("%s: on the bare disk: %s", c.name, lastLine(err))
		}
		mount := harness.Start(t, m.failing())
		harness.VerifyAtLeast(t, m.point, counts)
		mount.Unmount()
		t.Logf("%s: on chromafs nothing is missing of %v", c.name, counts)
	}
	if !lost {
		t.Error("the bare disk lost nothing: these power cuts prove nothing")
	}
	m.store.CheckWhole()
	m.lose()
	m.mountOnce()
	harness.VerifyAtLeast(t, m.dir, counts)
}

// F3: an fsync brings down what was written before to other files, whoever has them
// open: what the kernel caches of the mount and what it caches of the disk.
func TestFsyncIsABarrier(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	daemon := harness.Start(t, m.failing())
	want := bytes.Repeat([]byte("written before"), 10000)
	files := map[string]*os.File{}
	for _, name := range []string{"written", "synced"} {
		f, err := os.Create(filepath.Join(m.point, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(want); err != nil {
			t.Fatal(err)
		}
		files[name] = f
	}
	if err := files["synced"].Sync(); err != nil {
		t.Fatal(err)
	}
	m.disk.CutPower()
	daemon.Kill()
	m.disk.Off()
	m.disk.PowerOn()
	for name := range files {
		got, err := os.ReadFile(filepath.Join(m.dir, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
		}
	}
}

// lastLine is what an error says in the end: of a program that failed, why.
func lastLine(err error) string {
	lines := strings.Split(strings.TrimSpace(fmt.Sprint(err)), "\n")
	return lines[len(lines)-1]
}

// loadUntil runs a load on the mount, and on the bare disk if that is not "", past
// some persists and on to a power cut. It returns what each had acknowledged.
func (m *machine) loadUntil(c powerCut, counts harness.Documents, bare string) (acknowledged, bareAcknowledged harness.Documents) {
	m.t.Helper()
	var hold []string
	if c.hold != "" {
		hold = append(hold, fmt.Sprintf("%s=hold:%s+%d", c.hold, filepath.Join(m.t.TempDir(), "never"), c.nth(m)-1))
	}
	daemon := harness.Start(m.t, m.failing(hold...))
	var servers []*harness.Server
	var loads []*load
	var targets []int
	more := 700 + m.random.IntN(300)
	start := func(path string, counts harness.Documents) {
		server := harness.StartServer(m.t, path)
		l := startLoad(server, harness.Documents{"docs": counts["docs"], "second": counts["second"], "third": counts["third"]})
		servers, loads, targets = append(servers, server), append(loads, l), append(targets, l.total()+more)
	}
	start(m.point, counts)
	if bare != "" {
		start(bare, seedDocuments())
	}
	harness.Eventually(m.t, time.Minute, "the moment of the power cut comes: "+c.name, func() bool {
		for i, l := range loads {
			if (i > 0 || c.hold == "") && l.total() < targets[i] {
				return false
			}
		}
		return c.hold == "" || daemon.Hit(c.hold)
	})
	if c.hold != "" {
		m.neighbour()
	}
	m.disk.CutPower()
	daemon.Kill()
	for i, s := range servers {
		s.Kill()
		loads[i].wg.Wait()
	}
	m.disk.Off()
	m.disk.PowerOn()
	if bare != "" {
		bareAcknowledged = loads[1].counts()
	}
	return loads[0].counts(), bareAcknowledged
}
