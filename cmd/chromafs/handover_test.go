package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/control"
	"github.com/chromafs/chromafs/internal/lease"
)

// DESIGN §8: a mount hands the store over to the next one, says so, serves on, and leaves
// nothing behind if nothing was written to it since.
func TestHandOver(t *testing.T) {
	t.Parallel()
	s, next := newScene(t), newScene(t)
	next.store = s.store
	first := s.start(s.answers(s.point), s.dir, s.point)
	writeFile(t, filepath.Join(s.point, "shared"), "x")
	if text := s.must(0, "status", s.point).stdout; !strings.Contains(text, "held by this mount") {
		t.Errorf("status: %s", text)
	}

	second := next.start(next.answers(next.point), next.dir, next.point)
	same(t, "what was not stored when it was asked", content(t, next.dir), map[string]string{"shared": "x"})
	st := s.status(s.point)
	if !st.Yielded || st.Fenced || st.Dirty || st.NextDue != nil || st.Lease == nil || st.Lease.Waiter == "" {
		t.Errorf("status: %+v, lease %+v", st, st.Lease)
	}
	if text := s.must(0, "status", s.point).stdout; !strings.Contains(text, "yielded to") && !strings.Contains(text, "lost to") {
		t.Errorf("status: %s", text)
	}
	if r := s.must(1, "status", "--check", s.point); !strings.Contains(r.stderr, "handed over") && !strings.Contains(r.stderr, "another writer") {
		t.Errorf("status --check: %s", r.stderr)
	}
	same(t, "it serves on", content(t, s.point), map[string]string{"shared": "x"})
	s.must(0, "unmount", s.point)
	if code := first.wait(); code != 0 {
		t.Errorf("the first: exit code %d: %s", code, first.stderr)
	}
	if r := leaseOf(t, s.store); r.State != lease.Held || r.Epoch != 2 {
		t.Errorf("the first touched the lease of the second: %+v", r)
	}
	second.signal(unix.SIGTERM)
	if code := second.wait(); code != 0 {
		t.Errorf("the second: exit code %d: %s", code, second.stderr)
	}
	if r := leaseOf(t, s.store); r.State != lease.Released || r.Epoch != 2 || r.Current == "" {
		t.Errorf("the lease after a clean stop: %+v", r)
	}
}

// A start that fails after the takeover keeps nobody waiting.
func TestStartThatFailsReleasesTheLease(t *testing.T) {
	t.Parallel()
	s, next := newScene(t), newScene(t)
	next.store = s.store
	s.must(0, "mount", s.dir, s.point, "--", "sh", "-c", "echo x > "+s.point+"/f")
	id := s.status(s.dir).Last.ID
	for _, path := range []string{"f", "history/" + id + "/f"} {
		writeFile(t, filepath.Join(s.store, path), "damaged")
	}
	next.must(5, "mount", next.dir, next.point)
	if r := leaseOf(t, s.store); r.State != lease.Released || r.Epoch != 2 {
		t.Errorf("the lease: %+v", r)
	}
}

// A wait for another mount ends with the signal that ends the mount.
func TestInterruptedWait(t *testing.T) {
	t.Parallel()
	s, next := newScene(t), newScene(t)
	next.store = s.store
	first := s.start(s.answers(s.point), s.dir, s.point)
	first.signal(unix.SIGKILL)
	first.wait()
	second := next.command("mount", next.dir, next.point)
	var stderr strings.Builder
	second.Stderr = &stderr
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for leaseOf(t, s.store).Request == nil {
		if time.Now().After(deadline) {
			t.Fatalf("nothing was asked: %s", stderr.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := second.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := second.Wait(); err == nil || time.Since(start) > 5*time.Second || !strings.Contains(stderr.String(), "interrupted") {
		t.Errorf("after %v: %v: %s", time.Since(start), err, stderr.String())
	}
}

func leaseOf(t *testing.T, store string) lease.Record {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(store, lease.Key))
	if err != nil {
		t.Fatal(err)
	}
	r, err := lease.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDescribeLease(t *testing.T) {
	now := time.Now()
	for want, l := range map[string]control.Lease{
		"held by this mount for 2m 0s (epoch 3)":    {State: "held", Epoch: 3, Waiter: "w"},
		"yielding to w on host for 2m 0s (epoch 3)": {State: "yielding", Epoch: 3, Waiter: "w on host"},
		"yielded to w for 2m 0s (epoch 3)":          {State: "yielded", Epoch: 3, Waiter: "w"},
		"lost to another mount for 2m 0s (epoch 3)": {State: "lost", Epoch: 3},
		"lost to h for 2m 0s (epoch 3)":             {State: "lost", Epoch: 3, Holder: "h"},
	} {
		l.Since = now.Add(-2 * time.Minute)
		if got := describeLease(l, now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
