// Package versitygw runs a real S3 server, versitygw, for tests: on a free port of
// the loopback, over a temporary folder, until the test ends.
//
// A test that needs it fails where the server is missing; it never skips.
package versitygw

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Env names the environment variable with the path of the versitygw binary.
const Env = "CHROMAFS_TEST_VERSITYGW"

// Server is a running versitygw.
type Server struct {
	Endpoint             string // http://127.0.0.1:port
	AccessKey, SecretKey string
	Region               string
	Dir                  string // a bucket is a folder in it, an object a file

	t       testing.TB
	binary  string
	sidecar string // where the file system has no extended attributes
	stop    func()
}

// Start starts a server, and stops it in the test's cleanup.
func Start(t testing.TB) *Server {
	t.Helper()
	binary := os.Getenv(Env)
	if binary == "" {
		t.Fatalf("%s is not set: it names the versitygw binary. Run the tests by scripts/test, which builds it "+
			"(go install github.com/versity/versitygw/cmd/versitygw@v1.8.0)", Env)
	}
	base := t.TempDir()
	s := &Server{
		AccessKey: "testaccess", SecretKey: "testsecret-of-versitygw", Region: "us-east-1",
		Dir: filepath.Join(base, "buckets"), t: t, binary: binary,
	}
	if err := os.Mkdir(s.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if unix.Setxattr(s.Dir, "user.chromafs-test", []byte("x"), 0) != nil {
		s.sidecar = filepath.Join(base, "sidecar")
		if err := os.Mkdir(s.sidecar, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(s.Stop)
	var err error
	for range 5 { // another process may take the free port in between
		s.Endpoint = "http://" + freeAddress(t)
		if err = s.run(); err == nil {
			return s
		}
	}
	t.Fatal(err)
	return nil
}

// Stop kills the server; Restart starts it again on the same port, over the same data.
func (s *Server) Stop() {
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
}

// Restart starts a server that was stopped.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	if err := s.run(); err != nil {
		s.t.Fatal(err)
	}
}

// CreateBucket makes an empty bucket.
func (s *Server) CreateBucket(name string) {
	s.t.Helper()
	if err := os.Mkdir(filepath.Join(s.Dir, name), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// Environ returns the environment variables with the credentials.
func (s *Server) Environ() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + s.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s.SecretKey}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// run starts the process and waits until it listens.
func (s *Server) run() error {
	address := s.Endpoint[len("http://"):]
	args := []string{"--port", address, "--access", s.AccessKey, "--secret", s.SecretKey, "--region", s.Region, "--quiet", "posix"}
	if s.sidecar != "" {
		args = append(args, "--sidecar", s.sidecar)
	}
	var out lockedBuffer
	cmd := exec.Command(s.binary, append(args, s.Dir)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}

	started, exited := make(chan error, 1), make(chan struct{})
	go func() {
		// The parent of which Pdeathsig speaks is a thread: it must not end first.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(exited)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", s.binary, err)
	}
	stop := func() {
		cmd.Process.Kill()
		<-exited
	}
	deadline := time.After(20 * time.Second)
	for {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			s.stop = stop
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("versitygw ended at once: %s", out.String())
		case <-deadline:
			stop()
			return fmt.Errorf("versitygw does not listen on %s: %s", address, out.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// lockedBuffer collects output that is read while more of it comes.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

// Write implements io.Writer.
func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns what was written.
func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
