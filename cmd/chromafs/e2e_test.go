package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/control"
	"github.com/chromafs/chromafs/internal/mountinfo"
)

// built is the program that the tests run, once there is one.
var built string

// program builds it, with the race detector, once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "chromafs-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "chromafs")
	out, err := exec.Command("go", "build", "-race", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	built = path
	return path, nil
})

// scene is a DIR, a mountpoint and a store for one test.
type scene struct {
	t              *testing.T
	dir, point     string
	store, program string
	environ        []string // beside the test's own; the last one counts
}

func newScene(t *testing.T) *scene {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	s := &scene{t: t, dir: filepath.Join(base, "dir"), point: filepath.Join(base, "mnt"),
		store: filepath.Join(base, "bucket"), program: path}
	t.Cleanup(func() {
		for _, p := range []string{s.point, s.dir} {
			for mountedAt(t, p) {
				if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
					t.Fatalf("unmount %s: %v", p, err)
				}
			}
		}
	})
	return s
}

func mountedAt(t *testing.T, path string) bool {
	t.Helper()
	mounts, err := mountinfo.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.Mountpoint == path {
			return true
		}
	}
	return false
}

// command prepares the program with a clean environment.
func (s *scene) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.t.Context(), s.program, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "CHROMAFS_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "CHROMAFS_STORE=file://"+s.store, "GORACE=exitcode=66")
	cmd.Env = append(cmd.Env, s.environ...)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// try runs the program to its end.
