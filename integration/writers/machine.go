package writers

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/integration/harness"
)

// tokens is what a snapshot, a mount or a disk holds.
type tokens map[string]bool

// lacks returns one token of want that is not there, "" if all are.
func (t tokens) lacks(want tokens) string {
	for token := range want {
		if !t[token] {
			return token
		}
	}
	return ""
}

func (t tokens) clone() tokens {
	c := make(tokens, len(t))
	for token := range t {
		c[token] = true
	}
	return c
}

// logName is the file that tokens are appended to.
const logName = "log"

// readTokens reads a log; one that is missing holds nothing.
func readTokens(path string) (tokens, error) {
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	t := tokens{}
	for line := range strings.Lines(string(text)) {
		t[strings.TrimSpace(line)] = true
	}
	return t, nil
}

// leaseTimes are those of the lease, shortened: how often a holder looks, and how long a
// dead one is waited for.
const leaseTimes = "200ms,1s"

type phase int

const (
	off      phase = iota
	starting       // launched, does not answer yet
	serving
	stopping // SIGTERM was sent
)

func (p phase) String() string { return [...]string{"off", "starting", "serving", "stopping"}[p] }

// machine is one of those that share the store.
type machine struct {
	t     testing.TB
	name  string
	dir   string
	point string
	clock string // the file that says how wrong its clock is
	flags []string
	store *harness.Store

	phase   phase
	paused  bool
	doomed  bool // a failpoint may kill it at any moment
	first   bool // nothing was published when it was started: it may find what a kill left unpublished
	mount   *harness.Mount
	holds   tokens // what its mount showed when it began to serve, and what was written to it since
	written int
	call    *call // a snapshot under way
}

// call is one `chromafs snapshot`.
type call struct {
	holds   tokens // when it was called
	done    chan harness.Result
	excused bool // its daemon was stopped or killed meanwhile: it may fail
}

func newMachine(t testing.TB, n int, folder string, store *harness.Store) *machine {
	t.Helper()
	m := &machine{t: t, name: fmt.Sprintf("m%d", n), store: store, dir: filepath.Join(folder, "disk"),
		point: filepath.Join(folder, "mount"), clock: filepath.Join(folder, "clock"), holds: tokens{}}
	m.flags = []string{"--keep", "5", "--interval", "24h", "--settle", "0s", "--handoff-timeout", "2s"}
	if n%2 == 1 {
		m.flags = append(m.flags, "--no-local-backup")
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	m.setClock(0)
	return m
}

func (m *machine) setClock(offset time.Duration) {
	m.t.Helper()
	// The daemon reads the file at every look at the clock: it is replaced, not written to.
	next := m.clock + ".next"
	if err := os.WriteFile(next, []byte(offset.String()), 0o644); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(next, m.clock); err != nil {
		m.t.Fatal(err)
	}
}

// start launches a daemon; poll says when it serves.
func (m *machine) start(failpoints string, first bool) {
	m.t.Helper()
	m.first = first
	m.mount = harness.Launch(m.t, harness.Options{Dir: m.dir, Point: m.point, Store: m.store, Flags: m.flags,
		Clock: m.clock, Failpoints: failpoints, Lease: leaseTimes})
	m.phase, m.doomed = starting, strings.Contains(failpoints, "kill")
}

// write appends a token and syncs it. A machine that a failpoint kills meanwhile
// has not acknowledged it.
func (m *machine) write() (token string, ok bool) {
	m.t.Helper()
	m.written++
	token = fmt.Sprintf("%s-%d", m.name, m.written)
	err := appendSynced(filepath.Join(m.point, logName), token+"\n")
	if err != nil && m.doomed {
		return token, false
	}
	if err != nil {
		m.t.Fatalf("write to %s: %v", m.name, err)
	}
	m.holds[token] = true
	return token, true
}

func appendSynced(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// snapshot asks for one and does not wait.
func (m *machine) snapshot() {
	c := &call{holds: m.holds.clone(), done: make(chan harness.Result, 1), excused: m.doomed}
	mount := m.mount
	go func() { c.done <- mount.TrySnapshot() }()
	m.call = c
}

func (m *machine) pause()  { m.mount.Signal(unix.SIGSTOP); m.paused = true }
func (m *machine) resume() { m.mount.Signal(unix.SIGCONT); m.paused = false }

func (m *machine) stop() {
	m.mount.Signal(unix.SIGTERM)
	m.phase = stopping
	m.excuse()
}

func (m *machine) excuse() {
	if m.call != nil {
		m.call.excused = true
	}
}

func (m *machine) kill() {
	m.t.Helper()
	m.mount.Kill()
	m.gone()
}

func (m *machine) gone() {
	m.phase, m.paused, m.doomed = off, false, false
	m.excuse()
}

// poll notices what went on beside the rounds. It never waits.
func (m *machine) poll() (began bool, err error) {
	if m.phase == off {
		return false, nil
	}
	if m.mount.Ended() {
		was, doomed, code := m.phase, m.doomed, m.mount.Wait(time.Second)
		m.gone()
		unpublished := was == starting && code == exitIntegrity && m.first // README, "What happens at mount"
		if ok := was == stopping && (code == 0 || code == exitConflict) || doomed && code == -1 || unpublished; !ok {
			return false, fmt.Errorf("%s, which was %v, ended with %d: %s", m.name, was, code, m.mount.Log())
		}
		return false, nil
	}
	if m.phase != starting || m.paused || !m.mount.Ready() {
		return false, nil
	}
	m.phase = serving
	m.holds, err = readTokens(filepath.Join(m.point, logName))
	if err != nil && m.doomed {
		m.holds, err = tokens{}, nil
	}
	return true, err
}

// Exit codes: of a writer that was left behind; of a store that needs a decision.
const (
	exitConflict  = 4
	exitIntegrity = 5
)

// skew is a random error of a clock: none, seconds or days, either way.
func skew(random *rand.Rand) time.Duration {
	units := []time.Duration{0, time.Second, time.Minute, 24 * time.Hour}
	return time.Duration(random.IntN(11)-5) * units[random.IntN(len(units))]
}

// branches reads the tokens of every complete branch in the store's folder.
func branches(store *harness.Store) (map[string]tokens, error) {
	all := map[string]tokens{}
	entries, err := os.ReadDir(filepath.Join(store.Folder, "history"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, e := range entries {
		if !strings.Contains(e.Name(), "-branch-") {
			continue
		}
		if _, err := os.Stat(filepath.Join(store.Snapshot(e.Name()), "manifest.json")); err != nil {
			if os.IsNotExist(err) {
				continue // half a branch
			}
			return nil, err
		}
		if all[e.Name()], err = readTokens(filepath.Join(store.Snapshot(e.Name()), logName)); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// readStable reads a file that is replaced meanwhile.
func readStable(path string) ([]byte, error) {
	for range 100 {
		first, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		second, err := os.ReadFile(path)
		if err == nil && bytes.Equal(first, second) {
			return first, nil
		}
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s does not come to rest: %w", path, fs.ErrInvalid)
}
