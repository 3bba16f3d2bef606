// Package faultproxy stands between a client and an S3 server, passes requests on,
// counts them, and spoils those that a test chooses: by their number, by what they
// are, or all of them for a while.
//
// The model: a Fault is what happens to one exchange instead of passing it on. It
// speaks to the client's connection directly, so that it can reset it in the middle
// of a body or say nothing for ever. The server behind sees a request whole or not at
// all: whatever a fault makes of an answer, the write took effect; whatever it makes
// of a request, it did not (but for a flipped byte, which the server may notice).
package faultproxy

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Request is what the proxy remembers of a request.
type Request struct {
	Method, URI string
	Size        int64  // of its body
	Source      string // of a copy: what is copied
}

// String returns method and address.
func (r Request) String() string { return r.Method + " " + r.URI }

// Chooser says what happens to the request number n, counted from 1: nil passes it on.
type Chooser func(n int, r *http.Request) Fault

// Proxy forwards to one server.
type Proxy struct {
	URL string // http://127.0.0.1:port

	t       testing.TB
	address string
	forward *httputil.ReverseProxy
	server  *http.Server
	port    int // a socket that keeps the port while nothing listens

	down sync.WaitGroup // while it refuses connections

	mu       sync.Mutex // guards what follows
	choose   Chooser
	requests []Request
	spoiled  int
	listener net.Listener
	conns    map[net.Conn]bool
	held     []net.Conn // of exchanges that are never to end
}

// Start starts a proxy before the server at endpoint, until the test ends.
func Start(t testing.TB, endpoint string) *Proxy {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true}
	p := &Proxy{t: t, conns: map[net.Conn]bool{}, forward: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		Transport: transport,
		ErrorLog:  log.New(io.Discard, "", 0), // what clients give up is no news
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, _ error) {
			panic(http.ErrAbortHandler) // as the client would have met it
		},
	}}
	if p.port, err = reserve(); err != nil {
		t.Fatalf("reserve a port: %v", err)
	}
	if p.address, err = addressOf(p.port); err != nil {
		t.Fatal(err)
	}
	p.URL = "http://" + p.address
	p.server = &http.Server{Handler: p, ConnState: p.track, ErrorLog: log.New(io.Discard, "", 0)}
	if err := p.listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.server.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.held {
			c.Close()
		}
		transport.CloseIdleConnections()
		unix.Close(p.port)
	})
	return p
}

// Choose sets who decides about requests from now on (nil: all pass), and forgets
// those that came before. It waits until connections are accepted.
func (p *Proxy) Choose(c Chooser) {
	p.down.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.choose, p.requests, p.spoiled = c, nil, 0
}

// Spoil does so for the nth request from now on, and no other.
func (p *Proxy) Spoil(n int, f Fault) {
	p.Choose(func(i int, _ *http.Request) Fault {
		if i == n {
			return f
		}
		return nil
	})
}

// Requests returns those since the last Choose.
func (p *Proxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests)
}

// Spoiled returns how many of them were.
func (p *Proxy) Spoiled() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spoiled
}

// ServeHTTP implements http.Handler, for tests that listen in their own way.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.requests = append(p.requests, Request{r.Method, r.URL.RequestURI(), r.ContentLength, r.Header.Get("x-amz-copy-source")})
	var f Fault
	if p.choose != nil {
		f = p.choose(len(p.requests), r)
	}
	if f != nil {
		p.spoiled++
	}
	p.mu.Unlock()
	if f == nil {
		p.forward.ServeHTTP(w, r)
		return
	}
	f(&Exchange{W: w, R: r, p: p})
}

func (p *Proxy) track(c net.Conn, state http.ConnState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch state {
	case http.StateNew:
		p.conns[c] = true
	case http.StateHijacked, http.StateClosed:
		delete(p.conns, c)
	}
}

// hold keeps a connection open, and silent, until the test ends.
func (p *Proxy) hold(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = append(p.held, c)
}

// listen accepts connections, again after goDown.
func (p *Proxy) listen() error {
	l, err := (&net.ListenConfig{Control: shared}).Listen(context.Background(), "tcp4", p.address)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.listener = l
	p.mu.Unlock()
	go func() {
		if err := p.server.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			p.t.Errorf("faultproxy: %v", err)
		}
	}()
	return nil
}

// goDown resets every connection and lets new ones be refused.
func (p *Proxy) goDown() {
	p.mu.Lock()
	p.listener.Close()
	p.mu.Unlock()
	p.Drop()
}

// Drop resets every connection.
func (p *Proxy) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		reset(c)
	}
}

// reset breaks a connection as a machine does that knows nothing of it.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // it may be gone already
	}
	c.Close()
}

// reserve binds a socket to a free port of the loopback, which then is nobody
// else's, and on which nobody listens.
func reserve() (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func addressOf(fd int) (string, error) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return "", err
	}
	at := name.(*unix.SockaddrInet4)
	return (&net.TCPAddr{IP: at.Addr[:], Port: at.Port}).String(), nil
}

// shared lets a listener share its port with the socket that reserves it.
func shared(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return errors.Join(err, failed)
}
