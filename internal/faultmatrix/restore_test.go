package faultmatrix

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/reconcile"
	"github.com/chromafs/chromafs/internal/testutil/faultproxy"
)

// pair is a machine that publishes and one that restores, on one store.
type pair struct{ ahead, behind *machine }

func newPair(t *testing.T, p place) pair {
	t.Helper()
	ahead := writer(t, p, 2)
	second := p
	second.proxy = faultproxy.Start(t, p.server.Endpoint)
	behind := newMachine(t, second, 2)
	if _, err := behind.mount(t); err != nil {
		t.Fatal(err)
	}
	return pair{ahead, behind}
}

// publish puts a newer snapshot into the store.
func (p pair) publish(t *testing.T) {
	t.Helper()
	p.ahead.stop(t) // another writer has taken over since, at each mount
	p.ahead.start(t)
	if _, err := p.ahead.mount(t); err != nil {
		t.Fatal(err)
	}
	p.ahead.change(t)
	p.ahead.snapshot(t)
}

// lose is what a redeployment does to a disk.
func (m *machine) lose(t *testing.T) {
	t.Helper()
	m.stop(t)
	if err := os.RemoveAll(m.path); err != nil {
		t.Fatal(err)
	}
	m.start(t)
}

// reopen is a process that ends and another that begins.
func (m *machine) reopen(t *testing.T) {
	t.Helper()
	m.stop(t)
	m.start(t)
}

// Every request of a mount that brings an old DIR up to date, or an empty one, fails
// in every way.
func TestRestore(t *testing.T) {
	server := startServer(t)
	rnd := seeded(t)
	p := newPair(t, newPlace(t, server))
	p.publish(t)
	p.behind.lose(t)
	p.behind.proxy.Choose(nil)
	if _, err := p.behind.mount(t); err != nil {
		t.Fatal(err)
	}
	requests := p.behind.proxy.Requests()
	for _, part := range []string{"GET /bucket", "/manifest.json", bigFile, "PUT /bucket"} {
		found := false
		for _, r := range requests {
			found = found || strings.Contains(r.String(), part)
		}
		if !found {
			t.Errorf("the restore has no %s", part)
		}
	}
	for i, r := range requests {
		t.Logf("%3d %s (%d bytes)", i+1, r, r.Size)
	}
	spread(t, 4, cases(t, requests, rnd), rnd, func(t *testing.T) pair { return newPair(t, newPlace(t, server)) }, spoiledRestore)
}

func spoiledRestore(t *testing.T, p pair, c one, rnd *rand.Rand) {
	m := p.behind
	m.log.Reset()
	for n := 1; ; n++ {
		p.publish(t)
		old, want := m.files(t), p.ahead.files(t)
		m.reopen(t)
		if n > 1 || rnd.IntN(3) > 0 { // an old DIR asks for less than an empty one
			m.lose(t)
			old = map[string]string{}
		}
		m.reopenStore(t, c.timeouts)
		repeats := rnd.IntN(2) == 0
		if repeats {
			m.store.Store = repeating(m.store.Store)
		}
		m.proxy.Spoil(c.n, c.fault(rnd.IntN))
		res, err := m.mount(t)
		hit, asked := m.proxy.Spoiled(), len(m.proxy.Requests())
		m.proxy.Choose(nil)
		m.reopenStore(t, patient)
		t.Logf("the mount: %s, %s, %v", res.Row, res.Action, err)

		again := n < tries && (hit == 0 && (err != nil || asked < c.n) || c.works && err != nil)
		if !again && hit != 1 {
			t.Errorf("%d requests were spoiled", hit)
		}
		if !again && c.works && err != nil {
			t.Errorf("slow is not broken: %v", err)
		}
		var refusal *reconcile.Refusal // a mount repeats the questions that decide itself, and has no time for it here
		if !again && repeats && c.passing && err != nil && !errors.As(err, &refusal) {
			t.Errorf("what passes by itself was repeated, and failed all the same: %v", err)
		}
		c.checkMount(t, err)
		m.checkDir(t, old, want, err)
		m.reopen(t)
		if res, err := m.mount(t); err != nil {
			t.Fatalf("a mount without faults: %s: %v", res.Row, err)
		}
		m.checkDir(t, want, want, nil)
		if d := m.j.Dirty(); !d.Empty() {
			t.Errorf("dirty: %v", d.Marks)
		}
		m.checkScratch(t)
		if t.Failed() {
			t.Logf("the log:\n%s", m.log)
		}
		if !again {
			return
		}
	}
}

// checkDir fails unless DIR holds the old files or the new ones (R2); the new ones if
// the restore said so (R4).
func (m *machine) checkDir(t *testing.T, old, want map[string]string, err error) {
	t.Helper()
	got := m.files(t)
	notOld, notWant := differ(got, old), differ(got, want)
	if notWant != nil && (notOld != nil || err == nil) {
		t.Errorf("DIR is neither: %v; %v (the mount: %v)", notOld, notWant, err)
	}
}

// checkScratch fails unless nothing is left of a restore.
func (m *machine) checkScratch(t *testing.T) {
	t.Helper()
	if p, err := history.Unfinished(m.dir); p != nil || err != nil {
		t.Errorf("unfinished: %v, %v", p, err)
	}
	left, err := os.ReadDir(filepath.Join(m.path, datadir.StateName, datadir.ScratchName))
	if err != nil || len(left) > 0 {
		t.Errorf("scratch files: %v, %v", left, err)
	}
}