func (s *scene) try(args ...string) result {
	s.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := s.command(args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil || errors.Is(err, exec.ErrWaitDelay) {
		s.t.Fatalf("chromafs %q: %v: %s", args, err, &stderr)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func (s *scene) must(code int, args ...string) result {
	s.t.Helper()
	r := s.try(args...)
	if r.code != code {
		s.t.Fatalf("chromafs %q: exit code %d, want %d\n%s%s", args, r.code, code, r.stdout, r.stderr)
	}
	return r
}

func (s *scene) status(path string) control.Status {
	s.t.Helper()
	var st control.Status
	if err := json.Unmarshal([]byte(s.must(0, "status", "--json", path).stdout), &st); err != nil {
		s.t.Fatal(err)
	}
	return st
}

// daemon is a mount in the foreground of a test.
type daemon struct {
	s      *scene
	cmd    *exec.Cmd
	stderr *bytes.Buffer // read after wait
	done   chan struct{}
}

// start runs a mount and waits until what shows that it is there.
func (s *scene) start(ready func() bool, args ...string) *daemon {
	s.t.Helper()
	d := &daemon{s: s, cmd: s.command(append([]string{"mount"}, args...)...), stderr: &bytes.Buffer{}, done: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = d.stderr, d.stderr
	if err := d.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer close(d.done)
		_ = d.cmd.Wait() // how it ended is in ProcessState
	}()
	s.t.Cleanup(func() {
		_ = d.cmd.Process.Signal(unix.SIGTERM) // it may be gone
		d.wait()
	})
	eventually(s.t, "the mount is ready", func() bool {
		select {
		case <-d.done:
			s.t.Fatalf("mount ended with %d: %s", d.cmd.ProcessState.ExitCode(), d.stderr)
		default:
		}
		return ready()
	})
	return d
}

func (d *daemon) signal(sig os.Signal) {
	d.s.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.s.t.Fatal(err)
	}
}

// wait returns the exit code.
func (d *daemon) wait() int {
	d.s.t.Helper()
	select {
	case <-d.done:
		return d.cmd.ProcessState.ExitCode()
	case <-time.After(time.Minute):
		_ = d.cmd.Process.Signal(unix.SIGQUIT)
		d.s.t.Fatal("the mount does not end")
		return 0
	}
}

// answers reports whether the mount at a path can be asked.
func (s *scene) answers(path string) func() bool {
	return func() bool { return mountedAt(s.t, path) && s.try("status", path).code == 0 }
}

// content reads every file of a tree.
func content(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == ".chromafs" {
			return fs.SkipDir
		}
		rel, err := filepath.Rel(root, path)
		if err != nil || d.IsDir() {
			return err
		}
		files[rel] = readFile(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func fill(t *testing.T, root string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, "seg"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(root, "note"), "hello")
	writeFile(t, filepath.Join(root, "seg", "data.bin"), strings.Repeat("0123456789abcdef", 1<<16))
	if r := run(t, "sqlite3", filepath.Join(root, "chroma.sqlite3"), "create table t(x); insert into t values(1),(2),(3)"); r.code != 0 {
		t.Fatal(r.stderr)
	}
}

func same(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for path, c := range want {
		if got[path] != c {
			t.Errorf("%s: %s has %d bytes that differ from the %d expected", what, path, len(got[path]), len(c))
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s: %s should not be there", what, path)
		}
	}
}

// The whole way, with the mount beside DIR and on top of it: write, snapshot, end,
// lose the disk, mount, and everything is there.
func TestTheDiskIsLost(t *testing.T) {
	t.Parallel()
	for name, onItself := range map[string]bool{"beside": false, "on itself": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			if onItself {
				s.point = s.dir
			}
			d := s.start(s.answers(s.point), s.dir, s.point)
			fill(t, s.point)
			var snap control.Snapshot
			if err := json.Unmarshal([]byte(s.must(0, "snapshot", "--json", s.point).stdout), &snap); err != nil {
				t.Fatal(err)
			}
			if snap.ID == "" || snap.Files != 3 || snap.BytesUploaded == 0 || snap.Consistency != "quiescent" {
				t.Errorf("snapshot: %+v", snap)
			}
			for _, path := range []string{s.dir, s.point, filepath.Join(s.point, "seg")} {
				st := s.status(path)
				if !st.Mounted || st.Dir != s.dir || st.Mountpoint != s.point || st.PID != d.cmd.Process.Pid ||
					st.Last == nil || st.Last.ID != snap.ID || st.Dirty || st.Store != "file://"+s.store || st.FreeBytes == 0 {
					t.Errorf("status %s: %+v", path, st)
				}
				s.must(0, "status", "--check", path)
			}
			writeFile(t, filepath.Join(s.point, "late"), "written after the snapshot")
			want := content(t, s.point)
			s.must(0, "unmount", s.point)
			if mountedAt(t, s.point) {
				t.Error("unmount returned with the mount still there")
			}
			if code := d.wait(); code != 0 {
				t.Fatalf("exit code %d: %s", code, d.stderr)
			}
			s.must(1, "status", "--check", s.dir)
			if err := os.RemoveAll(s.dir); err != nil {
				t.Fatal(err)
			}
			d = s.start(s.answers(s.point), s.dir, s.point)
			same(t, "restored", content(t, s.point), want)
			d.signal(unix.SIGTERM)
			if code := d.wait(); code != 0 {
				t.Errorf("exit code %d: %s", code, d.stderr)
			}
			same(t, "DIR without a mount", content(t, s.dir), want)
		})
	}
}

// A mount that was killed is replaced by the next one, at once.
func TestKilledAndMountedAgain(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	for round := range 3 {
		d := s.start(s.answers(s.point), s.dir, s.point)
		writeFile(t, filepath.Join(s.point, fmt.Sprint("file", round)), "x")
		unix.Sync()
		d.signal(unix.SIGKILL)
		if r := s.try("snapshot", s.point); r.code != 1 || !strings.Contains(r.stderr, "fusermount3 -uz "+s.point) && !strings.Contains(r.stderr, "EOF") &&
			!strings.Contains(r.stderr, "connection reset") { // it may die while it is asked
			t.Errorf("a dead mount: %+v", r)
		}
		d.wait()
		if st := s.status(s.dir); st.Mounted || !st.Dirty {
			t.Errorf("status of a DIR whose daemon was killed: %+v", st)
		}
	}
	d := s.start(s.answers(s.point), s.dir, s.point)
	if got := content(t, s.point); len(got) != 3 {
		t.Errorf("%d files are left of 3", len(got))
	}
	d.signal(unix.SIGINT)
	if code := d.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, d.stderr)
	}
	s.must(0, "history", "verify")
}

func TestASecondDaemonIsRefused(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	d := s.start(s.answers(s.point), s.dir, s.point)
	pid := fmt.Sprint("pid ", d.cmd.Process.Pid)
	for name, tc := range map[string]struct {
		args []string
		code int
		says string
	}{
		"elsewhere":     {[]string{"mount", s.dir, s.point + "2"}, 1, pid},
		"restore":       {[]string{"restore", s.dir}, 1, s.point},
		"sync":          {[]string{"sync", s.dir}, 1, s.point},
		"of the mount":  {[]string{"mount", s.point, s.point + "2"}, 2, s.point},
		"over it":       {[]string{"mount", s.dir + "2", s.point}, 2, s.point},
		"sync of mount": {[]string{"sync", s.point}, 2, s.point},
	} {
		if r := s.must(tc.code, tc.args...); !strings.Contains(r.stderr, tc.says) {
			t.Errorf("%s: %q is not in %s", name, tc.says, r.stderr)
		}
	}
	s.must(0, "status", "--check", s.point)
}

