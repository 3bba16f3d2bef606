package harness

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// prerequisite returns the path that an environment variable names.
func prerequisite(t testing.TB, variable string) string {
	t.Helper()
	p := os.Getenv(variable)
	if p == "" {
		t.Fatalf("%s is not set: run these tests with scripts/test integration", variable)
	}
	if _, err := os.Stat(p); err != nil {
		t.Fatalf("%s: %v: run these tests with scripts/test integration", variable, err)
	}
	return p
}

// Binary is the program as people run it.
func Binary(t testing.TB) string { return prerequisite(t, "CHROMAFS_TEST_BINARY") }

// FailpointsBinary is the program with failpoints and the race detector.
func FailpointsBinary(t testing.TB) string {
	return prerequisite(t, "CHROMAFS_TEST_FAILPOINTS_BINARY")
}

// Python has a ChromaDB.
func Python(t testing.TB) string { return prerequisite(t, "CHROMAFS_TEST_PYTHON") }

// Result is how a command ended.
type Result struct {
	Args   []string
	Code   int
	Stdout string
	Stderr string
}

// Output is all that it said.
func (r Result) Output() string { return r.Stdout + r.Stderr }

// Environ is this process's environment without what would configure chromafs or
// an S3 client, and with extra.
func Environ(extra ...string) []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "CHROMAFS_") && !strings.HasPrefix(v, "AWS_") && !strings.HasPrefix(v, "MINIO_") {
			env = append(env, v)
		}
	}
	return append(env, extra...)
}

const commandTimeout = 3 * time.Minute

// run runs a command to its end.
func run(t testing.TB, env []string, name string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = Environ(env...), &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	var exited *exec.ExitError
	if err != nil && (ctx.Err() != nil || !errors.As(err, &exited)) {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(name), strings.Join(args, " "), err, &stdout, &stderr)
	}
	return Result{args, cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// Eventually polls until condition holds.
func Eventually(t testing.TB, timeout time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", timeout, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// CopyTree copies a folder as cp -a does.
func CopyTree(t testing.TB, from, to string) {
	t.Helper()
	if r := run(t, nil, "cp", "-a", from, to); r.Code != 0 {
		t.Fatal(r.Output())
	}
}

// Exists reports whether there is something at path.
func Exists(t testing.TB, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// Entries lists the names in a folder; a missing folder has none.
func Entries(t testing.TB, folder string) []string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
