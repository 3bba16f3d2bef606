package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Options say how to mount. Store may be nil for a mount without --store, which
// chromafs refuses.
type Options struct {
	Dir, Point string // made if missing
	Store      *Store
	Flags      []string
	Env        []string
	Failpoints string   // selects the failpoints build
	Clock      string   // a file with an offset; selects the failpoints build
	Lease      string   // how often a holder looks, and how long a waiter waits for an answer: "1s,3s"; selects the failpoints build
	Command    []string // after --
	User       uint32   // run as this user, 0: as we are
}

// Mount is one daemon, from its start to its end.
type Mount struct {
	t       testing.TB
	o       Options
	binary  string
	cmd     *exec.Cmd
	log     *lockedBuffer
	hitsLog string
	done    chan struct{}
}

// lockedBuffer collects output that is read while it grows.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Launch starts a daemon and returns at once. When the test ends the daemon must
// be gone or go on SIGTERM, and no mount may be left behind.
func Launch(t testing.TB, o Options) *Mount {
	t.Helper()
	m := &Mount{t: t, o: o, binary: Binary(t), log: &lockedBuffer{}, done: make(chan struct{}),
		hitsLog: filepath.Join(t.TempDir(), "failpoints")}
	if o.Failpoints != "" || o.Clock != "" || o.Lease != "" {
		m.binary = FailpointsBinary(t)
	}
	for _, dir := range []string{o.Dir, o.Point} {
		if err := os.MkdirAll(dir, 0o755); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTCONN) {
			t.Fatal(err)
		}
	}
	args := append([]string{"mount"}, o.Flags...)
	args = append(args, o.Store.flags()...)
	args = append(args, o.Dir, o.Point)
	if o.Command != nil {
		args = append(append(args, "--"), o.Command...)
	}
	m.cmd = exec.Command(m.binary, args...)
	m.cmd.Env = Environ(append(m.env(), o.Env...)...)
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	// If this process dies, by a timeout say, the daemon goes too.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if o.User != 0 {
		m.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: o.User, Gid: o.User}
	}
	if err := StartAndWait(m.cmd, m.done); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.cleanup)
	return m
}

// StartAndWait starts a command and closes done when it has ended; how it ended is
// in its ProcessState then. With Pdeathsig it does not outlive this process.
func StartAndWait(cmd *exec.Cmd, done chan<- struct{}) error {
	started := make(chan error)
	go func() {
		// The parent of which Pdeathsig speaks is a thread: it must not end first.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // see above
			close(done)
		}
	}()
	return <-started
}

func (m *Mount) env() []string {
	// Most tests kill a daemon to see what becomes of its data, not how long the next
	// one waits for it.
	env := append(m.o.Store.env(), "CHROMAFS_FAILPOINTS_LOG="+m.hitsLog, "CHROMAFS_HANDOFF_TIMEOUT=500ms")
	if m.o.Failpoints != "" {
		env = append(env, "CHROMAFS_FAILPOINTS="+m.o.Failpoints)
	}
	if m.o.Clock != "" {
		env = append(env, "CHROMAFS_TEST_CLOCK="+m.o.Clock)
	}
	if m.o.Lease != "" {
		env = append(env, "CHROMAFS_TEST_LEASE="+m.o.Lease)
	}
	if m.o.User != 0 {
		env = append(env, "XDG_RUNTIME_DIR="+filepath.Join(filepath.Dir(m.o.Dir), "run"))
	}
	return env
}

// Start starts a daemon and waits until the mount answers.
func Start(t testing.TB, o Options) *Mount {
	t.Helper()
	m := Launch(t, o)
	m.WaitReady()
	return m
}

// RunToEnd starts a daemon that must end by itself with an exit code, and that must
// have mounted nothing.
func RunToEnd(t testing.TB, o Options, code int) Result {
	t.Helper()
	m := Launch(t, o)
	if o.Command == nil && m.ReadyUnlessEnded() {
		t.Fatalf("mount serves, want exit code %d: %s", code, m.log)
	}
	if got := m.Wait(2 * time.Minute); got != code {
		t.Fatalf("mount exited with %d, want %d: %s", got, code, m.log)
	}
	if Mounted(t, o.Point) {
		t.Fatalf("the daemon ended and left %s mounted", o.Point)
	}
	return Result{Args: m.cmd.Args[1:], Code: code, Stderr: m.log.String()}
}

const readyTimeout = time.Minute

// WaitReady waits until the mount answers and the daemon can be asked.
func (m *Mount) WaitReady() {
	m.t.Helper()
	if !m.ReadyUnlessEnded() {
		m.t.Fatalf("mount exited with %d before it answered: %s", m.cmd.ProcessState.ExitCode(), m.log)
	}
}

