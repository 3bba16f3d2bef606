package fusefs

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/mountinfo"
)

// childEnv names the function of children that a re-executed test binary runs
// instead of the tests.
const childEnv = "CHROMAFS_TEST_CHILD"

// children are what tests do in another process: as another user, or so that it
// can be killed.
func children() map[string]func(args []string) error {
	return map[string]func(args []string) error{
		"serve":   childServe,
		"ops":     childOps,
		"held":    childHeld,
		"sync":    childSync,
		"syncers": childSyncers,
		"pairs":   childPairs,
		"churn":   childChurn,
		"persist": childPersist,
		"half":    childHalf,
		"map":     childMap,
	}
}

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		if err := children()[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	for _, mount := range usedMountpoints.leaked() {
		fmt.Fprintln(os.Stderr, "a test left a mount behind:", mount)
		code = 1
	}
	os.Exit(code)
}

// mountpoints remembers where tests of this process mount, to find leaks without
// looking at those of other processes.
type mountpoints struct {
	mu   sync.Mutex
	tops []string
}

var usedMountpoints mountpoints

func (u *mountpoints) add(top string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.tops = append(u.tops, top)
}

func (u *mountpoints) leaked() (left []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	mounts, err := mountinfo.List()
	if err != nil {
		return []string{err.Error()}
	}
	for _, m := range mounts {
		for _, top := range u.tops {
			if m.Mountpoint == top || strings.HasPrefix(m.Mountpoint, top+"/") {
				left = append(left, m.Mountpoint)
			}
		}
	}
	return left
}

// child returns a command that runs one of children.
func child(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	// The race detector would sleep for a second at its end.
	cmd.Env = append(os.Environ(), childEnv+"="+name, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	cmd.Dir = "/"
	return cmd
}

// runChild runs one of children and returns what it printed.
func runChild(t *testing.T, cred *syscall.Credential, name string, args ...string) (string, error) {
	t.Helper()
	cmd := child(t, name, args...)
	if cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// markRecorder is a Recorder that remembers, and lets a test look at the backing
// directory at the moment of a mark.
type markRecorder struct {
	mu     sync.Mutex
	marked map[string]uint64
	order  []string
	onMark func(paths []string) error
}

func (r *markRecorder) Mark(cut uint64, paths ...string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.onMark != nil {
		if err := r.onMark(paths); err != nil {
			return err
		}
	}
	if r.marked == nil {
		r.marked = map[string]uint64{}
	}
	for _, p := range paths {
		r.marked[p] = cut
	}
	r.order = append(r.order, paths...)
	return nil
}

// all returns every mark, in order; cutOf the number of a path's last one; take the
// different paths since the last take, sorted.
func (r *markRecorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.order)
}

func (r *markRecorder) cutOf(path string) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.marked[path]
}

func (r *markRecorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.order
	r.order = nil
	slices.Sort(got)
	return slices.Compact(got)
}

func (r *markRecorder) hook(f func(paths []string) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.onMark = f
}

// fixture is a mounted directory.
type fixture struct {
	dir, mnt string
	fs       *FS
	rec      *markRecorder
	released bool // see wantReleased
}

// mounted mounts a new directory for the length of a test.
func mounted(t testing.TB, change ...func(*Options)) *fixture {
	t.Helper()
	top := openTempDir(t)
	fx := &fixture{dir: filepath.Join(top, "dir"), mnt: filepath.Join(top, "mnt"), rec: &markRecorder{}}
	for _, d := range []string{fx.dir, fx.mnt} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fx.mount(t, change...)
	return fx
}

// openTempDir is t.TempDir, but other users may enter it.
func openTempDir(t testing.TB) string {
	t.Helper()
	top := t.TempDir()
	usedMountpoints.add(top)
	for d := top; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return top
}

func (fx *fixture) mount(t testing.TB, change ...func(*Options)) {
	t.Helper()
	d, err := datadir.Open(fx.dir)
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{
		Dir: d, Mountpoint: fx.mnt, Recorder: fx.rec, FirstCut: 1,
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for _, c := range change {
		c(&opts)
	}
	fx.fs, err = Mount(context.Background(), opts)
	if err != nil {
		d.Close()
		t.Fatal(err)
	}
	f := fx.fs
	t.Cleanup(func() {
		if err := f.Unmount(false); err != nil {
			t.Errorf("unmount at the end: %v", err)
			if err := f.Unmount(true); err != nil {
				t.Errorf("lazy unmount: %v", err)
			}
		}
		select {
		case <-f.Done():
			d.Close()
		case <-time.After(10 * time.Second):
			t.Error("the mount does not end: something holds it")
		}
	})
}

func (fx *fixture) unmount(t *testing.T) {
	t.Helper()
	if err := fx.fs.Unmount(false); err != nil {
		t.Fatal(err)
	}
}

// testWriter logs to a test. A late line of a request that outlives the test is
// dropped: t.Log would panic.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Logf("%s", strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// eventually polls until ok, or fails the test.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s\n%s", what, debug.Stack())
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
