package harness

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// KillAt kills a process the nth time it gets to a failpoint.
func KillAt(failpoint string, nth int) string { return fmt.Sprintf("%s=kill+%d", failpoint, nth-1) }

// Died waits until the daemon is dead, which must have killed itself at a failpoint.
func (m *Mount) Died(failpoint string) {
	m.t.Helper()
	m.Wait(readyTimeout)
	diedAt(m.t, failpoint, m.cmd.ProcessState, m.hitsLog, m.log.String())
}

// Killed runs a subcommand on a store that must kill itself at a failpoint, the nth
// time it gets there.
func Killed(t testing.TB, failpoint string, nth int, s *Store, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	hits := filepath.Join(t.TempDir(), "failpoints")
	cmd := exec.CommandContext(ctx, FailpointsBinary(t), append(args, s.flags()...)...)
	cmd.Env = Environ(append(s.env(), "CHROMAFS_FAILPOINTS="+KillAt(failpoint, nth), "CHROMAFS_FAILPOINTS_LOG="+hits)...)
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatalf("chromafs %s: %v", strings.Join(args, " "), err)
	}
	diedAt(t, failpoint, cmd.ProcessState, hits, out.String())
}

func diedAt(t testing.TB, failpoint string, state *os.ProcessState, hits, output string) {
	t.Helper()
	noted, err := os.ReadFile(hits)
	if status, ok := state.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != unix.SIGKILL {
		t.Fatalf("it did not die at %s: %v: %s", failpoint, state, output)
	}
	line := "failpoint " + failpoint + "\n" // more than once where several come there at once
	if err != nil || len(noted) == 0 || strings.ReplaceAll(string(noted), line, "") != "" {
		t.Fatalf("it died, but not at %s: %q, %v: %s", failpoint, noted, err, output)
	}
}

// Failing runs a subcommand on a store with failpoints, and reports whether any acted.
func Failing(t testing.TB, failpoints string, s *Store, args ...string) (r Result, hit bool) {
	t.Helper()
	hits := filepath.Join(t.TempDir(), "failpoints")
	env := append(s.env(), "CHROMAFS_FAILPOINTS="+failpoints, "CHROMAFS_FAILPOINTS_LOG="+hits, "GORACE=atexit_sleep_ms=0")
	r = run(t, env, FailpointsBinary(t), append(args, s.flags()...)...)
	return r, Exists(t, hits)
}