// A COMMAND runs on the mount, gets signals, and decides the exit code; what it
// wrote last is stored.
func TestCommandOnTheMount(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	r := s.must(7, "mount", s.dir, s.point, "--", "sh", "-c", "cd "+s.point+" && echo one > one && exit 7")
	if strings.Contains(r.stderr, "ERROR") {
		t.Error(r.stderr)
	}
	// In the working directory that is the mount.
	cmd := s.command("mount", ".", ".", "--", "sh", "-c", "ls -a; echo two > two")
	cmd.Dir = s.dir
	out, err := cmd.Output()
	if err != nil || strings.Contains(string(out), ".chromafs") || !strings.Contains(string(out), "one") {
		t.Fatalf("the command saw %q (%v)", out, err)
	}
	ready := filepath.Join(s.dir, "ready")
	d := s.start(func() bool { return exists(ready) }, s.dir, s.point, "--", "sh", "-c",
		"trap 'echo three > "+s.point+"/three; exit 9' TERM; trap 'echo usr1 > "+s.point+"/usr1' USR1; touch "+s.point+"/ready; while :; do sleep 0.02; done")
	d.signal(unix.SIGUSR1)
	eventually(t, "SIGUSR1 arrives", func() bool { return exists(filepath.Join(s.dir, "usr1")) })
	d.signal(unix.SIGTERM)
	if code := d.wait(); code != 9 {
		t.Errorf("exit code %d: %s", code, d.stderr)
	}
	if code := s.try("mount", s.dir, s.point, "--", "no-such-command").code; code != codeNotFound {
		t.Errorf("a missing command: exit code %d", code)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	s.must(0, "restore", s.dir)
	same(t, "what was stored", content(t, s.dir), map[string]string{"one": "one\n", "two": "two\n", "three": "three\n", "usr1": "usr1\n", "ready": ""})
}

func TestStubbornCommandIsKilled(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	ready := filepath.Join(s.dir, "ready")
	d := s.start(func() bool { return exists(ready) }, "--stop-timeout", "300ms", s.dir, s.point, "--", "sh", "-c",
		"trap '' TERM; touch "+s.point+"/ready; while :; do echo x >> "+s.point+"/log; sleep 0.01; done")
	d.signal(unix.SIGTERM)
	if code := d.wait(); code != codeOfSignal+9 {
		t.Errorf("exit code %d: %s", code, d.stderr)
	}
	if st := s.status(s.dir); st.Dirty || st.Last == nil {
		t.Errorf("the last delta was not stored: %+v", st)
	}
	if mountedAt(t, s.point) {
		t.Error("the mount is still there")
	}
}

// Process 1 of a container passes signals on, reaps orphans and exits with the
// command's code.
func TestAsProcessOne(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Fatal("this test makes a PID namespace, and needs root for that")
	}
	s := newScene(t)
	cmd := s.command("mount", s.dir, s.point, "--", "sh", "-c",
		"(sh -c 'sleep 0.2' &); trap 'exit 8' TERM; sleep 0.4; ps -eo stat,args > "+s.point+"/ps; touch "+s.point+"/ready; while :; do sleep 0.02; done")
	cmd.Args = append([]string{"unshare", "--pid", "--fork", "--mount-proc", "--kill-child"}, append([]string{s.program}, cmd.Args[1:]...)...)
	var err error
	if cmd.Path, err = exec.LookPath("unshare"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.Writer(&out), &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	eventually(t, "the command is ready", func() bool { return exists(filepath.Join(s.dir, "ready")) })
	if ps := readFile(t, filepath.Join(s.dir, "ps")); strings.Contains(ps, "Z") || strings.Count(ps, "chromafs mount") < 2 {
		t.Errorf("processes in the container:\n%s", ps)
	}
	children := strings.Fields(readFile(t, fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid)))
	if len(children) != 1 {
		t.Fatalf("unshare has the children %q", children)
	}
	if r := run(t, "kill", "-TERM", children[0]); r.code != 0 {
		t.Fatal(r.stderr)
	}
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	if code := cmd.ProcessState.ExitCode(); code != 8 {
		t.Errorf("exit code %d: %s", code, &out)
	}
	if st := s.status(s.dir); st.Dirty || st.Last == nil {
		t.Errorf("not everything was stored: %+v", st)
	}
}
