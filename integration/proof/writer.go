package proof

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
)

// collectionNames are what the writers write to, all of them to each.
func collectionNames() []string { return []string{"first", "second", "third"} }

const (
	writers = 4
	// maxNew and maxOld are how many documents one operation adds, and how many it
	// changes.
	maxNew, maxOld = 5, 30
	// fewest is how many documents a writer leaves in a collection.
	fewest = 8
)

// load is writers at work.
type load struct {
	history *History
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	failed  chan error // the first error of a writer
}

// startLoad lets writers work on a database until stop.
func startLoad(db database, history *History, seed uint64) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{history: history, cancel: cancel, failed: make(chan error, 1)}
	for i := range writers {
		w := newWriter(seed, i)
		l.wg.Go(func() {
			for ctx.Err() == nil {
				o := w.plan()
				history.send(o)
				if err := db.apply(o); err != nil {
					if ctx.Err() == nil {
						l.fail(fmt.Errorf("a writer failed: %s: %w", o, err))
					}
					return
				}
				history.ack(o)
			}
		})
	}
	return l
}

func (l *load) fail(err error) {
	select {
	case l.failed <- err:
	default: // another writer was first
	}
}

// stop lets every writer finish what it has sent, and returns the first error that
// one of them met.
func (l *load) stop() error {
	l.cancel()
	l.wg.Wait()
	return l.err()
}

// err returns the first error that a writer met so far.
func (l *load) err() error {
	select {
	case err := <-l.failed:
		l.failed <- err
		return err
	default:
		return nil
	}
}

// writer plans operations on documents of its own, one at a time.
type writer struct {
	random *rand.Rand
	next   int                 // number of the next new document
	live   map[string][]change // documents, by collection
	added  map[string]int      // how many there ever were, by collection
}

// newWriter returns the i-th of those that share a seed.
func newWriter(seed uint64, i int) *writer {
	return &writer{
		random: rand.New(rand.NewPCG(seed, uint64(i))),
		next:   i * 1_000_000,
		live:   map[string][]change{},
		added:  map[string]int{},
	}
}

func (w *writer) plan() *operation {
	names := collectionNames()
	o := &operation{collection: names[w.random.IntN(len(names))]}
	live := w.live[o.collection]
	added := 1 + w.random.IntN(maxNew)
	room := w.added[o.collection]+added <= maxElements/writers
	switch r := w.random.IntN(100); {
	case room && (len(live) < fewest || r < 15):
		o.verb = Add
		o.changes = w.fresh(o.collection, added)
	case r < 50:
		o.verb = Update
		o.changes = w.renewed(live)
	case r < 85 || len(live) < 2*fewest:
		o.verb = Upsert
		o.changes = w.renewed(live)
		if room {
			o.changes = append(o.changes, w.fresh(o.collection, added)...)
		}
	default:
		o.verb = Delete
		for _, c := range w.some(live, min(added, len(live)-fewest)) {
			o.changes = append(o.changes, change{c.document, 0})
		}
	}
	w.live[o.collection] = merge(live, o.changes)
	return o
}

// fresh are new documents.
func (w *writer) fresh(collection string, n int) (all []change) {
	for range n {
		all = append(all, change{w.next, 1})
		w.next++
	}
	w.added[collection] += n
	return all
}

// renewed are new versions of some documents.
func (w *writer) renewed(live []change) (all []change) {
	for _, c := range w.some(live, 1+w.random.IntN(maxOld)) {
		all = append(all, change{c.document, c.version + 1})
	}
	return all
}

func (w *writer) some(live []change, n int) []change {
	var all []change
	for _, i := range w.random.Perm(len(live))[:min(n, len(live))] {
		all = append(all, live[i])
	}
	return all
}

// merge applies changes to the documents that are live.
func merge(live, changes []change) []change {
	left := slices.Clone(live)
	for _, c := range changes {
		left = slices.DeleteFunc(left, func(l change) bool { return l.document == c.document })
		if c.version > 0 {
			left = append(left, c)
		}
	}
	return left
}