// ReadyUnlessEnded waits until the mount answers, or the daemon is gone before
// that: then it returns false.
func (m *Mount) ReadyUnlessEnded() bool {
	m.t.Helper()
	ready := false
	Eventually(m.t, readyTimeout, "the mount answers: "+m.o.Point, func() bool {
		ready = m.Ready()
		return ready || m.Ended()
	})
	return ready
}

// Ready reports whether the mount answers by now.
func (m *Mount) Ready() bool {
	m.t.Helper()
	return Mounted(m.t, m.o.Point) && m.answers()
}

// answers reports whether it is this daemon that serves the mountpoint, and not one
// that was killed before it.
func (m *Mount) answers() bool {
	m.t.Helper()
	r := m.try("status", "--json", m.o.Point)
	var status struct {
		PID int `json:"pid"`
	}
	return r.Code == 0 && json.Unmarshal([]byte(r.Stdout), &status) == nil && status.PID == m.cmd.Process.Pid
}

// Ended reports whether the daemon is gone.
func (m *Mount) Ended() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// Wait waits for the daemon's end and returns its exit code, -1 for a signal.
func (m *Mount) Wait(timeout time.Duration) int {
	m.t.Helper()
	select {
	case <-m.done:
		return m.cmd.ProcessState.ExitCode()
	case <-time.After(timeout):
		m.t.Fatalf("the daemon of %s still runs after %v: %s", m.o.Point, timeout, m.log)
		return 0
	}
}

// Signal sends a signal to the daemon.
func (m *Mount) Signal(s syscall.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		m.t.Fatal(err)
	}
}

// Stop ends the daemon with SIGTERM and returns its exit code.
func (m *Mount) Stop() int {
	m.t.Helper()
	m.Signal(unix.SIGTERM)
	return m.Wait(time.Minute)
}

// Kill ends the daemon as a power cut would, and waits until it is gone (F5: a
// killed daemon never stays).
func (m *Mount) Kill() {
	m.t.Helper()
	_ = m.cmd.Process.Kill() // a failpoint may have done it
	m.Wait(10 * time.Second)
}

// WaitHit waits until a failpoint was reached.
func (m *Mount) WaitHit(name string) {
	m.t.Helper()
	Eventually(m.t, time.Minute, "the failpoint "+name+" is reached", func() bool { return m.Hit(name) })
}

// Hit reports whether a failpoint acted.
func (m *Mount) Hit(name string) bool {
	m.t.Helper()
	hits, err := os.ReadFile(m.hitsLog)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	return strings.Contains(string(hits), "failpoint "+name+"\n")
}

// HitsLog is the path of a file to which every failpoint that acts adds a line.
func (m *Mount) HitsLog() string { return m.hitsLog }

// Proc is the path of a file that the kernel has about the daemon.
func (m *Mount) Proc(name string) string {
	return filepath.Join("/proc", strconv.Itoa(m.cmd.Process.Pid), name)
}

// Log is what the daemon and its command printed so far.
func (m *Mount) Log() string { return m.log.String() }

// try runs a subcommand with this mount's environment.
func (m *Mount) try(args ...string) Result {
	m.t.Helper()
	env := m.env()
	// The failpoints are the daemon's.
	for i, v := range env {
		if strings.HasPrefix(v, "CHROMAFS_FAILPOINTS") {
			env[i] = "CHROMAFS_FAILPOINTS="
		}
	}
	// A program with the race detector sleeps for a second at its end.
	return run(m.t, append(env, "GORACE=atexit_sleep_ms=0"), m.binary, args...)
}

// Snapshot is what "snapshot --json" prints.
type Snapshot struct {
	ID            string `json:"id"`
	Files         int    `json:"files"`
	Bytes         int64  `json:"bytes"`
	BytesUploaded int64  `json:"bytes_uploaded"`
	Consistency   string `json:"consistency"`
	DurationMS    int64  `json:"duration_ms"`
}

// Snapshot takes one, which must succeed and be quiescent (S1).
func (m *Mount) Snapshot() Snapshot {
	m.t.Helper()
	r := m.TrySnapshot()
	if r.Code != 0 {
		m.t.Fatalf("snapshot exited with %d: %s\nthe daemon says: %s", r.Code, r.Output(), m.log)
	}
	return ParseSnapshot(m.t, r)
}

// ParseSnapshot reads what "snapshot --json" printed.
func ParseSnapshot(t testing.TB, r Result) Snapshot {
	t.Helper()
	var s Snapshot
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil || s.ID == "" {
		t.Fatalf("snapshot --json printed %q (%v)", r.Stdout, err)
	}
	if s.Consistency != "quiescent" {
		t.Fatalf("the snapshot is %q", s.Consistency)
	}
	return s
}

