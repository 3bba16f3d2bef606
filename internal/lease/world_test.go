package lease

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// world is a store, the head that fences its writers, and what was asked of it. Its
// tests run in a bubble whose clock only moves while everyone waits.
type world struct {
	t     *testing.T
	store *memstore.Store
	log   *lockedBuffer

	mu    sync.Mutex // guards what follows
	head  head
	gets  int // requests since the last look at them
	puts  int
	fails func(memstore.Op) error
}

type head struct {
	writer string
	epoch  uint64
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, store: memstore.New(), log: &lockedBuffer{}}
		w.store.Fail = w.count
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(w.log.String())
			}
		})
		f(t, w)
	})
}

func (w *world) count(op memstore.Op) error {
	w.mu.Lock()
	fails := w.fails
	if !op.After {
		switch op.Kind {
		case "get":
			w.gets++
		case "put":
			w.puts++
		}
	}
	w.mu.Unlock()
	if fails == nil {
		return nil
	}
	return fails(op)
}

func (w *world) failing(f func(memstore.Op) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fails = f
}

// requests returns how many there were since the last call.
func (w *world) requests() (gets, puts int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	gets, puts = w.gets, w.puts
	w.gets, w.puts = 0, 0
	return gets, puts
}

func (w *world) logger(who string) *slog.Logger {
	return slog.New(slog.NewTextHandler(w.log, nil)).With("who", who)
}

func (w *world) now() head {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.head
}

// takeover is the conditional write of the head: it fails where that is not seen any
// more.
func (w *world) takeover(seen head, writer string) (head, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.head != seen {
		return w.head, false
	}
	w.head = head{writer, seen.epoch + 1}
	return w.head, true
}

func (w *world) lease() Record {
	w.t.Helper()
	r, _, err := object{w.store, rand.Reader}.read(context.Background(), "")
	if err != nil {
		w.t.Fatalf("the lease: %v", err)
	}
	return r
}

func (w *world) putLease(text string) {
	w.t.Helper()
	if _, err := w.store.Put(context.Background(), Key, strings.NewReader(text), int64(len(text)), objstore.PutOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// mount is a process that wants the store, and holds it then. It is the Writer of its
// keeper.
type mount struct {
	w      *world
	store  objstore.Store
	self   Party
	keeper *Keeper
	now    func() time.Time
	cancel context.CancelFunc
	ended  chan struct{}

	mu       sync.Mutex // guards what follows
	own      head
	takes    time.Duration // that a final snapshot needs
	refuses  error         // of HandOver
	handed   int
	reclaims int
	current  string
}

func (w *world) mount(name string) *mount {
	return &mount{w: w, store: w.store, self: Party{Writer: name, Dir: "dir-" + name, Host: "host"}, now: time.Now, current: "current-" + name}
}

// start waits as a mount does, takes over and writes the lease; it returns how long the
// wait was.
func (m *mount) start(patience time.Duration) time.Duration {
	m.w.t.Helper()
	waited, err := m.tryStart(context.Background(), patience, func() {})
	if err != nil {
		m.w.t.Fatal(err)
	}
	synctest.Wait()
	return waited
}

// tryStart waits for the holder of the head as long as that changes, then takes over.
func (m *mount) tryStart(ctx context.Context, patience time.Duration, beforeTakeover func()) (time.Duration, error) {
	start := time.Now()
	waiter := NewWaiter(WaiterOptions{Store: m.store, Self: m.self, Patience: patience, Now: m.now, Rand: rand.Reader, Log: m.w.logger(m.self.Writer)})
	seen, heard := m.w.now(), head{}
	for first := true; ; first = false {
		if first || heard != seen {
			heard = seen
			waited, err := waiter.Wait(ctx, seen.writer, seen.epoch)
			if err != nil {
				return time.Since(start), err
			}
			if waited {
				seen = m.w.now()
				continue
			}
		}
		beforeTakeover()
		now, ok := m.w.takeover(seen, m.self.Writer)
		if ok {
			m.hold(now)
			return time.Since(start), nil
		}
		seen = now
	}
}

// hold starts the keeper.
func (m *mount) hold(own head) {
	m.mu.Lock()
	m.own = own
	m.mu.Unlock()
	m.keeper = NewKeeper(KeeperOptions{Store: m.store, Self: m.self, Writer: m, Now: m.now, Rand: rand.Reader, Log: m.w.logger(m.self.Writer)})
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel, m.ended = cancel, make(chan struct{})
	go func() {
		defer close(m.ended)
		m.keeper.Run(ctx)
	}()
	m.keeper.Took(own.epoch)
	m.w.t.Cleanup(m.kill)
}

// kill ends the keeper as SIGKILL does: the lease stays as it is.
func (m *mount) kill() {
	m.cancel()
	<-m.ended
}

// stop ends it as SIGTERM does.
func (m *mount) stop() {
	m.keeper.Ending()
	m.kill()
	m.keeper.Release(context.Background())
}

func (m *mount) Check(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.w.now() != m.own {
		return fmt.Errorf("fenced: %w", ErrLost)
	}
	return nil
}

func (m *mount) HandOver(ctx context.Context) error {
	m.mu.Lock()
	takes, refuses := m.takes, m.refuses
	m.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if refuses != nil {
		return refuses
	}
	if err := m.Check(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handed++
	return nil
}

func (m *mount) Reclaim(context.Context) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, ok := m.w.takeover(m.own, m.self.Writer)
	if !ok {
		return 0, ErrLost
	}
	m.own = now
	m.reclaims++
	return now.epoch, nil
}

func (m *mount) Current() string { return m.current }

func (m *mount) wantState(state State, lost bool) {
	m.w.t.Helper()
	if s := m.keeper.Status(); s.State != state || s.Lost != lost {
		m.w.t.Errorf("%s is %+v, want %s, lost %v", m.self.Writer, s, state, lost)
	}
}

// within fails unless a time is in a range.
func within(t *testing.T, what string, got, least, most time.Duration) {
	t.Helper()
	if got < least || got > most {
		t.Errorf("%s took %v, want %v to %v", what, got, least, most)
	}
}

func (w *world) wantLogged(words ...string) {
	w.t.Helper()
	for _, word := range words {
		if !strings.Contains(w.log.String(), word) {
			w.t.Errorf("the log does not say %q", word)
		}
	}
}

var errDown = errors.New("down")
