package faultmatrix

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/objstore/s3"
	"github.com/chromafs/chromafs/internal/testutil/faultproxy"
	"github.com/chromafs/chromafs/uploader"
)

// writer returns a machine that has published as many snapshots as it keeps, so that
// the next one rotates.
func writer(t *testing.T, p place, keep int) *machine {
	t.Helper()
	m := newMachine(t, p, keep)
	for range m.keep {
		m.change(t)
		if m.round == 1 {
			if _, err := m.mount(t); err != nil {
				t.Fatal(err)
			}
		}
		m.snapshot(t)
	}
	m.checkTidy(t)
	return m
}

// snapshot takes one without faults.
func (m *machine) snapshot(t *testing.T) uploader.Result {
	t.Helper()
	r, err := m.up.Snapshot(t.Context())
	if err != nil || r.Untidy != "" {
		t.Fatalf("a snapshot without faults: %v%s", err, r.Untidy)
	}
	return r
}

// Every request of a snapshot fails in every way.
func TestSnapshot(t *testing.T) {
	server := startServer(t)
	rnd := seeded(t)
	m := writer(t, newPlace(t, server), 2)
	m.change(t)
	m.proxy.Choose(nil)
	m.snapshot(t)
	requests := m.proxy.Requests()
	checkRequests(t, requests)
	var worlds atomic.Int64
	spread(t, 4, cases(t, requests, rnd), rnd, func(t *testing.T) *machine {
		return writer(t, newPlace(t, server), 1+int(worlds.Add(1)%2))
	}, spoiledSnapshot)
}

// checkRequests fails the test if the snapshot that is to be failed does not do all
// that a snapshot can do.
func checkRequests(t *testing.T, requests []faultproxy.Request) {
	t.Helper()
	for what, is := range map[string]func(r faultproxy.Request) bool{
		"read of the head": func(r faultproxy.Request) bool {
			return r.Method == "GET" && strings.HasSuffix(r.URI, prefix+"/manifest.json")
		},
		"put": func(r faultproxy.Request) bool {
			return r.Method == "PUT" && r.Size > 0 && !strings.Contains(r.URI, "?")
		},
		"copy": func(r faultproxy.Request) bool {
			return r.Source != "" && strings.Contains(r.URI, "/history/") && !strings.Contains(r.URI, "partNumber")
		},
		"upload":      func(r faultproxy.Request) bool { return r.Method == "POST" && strings.HasSuffix(r.URI, "?uploads=") },
		"part":        func(r faultproxy.Request) bool { return r.Source == "" && strings.Contains(r.URI, "partNumber") },
		"copied part": func(r faultproxy.Request) bool { return r.Source != "" && strings.Contains(r.URI, "partNumber") },
		"completion":  func(r faultproxy.Request) bool { return r.Method == "POST" && strings.Contains(r.URI, "uploadId") },
		"publication": func(r faultproxy.Request) bool {
			return r.Method == "PUT" && strings.HasSuffix(r.URI, prefix+"/manifest.json")
		},
		"current":      func(r faultproxy.Request) bool { return r.Source != "" && !strings.Contains(r.URI, "/history/") },
		"deletion":     func(r faultproxy.Request) bool { return r.Method == "POST" && strings.Contains(r.URI, "delete") },
		"list":         func(r faultproxy.Request) bool { return strings.Contains(r.URI, "list-type") },
		"list uploads": func(r faultproxy.Request) bool { return r.Method == "GET" && strings.Contains(r.URI, "uploads") },
	} {
		found := false
		for _, r := range requests {
			found = found || is(r)
		}
		if !found {
			t.Errorf("the snapshot has no %s", what)
		}
	}
	t.Logf("%d requests", len(requests))
	for i, r := range requests {
		t.Logf("%3d %s (%d bytes)", i+1, r, r.Size)
	}
}

// tries is how often a case is tried whose fault comes with short timeouts: on a busy
// machine they may end a run before its request n, or a slow answer.
const tries = 5

// patience is how long a run with a fault may take: longer than any timeout of its own.
const patience = time.Minute

func spoiledSnapshot(t *testing.T, m *machine, c one, rnd *rand.Rand) {
	m.log.Reset()
	for n := 1; ; n++ {
		before := m.files(t)
		m.change(t)
		after := m.files(t)
		m.reopenStore(t, c.timeouts)
		repeats := rnd.IntN(2) == 0
		if repeats {
			m.store.Store = repeating(m.store.Store)
		}
		m.proxy.Spoil(c.n, c.fault(rnd.IntN))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		res, err := m.up.Snapshot(ctx)
		cancel()
		hit := m.proxy.Spoiled()
		m.proxy.Choose(nil)
		m.reopenStore(t, patient)
		t.Logf("the snapshot: %+v, %v", res, err)

		failed := err != nil || res.Untidy != ""
		again := n < tries && c.timeouts != (s3.Timeouts{}) && failed && (hit == 0 || c.works)
		if !again && hit != 1 {
			t.Errorf("%d requests were spoiled", hit)
		}
		if !again && c.works && failed {
			t.Errorf("slow is not broken: %v%s", err, res.Untidy)
		}
		if !again && repeats && c.passing && failed {
			t.Errorf("what passes by itself was repeated, and failed all the same: %v%s", err, res.Untidy)
		}
		if errors.Is(err, uploader.ErrFenced) || errors.Is(err, uploader.ErrDiverged) {
			t.Errorf("a fault was taken for another writer: %v", err)
		}
		c.checkKind(t, err)
		got := m.published(t, rnd.IntN(8) == 0)
		want := before
		if err == nil {
			want = after
		}
		if d := differ(got, want); d != nil {
			t.Errorf("published is not what was said (%v): %v", err, d)
		}
		if rnd.IntN(3) == 0 { // life goes on before anyone tries again
			m.change(t)
			after = m.files(t)
		}
		m.recovered(t, after, rnd.IntN(3) == 0)
		if t.Failed() {
			t.Logf("the log:\n%s", m.log)
		}
		if !again {
			return
		}
	}
}

// recovered takes a snapshot without faults, which must hold want, after a crash or
// in the same process.
func (m *machine) recovered(t *testing.T, want map[string]string, crash bool) {
	t.Helper()
	if crash {
		m.stop(t)
		m.start(t)
		if _, err := m.mount(t); err != nil {
			t.Fatalf("mount again: %v", err)
		}
	}
	m.snapshot(t)
	if d := differ(m.published(t, false), want); d != nil {
		t.Errorf("the snapshot without faults: %v", d)
	}
	if d := differ(m.files(t), want); d != nil {
		t.Errorf("DIR: %v", d)
	}
	m.checkTidy(t)
}

// logBuffer holds the log of a case.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}