// TrySnapshot asks the daemon for a snapshot.
func (m *Mount) TrySnapshot() Result {
	m.t.Helper()
	return m.try("snapshot", "--json", m.o.Point)
}

// Status is what "status --json" prints.
func (m *Mount) Status() map[string]any {
	m.t.Helper()
	r := m.try("status", "--json", m.o.Point)
	if r.Code != 0 {
		m.t.Fatalf("status exited with %d: %s", r.Code, r.Output())
	}
	var status map[string]any
	if err := json.Unmarshal([]byte(r.Stdout), &status); err != nil {
		m.t.Fatalf("status --json printed %q: %v", r.Stdout, err)
	}
	return status
}

// Dirty reports whether something waits for the next snapshot.
func (m *Mount) Dirty() bool {
	m.t.Helper()
	return m.Status()["dirty"] != false
}

// Unmount asks for the final flush and the end; the daemon must exit with 0.
func (m *Mount) Unmount() {
	m.t.Helper()
	if r := m.try("unmount", m.o.Point); r.Code != 0 {
		m.t.Fatalf("unmount exited with %d: %s\nthe daemon says: %s", r.Code, r.Output(), m.log)
	}
	if code := m.Wait(time.Minute); code != 0 {
		m.t.Fatalf("the unmounted daemon exited with %d: %s", code, m.log)
	}
	if Mounted(m.t, m.o.Point) {
		m.t.Fatalf("%s is still mounted after unmount", m.o.Point)
	}
}

// cleanup ends what the test left running. A daemon that does not go within the
// time is a bug of its own.
func (m *Mount) cleanup() {
	if m.t.Failed() {
		m.t.Logf("the daemon of %s said:\n%s", m.o.Point, m.log)
	}
	if !m.Ended() {
		_ = m.cmd.Process.Signal(unix.SIGTERM) // it may end meanwhile
		select {
		case <-m.done:
		case <-time.After(30 * time.Second):
			m.t.Errorf("the daemon of %s does not end on SIGTERM: %s", m.o.Point, m.log)
			_ = m.cmd.Process.Kill() // it may end meanwhile
			<-m.done
		}
	}
	if strings.Contains(m.log.String(), "DATA RACE") {
		m.t.Errorf("data race: %s", m.log)
	}
	if !Mounted(m.t, m.o.Point) {
		return
	}
	// After a kill the dead mount stays until the next one clears it.
	if m.cmd.ProcessState.ExitCode() >= 0 {
		m.t.Errorf("the daemon ended and left %s mounted", m.o.Point)
	}
	if err := unix.Unmount(m.o.Point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		m.t.Errorf("unmount %s: %v", m.o.Point, err)
	}
}

// Mounted reports whether something of chromafs is mounted at point.
func Mounted(t testing.TB, point string) bool {
	t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(info), "\n") {
		fields := strings.Fields(line)
		if len(fields) > 4 && fields[4] == point && strings.Contains(line, "fuse") {
			return true
		}
	}
	return false
}

// Chromafs runs a subcommand on a store.
func Chromafs(t testing.TB, s *Store, args ...string) Result {
	t.Helper()
	return run(t, s.env(), Binary(t), append(args, s.flags()...)...)
}

// ChromafsAt is Chromafs with a clock that is off by what a file says.
func ChromafsAt(t testing.TB, clock string, s *Store, args ...string) Result {
	t.Helper()
	return run(t, append(s.env(), "CHROMAFS_TEST_CLOCK="+clock), FailpointsBinary(t), append(args, s.flags()...)...)
}

// Must is Chromafs that must exit with code.
func Must(t testing.TB, code int, s *Store, args ...string) Result {
	t.Helper()
	r := Chromafs(t, s, args...)
	if r.Code != code {
		t.Fatalf("chromafs %s exited with %d, want %d: %s", strings.Join(r.Args, " "), r.Code, code, r.Output())
	}
	return r
}

// SnapshotOffline takes a snapshot of a folder that is not mounted.
func SnapshotOffline(t testing.TB, s *Store, dir string) Snapshot {
	t.Helper()
	return ParseSnapshot(t, Must(t, 0, s, "snapshot", "--json", dir))
}

// Explain returns an error unless the text holds every word: what failed, on what,
// what to do next.
func Explain(t testing.TB, r Result, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(r.Output(), w) {
			t.Errorf("the message does not mention %q: %s", w, r.Output())
		}
	}
	if t.Failed() {
		t.Log(fmt.Sprint(r.Args))
	}
}
