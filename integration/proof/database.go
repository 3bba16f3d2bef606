package proof

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

//go:embed proof.py
var proofPy string

// hnsw are the settings of every collection. Persists are frequent. Every element of
// an index may be a neighbour of every other, and a search looks at all of them:
// otherwise HNSW, which is approximate, loses a document now and then for which
// nobody is to blame.
func hnsw() map[string]any {
	return map[string]any{"space": "l2", "sync_threshold": 200, "batch_size": 100,
		"max_neighbors": maxElements, "ef_construction": maxElements, "ef_search": maxElements}
}

// maxElements is how many documents may ever have been in a collection.
const maxElements = 128

// database is a ChromaDB that writes can be sent to, several at once.
type database interface {
	apply(o *operation) error // returns nil once it is acknowledged
	stop()
}

// server is "chroma run".
type server struct{ *harness.Server }

func startServer(t testing.TB, path string, collections []string) database {
	s := server{harness.StartServer(t, path)}
	for _, name := range collections {
		if err := s.Create(name, hnsw()); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s server) apply(o *operation) error { return s.TryWrite(o.collection, string(o.verb), o.body()) }
func (s server) stop()                    { s.Stop() }

// client is a process with a PersistentClient.
type client struct {
	w *worker

	mu      sync.Mutex
	pending map[int]chan error // by number of operation; nil once the process has ended; guarded by mu
}

func startClient(t testing.TB, path string, collections []string) database {
	settings, err := json.Marshal(hnsw())
	if err != nil {
		t.Fatal(err)
	}
	c := &client{w: startWorker(t, append([]string{"apply", path, string(settings)}, collections...)...), pending: map[int]chan error{}}
	var ready struct{}
	if err := c.w.receive(&ready); err != nil {
		t.Fatal(err)
	}
	go c.receive()
	return c
}

func (c *client) receive() {
	for {
		var answer struct {
			Number int     `json:"number"`
			Error  *string `json:"error"`
		}
		err := c.w.receive(&answer)
		c.mu.Lock()
		if err != nil {
			for _, waiting := range c.pending {
				waiting <- err
			}
			c.pending = nil
			c.mu.Unlock()
			return
		}
		waiting := c.pending[answer.Number]
		delete(c.pending, answer.Number)
		c.mu.Unlock()
		if answer.Error != nil {
			err = errors.New(*answer.Error)
		}
		waiting <- err
	}
}

func (c *client) apply(o *operation) error {
	done := make(chan error, 1)
	c.mu.Lock()
	if c.pending == nil {
		c.mu.Unlock()
		return errors.New("the PersistentClient has ended")
	}
	c.pending[o.number] = done
	err := c.w.send(map[string]any{
		"number": o.number, "verb": o.verb, "collection": o.collection, "body": o.body(),
	})
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return <-done
}

func (c *client) stop() { c.w.stop() }

// ballast is a database with a collection that nobody changes: copying a directory
// that begins with it takes a while, as it does with those of people.
type ballast struct {
	once sync.Once
	path string
}

var fixture ballast

// copyTo lets a directory begin with the ballast.
func (b *ballast) copyTo(t testing.TB, dir string) {
	t.Helper()
	b.once.Do(func() {
		path, err := os.MkdirTemp("", "chromafs-ballast")
		if err != nil {
			t.Fatal(err)
		}
		w := startWorker(t, "ballast", path)
		<-w.done
		if !w.cmd.ProcessState.Success() {
			t.Fatalf("the ballast could not be made: %v", w.receive(nil))
		}
		b.path = path
	})
	if b.path == "" {
		t.Fatal("the ballast could not be made")
	}
	harness.CopyTree(t, b.path+"/.", dir)
}

// remove removes it at the end of all tests.
func (b *ballast) remove() error { return os.RemoveAll(b.path) }

// worker is a running proof.py.
type worker struct {
	t    testing.TB
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	log  string
	done chan struct{}
}

func startWorker(t testing.TB, args ...string) *worker {
	t.Helper()
	folder := t.TempDir()
	script := filepath.Join(folder, "proof.py")
	if err := os.WriteFile(script, []byte(proofPy), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &worker{t: t, log: filepath.Join(folder, "log"), done: make(chan struct{})}
	log, err := os.Create(w.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	w.cmd = exec.Command(harness.Python(t), append([]string{script}, args...)...)
	w.cmd.Stderr = log
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	// A pipe of our own: Wait would close that of StdoutPipe under its reader.
	r, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w.cmd.Stdout, w.out = out, bufio.NewReaderSize(r, 1<<20)
	if err := harness.StartAndWait(w.cmd, w.done); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.stop()
		r.Close()
	})
	return w
}

func (w *worker) send(request any) error {
	line, err := json.Marshal(request)
	if err != nil {
		return err
	}
	_, err = w.in.Write(append(line, '\n'))
	return err
}

func (w *worker) receive(answer any) error {
	line, err := w.out.ReadBytes('\n')
	if err != nil {
		log, _ := os.ReadFile(w.log) // only to explain
		return fmt.Errorf("proof.py %v ended: %w: %s", w.cmd.Args[2:], err, log)
	}
	if err := json.Unmarshal(line, answer); err != nil {
		return fmt.Errorf("proof.py %v said %q: %w", w.cmd.Args[2:], line, err)
	}
	return nil
}

// stop ends the process: what it was asked before is done first.
func (w *worker) stop() {
	w.in.Close() // it may have ended
	select {
	case <-w.done:
	case <-time.After(10 * time.Second):
		_ = w.cmd.Process.Kill() // see above
		<-w.done
	}
}
