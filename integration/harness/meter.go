package harness

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// Meter stands between chromafs and an S3 server, counts the bytes that the server
// sends, and can hold them back.
type Meter struct {
	listener net.Listener
	target   string
	group    sync.WaitGroup

	mu    sync.Mutex
	wake  *sync.Cond
	conns map[net.Conn]struct{} // guarded by mu, as is what follows
	bytes int64
	limit int64 // what passes; 0: everything
	held  bool  // the limit was reached
	ended bool
}

// NewMeter makes one until the test ends, and the store as it is reached through it.
func NewMeter(t testing.TB, s *Store) (*Meter, *Store) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &Meter{listener: l, target: strings.TrimPrefix(s.Endpoint, "http://"), conns: map[net.Conn]struct{}{}}
	m.wake = sync.NewCond(&m.mu)
	m.group.Go(m.accept)
	t.Cleanup(m.close)
	through := *s
	through.Endpoint = "http://" + l.Addr().String()
	return m, &through
}

// Reset counts from 0 on and lets limit bytes pass, all of them where that is 0.
func (m *Meter) Reset(limit int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes, m.limit, m.held = 0, limit, false
	m.wake.Broadcast()
}

// Bytes returns how many have passed.
func (m *Meter) Bytes() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes
}

// Held reports whether the limit was reached.
func (m *Meter) Held() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held
}

func (m *Meter) accept() {
	for {
		client, err := m.listener.Accept()
		if err != nil {
			return // closed
		}
		server, err := net.Dial("tcp", m.target)
		if err != nil || !m.add(client, server) {
			client.Close()
			continue
		}
		m.group.Go(func() { _, _ = io.Copy(server, client); m.drop(server) }) // how a connection ends is the ends' affair
		m.group.Go(func() { _, _ = io.Copy(client, meterReader{m, server}); m.drop(client) })
	}
}

type meterReader struct {
	m *Meter
	r io.Reader
}

func (r meterReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p[:min(len(p), 16<<10)])
	m := r.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.limit > 0 && m.bytes >= m.limit && !m.ended {
		m.held = true
		m.wake.Wait()
	}
	m.bytes += int64(n)
	return n, err
}

func (m *Meter) add(conns ...net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range conns {
		m.conns[c] = struct{}{}
	}
	return !m.ended
}

func (m *Meter) drop(c net.Conn) {
	c.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.conns, c)
}

func (m *Meter) close() {
	m.listener.Close()
	m.mu.Lock()
	m.ended = true
	m.wake.Broadcast()
	for c := range m.conns {
		c.Close()
	}
	m.mu.Unlock()
	m.group.Wait()
}
