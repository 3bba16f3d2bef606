package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is a running "chroma run", spoken to over HTTP.
type Server struct {
	t    testing.TB
	base string
	cmd  *exec.Cmd
	log  bytes.Buffer // read after done
	done chan struct{}
	http *http.Client

	mu  sync.Mutex
	ids map[string]string // collection name → id; guarded by mu
}

// ServerArgs is the command line of a ChromaDB server on path.
func ServerArgs(t testing.TB, path string, port int) []string {
	return []string{filepath.Join(filepath.Dir(Python(t)), "chroma"), "run",
		"--path", path, "--host", "127.0.0.1", "--port", strconv.Itoa(port)}
}

// FreePort returns a port of the loopback address that nobody listens on.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// StartServer runs a ChromaDB server on path until the test ends.
func StartServer(t testing.TB, path string) *Server {
	t.Helper()
	return StartServerUnless(t, path, func() bool { return false })
}

// StartServerUnless runs a ChromaDB server as StartServer does. Where it does not
// start because what it needs is gone, it returns nil.
func StartServerUnless(t testing.TB, path string, gone func() bool) *Server {
	t.Helper()
	port := FreePort(t)
	args := ServerArgs(t, path, port)
	s := ConnectServer(t, port)
	s.cmd = exec.Command(args[0], args[1:]...)
	s.cmd.Env = Environ("ANONYMIZED_TELEMETRY=False")
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.done = make(chan struct{})
	if err := StartAndWait(s.cmd, s.done); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	ready := false
	Eventually(t, time.Minute, "the ChromaDB server answers", func() bool {
		select {
		case <-s.done:
			if !gone() {
				t.Fatalf("the ChromaDB server ended: %s", &s.log)
			}
		default:
			ready = s.answers()
		}
		return ready || gone()
	})
	if !ready {
		s.Kill()
		return nil
	}
	return s
}

// ConnectServer speaks to a server that something else runs on port.
func ConnectServer(t testing.TB, port int) *Server {
	return &Server{t: t, base: fmt.Sprintf("http://127.0.0.1:%d/api/v2", port), ids: map[string]string{},
		http: &http.Client{Timeout: time.Minute}}
}

// WaitReady waits until a server that something else runs answers.
func (s *Server) WaitReady() {
	s.t.Helper()
	Eventually(s.t, time.Minute, "the ChromaDB server answers", func() bool {
		return s.answers()
	})
}

func (s *Server) answers() bool { return s.call(http.MethodGet, "/heartbeat", nil, nil) == nil }

// Stop ends the server: SIGTERM, and SIGKILL if it does not listen.
func (s *Server) Stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-s.done:
	case <-time.After(5 * time.Second):
		s.Kill()
	}
}

// Kill ends the server at once.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.done
}

// call sends a request and decodes the answer into result, if that is not nil.
func (s *Server) call(method, path string, body, result any) error {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, s.base+path, content)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer, result)
}

const collections = "/tenants/default_tenant/databases/default_database/collections"

// collection returns the id of a collection, made with small HNSW thresholds if it
// is new.
func (s *Server) collection(name string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id := s.ids[name]; id != "" {
		return id, nil
	}
	var made struct {
		ID string `json:"id"`
	}
	err := s.call(http.MethodPost, collections, map[string]any{
		"name": name, "get_or_create": true,
		"configuration": map[string]any{"hnsw": map[string]any{"space": "l2", "sync_threshold": 200, "batch_size": 100}},
	}, &made)
	if err == nil && made.ID == "" {
		err = errors.New("ChromaDB named no collection")
	}
	s.ids[name] = made.ID
	return made.ID, err
}

// TryAdd adds documents first … first+count-1 in one request. Once it returns nil
// they are acknowledged.
func (s *Server) TryAdd(name string, first, count int) error {
	id, err := s.collection(name)
	if err != nil {
		return err
	}
	var ids, texts []string
	var vectors [][]float64
	for i := first; i < first+count; i++ {
		ids, vectors, texts = append(ids, ID(i)), append(vectors, Vector(i)), append(texts, fmt.Sprint("document ", i))
	}
	return s.call(http.MethodPost, collections+"/"+id+"/add",
		map[string]any{"ids": ids, "embeddings": vectors, "documents": texts}, nil)
}

// Add is TryAdd that must succeed, in batches.
func (s *Server) Add(name string, first, count int) {
	s.t.Helper()
	const batch = 50
	for i := first; i < first+count; i += batch {
		if err := s.TryAdd(name, i, min(batch, first+count-i)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// Verify fails the test unless each collection holds at least the documents want
// says, gapless, each found by its own vector. It returns how many there are.
func (s *Server) Verify(want Documents) Documents {
	s.t.Helper()
	held := Documents{}
	for name, n := range want {
		id, err := s.collection(name)
		if err != nil {
			s.t.Fatal(err)
		}
		var answer struct {
			IDs []string `json:"ids"`
		}
		if err := s.call(http.MethodPost, collections+"/"+id+"/get", map[string]any{"include": []string{}}, &answer); err != nil {
			s.t.Fatal(err)
		}
		slices.Sort(answer.IDs)
		if len(answer.IDs) < n {
			s.t.Fatalf("%s holds %d documents, %d were acknowledged", name, len(answer.IDs), n)
		}
		for i, id := range answer.IDs {
			if id != ID(i) {
				s.t.Fatalf("%s has a gap: %s where %s belongs", name, id, ID(i))
			}
		}
		s.verifyVectors(id, name, len(answer.IDs))
		held[name] = len(answer.IDs)
	}
	return held
}

func (s *Server) verifyVectors(id, name string, n int) {
	s.t.Helper()
	const batch = 200
	for first := 0; first < n; first += batch {
		var vectors [][]float64
		for i := first; i < min(first+batch, n); i++ {
			vectors = append(vectors, Vector(i))
		}
		var found struct {
			IDs [][]string `json:"ids"`
		}
		if err := s.call(http.MethodPost, collections+"/"+id+"/query",
			map[string]any{"query_embeddings": vectors, "n_results": 3, "include": []string{}}, &found); err != nil {
			s.t.Fatal(err)
		}
		if len(found.IDs) != len(vectors) {
			s.t.Fatalf("%s: %d answers to %d searches", name, len(found.IDs), len(vectors))
		}
		for i, near := range found.IDs {
			if !slices.Contains(near, ID(first+i)) {
				s.t.Fatalf("%s: the vector of %s does not find it: %v", name, ID(first+i), near)
			}
		}
	}
}
