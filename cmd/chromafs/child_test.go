package main

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets this test binary stand in for the program where that starts
// itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == becomeWord {
		os.Exit(begin(os.Args[1:]))
	}
	code := m.Run()
	if built != "" {
		os.RemoveAll(filepath.Dir(built))
	}
	os.Exit(code)
}

func startTestChild(t *testing.T, dir string, argv ...string) *child {
	t.Helper()
	c, err := startChild(argv, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.signalGroup(unix.SIGKILL)
		<-c.done
	})
	return c
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestChildsExitCode(t *testing.T) {
	notExecutable := filepath.Join(t.TempDir(), "file")
	writeFile(t, notExecutable, "x")
	for want, argv := range map[int][]string{
		0:   {"true"},
		3:   {"sh", "-c", "exit 3"},
		137: {"sh", "-c", "kill -9 $$"},
		127: {"no-such-command-anywhere"},
		126: {notExecutable},
	} {
		c := startTestChild(t, "", argv...)
		<-c.done
		if c.code != want {
			t.Errorf("%q: exit code %d, want %d", argv, c.code, want)
		}
	}
}

func TestChildRunsWhereItIsTold(t *testing.T) {
	dir := t.TempDir()
	c := startTestChild(t, dir, "sh", "-c", "pwd -P > here; echo $0-$1 >> here", "a b", "c")
	<-c.done
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, filepath.Join(dir, "here")); got != real+"\na b-c\n" {
		t.Errorf("it says %q", got)
	}
}

func TestChildGetsSignals(t *testing.T) {
	signals := []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGQUIT}
	// What nohup or a shell had this process ignore, a child would ignore too. As
	// the daemon does, take them: then the child begins with the default action.
	taken := make(chan os.Signal, 1)
	for _, sig := range signals {
		signal.Notify(taken, sig)
	}
	defer signal.Stop(taken)
	for _, sig := range signals {
		dir := t.TempDir()
		c := startTestChild(t, dir, "sh", "-c", "trap 'exit 7' "+strconv.Itoa(int(sig))+"; touch ready; while :; do sleep 0.01; done")
		eventually(t, "the child is ready", func() bool { return exists(filepath.Join(dir, "ready")) })
		c.signal(sig)
		<-c.done
		if c.code != 7 {
			t.Errorf("%v: exit code %d", sig, c.code)
		}
	}
}

func TestStopEndsTheWholeGroup(t *testing.T) {
	alive := func(t *testing.T, pidFile string) bool {
		pid, err := strconv.Atoi(strings.TrimSpace(readFile(t, pidFile)))
		if err != nil {
			t.Fatal(err)
		}
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err == nil && !bytes.Contains(stat, []byte(") Z "))
	}
	for name, tc := range map[string]struct {
		script string
		code   int
		slow   bool // --stop-timeout has to pass
	}{
		"obeys":             {"sleep 1000 & echo $! > left; trap 'exit 5' TERM; touch ready; wait", 5, false},
		"ignores":           {"trap '' TERM; sleep 1000 & echo $! > left; touch ready; while :; do sleep 0.01; done", 137, true},
		"leaves a stubborn": {"(trap '' TERM; touch ready; while :; do sleep 0.01; done) & echo $! > left; trap 'exit 5' TERM; wait", 5, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			c := startTestChild(t, dir, "sh", "-c", tc.script)
			eventually(t, "the child is ready", func() bool { return exists(filepath.Join(dir, "ready")) && exists(filepath.Join(dir, "left")) })
			timeout := 300 * time.Millisecond
			start := time.Now()
			if !tc.slow {
				timeout = time.Minute
			}
			c.stop(unix.SIGTERM, timeout)
			if c.code != tc.code {
				t.Errorf("exit code %d, want %d", c.code, tc.code)
			}
			if tc.slow && time.Since(start) < timeout {
				t.Errorf("killed after %v, before its time", time.Since(start))
			}
			eventually(t, "what it left behind is gone", func() bool { return !alive(t, filepath.Join(dir, "left")) })
		})
	}
}

// A COMMAND does not share the process group, so that a Ctrl-C reaches it once.
func TestChildHasItsOwnGroup(t *testing.T) {
	c := startTestChild(t, "", "sleep", "1000")
	group, err := unix.Getpgid(c.cmd.Process.Pid)
	if err != nil || group != c.cmd.Process.Pid {
		t.Errorf("group %d of process %d (%v)", group, c.cmd.Process.Pid, err)
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// run runs a command to its end.
func run(t *testing.T, name string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdout, cmd.Stderr = io.Writer(&stdout), &stderr
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}
