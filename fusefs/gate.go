package fusefs

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// gate lets mutations pass, many at once, unless a cut holds it. Whoever holds it
// waits for nothing but the mutations that are inside: not for the kernel, the
// journal or a push.
type gate struct {
	mu      sync.RWMutex
	longest atomic.Int64 // nanoseconds that a mutation waited at most
	recent  atomic.Int64 // the same, since the last cut began
}

func newGate() *gate { return &gate{} }

// enter passes the gate; leave ends the passage.
func (g *gate) enter(context.Context) {
	if g.mu.TryRLock() {
		return
	}
	start := time.Now()
	g.mu.RLock()
	g.note(time.Since(start))
}

func (g *gate) leave() { g.mu.RUnlock() }

// hold waits until no mutation is inside and keeps new ones out until release.
func (g *gate) hold()    { g.mu.Lock() }
func (g *gate) release() { g.mu.Unlock() }

func (g *gate) note(d time.Duration) {
	for _, longest := range []*atomic.Int64{&g.longest, &g.recent} {
		for old := longest.Load(); int64(d) > old && !longest.CompareAndSwap(old, int64(d)); {
			old = longest.Load()
		}
	}
}

// longestWait is the longest that a mutation was held so far.
func (g *gate) longestWait() time.Duration { return time.Duration(g.longest.Load()) }
