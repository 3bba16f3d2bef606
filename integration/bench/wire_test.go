//go:build bench

package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

// wire stands between a tool and a server and counts requests and bytes in both
// directions, as TCP carries them. Bodies do not pass through this process: the
// kernel moves them from one connection to the other.
type wire struct {
	server   string // host:port
	Endpoint string // of the wire itself

	up, requests atomic.Int64 // as they come
	down         atomic.Int64 // of connections that have ended
	open         atomic.Int64 // connections

	mu      sync.Mutex
	broken  error     // what was no HTTP; guarded by mu
	swapped time.Time // when chromafs's manifest.json was last put: that is what publishes; guarded by mu
}

// newWire returns a wire to an http endpoint.
func newWire(t testing.TB, endpoint string) *wire {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w := &wire{server: strings.TrimPrefix(endpoint, "http://"), Endpoint: "http://" + l.Addr().String()}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			w.open.Add(1)
			go w.serve(client.(*net.TCPConn))
		}
	}()
	return w
}

func (w *wire) serve(client *net.TCPConn) {
	defer w.open.Add(-1)
	defer client.Close()
	conn, err := net.Dial("tcp", w.server)
	if err != nil {
		w.fail(err)
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		n, _ := io.Copy(client, server) // the side that cares sees an error itself
		w.down.Add(n)
		client.CloseWrite()
	}()
	if err := w.forward(server, client); err != nil {
		w.fail(err)
	}
	server.CloseWrite()
	<-answered
}

func (w *wire) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = errors.Join(w.broken, err)
}

// errNoHTTP means that requests cannot be told apart any more.
var errNoHTTP = errors.New("what goes over the wire is no HTTP")

// forward passes on requests until the client closes the connection.
func (w *wire) forward(server, client *net.TCPConn) error {
	r := bufio.NewReaderSize(client, 16<<10)
	for {
		head, err := readHead(r)
		if err != nil {
			return err
		}
		if head == nil {
			return nil
		}
		length, chunked, err := bodyOf(head)
		if err != nil {
			return err
		}
		w.note(head)
		w.up.Add(int64(len(head)))
		if _, err := server.Write(head); err != nil {
			return nil // the client is told by the other direction
		}
		if chunked {
			err = w.passChunks(server, r)
		} else {
			err = w.pass(server, r, client, length)
		}
		if errors.Is(err, errNoHTTP) {
			return err
		}
		if err != nil {
			return nil
		}
	}
}

// note counts a request.
func (w *wire) note(head []byte) {
	w.requests.Add(1)
	line, _, _ := bytes.Cut(head, []byte("\r\n"))
	if !bytes.HasPrefix(line, []byte("PUT ")) || !bytes.HasSuffix(line, []byte("/chromadb/manifest.json HTTP/1.1")) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.swapped = time.Now()
}

// readHead reads a request up to its body, nil at the connection's end.
func readHead(r *bufio.Reader) (head []byte, err error) {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && len(head)+len(line) == 0 {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: it ends within the head of a request: %w", errNoHTTP, err)
		}
		if head == nil && !bytes.HasSuffix(line, []byte(" HTTP/1.1\r\n")) {
			return nil, fmt.Errorf("%w: a request begins with %q", errNoHTTP, line)
		}
		head = append(head, line...)
		if len(line) == 2 {
			return head, nil
		}
	}
}

// bodyOf returns how long the body is that follows a head.
func bodyOf(head []byte) (length int64, chunked bool, err error) {
	_, fields, _ := bytes.Cut(head, []byte("\n"))
	h, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(fields))).ReadMIMEHeader()
	if err != nil {
		return 0, false, fmt.Errorf("%w: %w", errNoHTTP, err)
	}
	if h.Get("Transfer-Encoding") != "" {
		return 0, true, nil
	}
	if text := h.Get("Content-Length"); text != "" {
		if length, err = strconv.ParseInt(text, 10, 64); err != nil {
			return 0, false, fmt.Errorf("%w: %w", errNoHTTP, err)
		}
	}
	return length, false, nil
}

// pass passes on a body: what was read with its head, and the rest by the kernel.
func (w *wire) pass(server *net.TCPConn, r *bufio.Reader, client *net.TCPConn, length int64) error {
	first, err := io.CopyN(server, r, min(length, int64(r.Buffered())))
	w.up.Add(first)
	if err != nil || first == length {
		return err
	}
	rest, err := io.CopyN(server, client, length-first)
	w.up.Add(rest)
	return err
}

// passChunks passes on a body without a length.
func (w *wire) passChunks(server io.Writer, r *bufio.Reader) error {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		size, _, _ := strings.Cut(strings.TrimSpace(string(line)), ";")
		length, err := strconv.ParseInt(size, 16, 64)
		if err != nil {
			return fmt.Errorf("%w: %w", errNoHTTP, err)
		}
		n, err := io.Copy(server, io.MultiReader(bytes.NewReader(bytes.Clone(line)), io.LimitReader(r, length+2)))
		w.up.Add(n)
		if err != nil || length == 0 {
			return err
		}
	}
}

// traffic is what went over a wire.
type traffic struct {
	up, down, requests int64
	swapped            time.Time // see wire; zero: not
}

// take returns what went over the wire since the last time, once the connections of
// whoever used it are closed.
func (w *wire) take(t testing.TB) traffic {
	t.Helper()
	harness.Eventually(t, 10*time.Second, "the tool's connections are closed", func() bool { return w.open.Load() == 0 })
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != nil {
		t.Fatalf("the wire: %v", w.broken)
	}
	defer func() { w.swapped = time.Time{} }()
	return traffic{w.up.Swap(0), w.down.Swap(0), w.requests.Swap(0), w.swapped}
}
