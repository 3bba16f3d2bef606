package proof

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// key is a document of a collection.
type key struct {
	collection string
	document   int
}

// History is what the writers have asked for so far. An operation on a document is
// only sent once the one before it is acknowledged.
type History struct {
	mu         sync.Mutex
	operations []*operation         // in the order of sending; guarded by mu, with all that they hold
	documents  map[key][]*operation // what was done to each, in order; guarded by mu
}

// NewHistory returns an empty one.
func NewHistory() *History { return &History{documents: map[key][]*operation{}} }

// send takes note of an operation that is about to be sent.
func (h *History) send(o *operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o.number = len(h.operations)
	h.operations = append(h.operations, o)
	for _, c := range o.changes {
		k := key{o.collection, c.document}
		h.documents[k] = append(h.documents[k], o)
	}
	o.sent = time.Now()
}

// ack takes note that an operation was acknowledged.
func (h *History) ack(o *operation) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	o.acked = now
}

// Count returns how many operations were acknowledged.
func (h *History) Count() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.operations {
		if !o.acked.IsZero() {
			n++
		}
	}
	return n
}

// Window is the time in which a copy was made: the instant that it shows must lie
// in it.
type Window struct {
	Called   time.Time // what was acknowledged before is in the copy
	Returned time.Time // what was sent later is not
}

// Contents are the versions of the documents that a database holds, by collection
// and number.
type Contents map[string]map[int]int

// Check returns what is wrong with the contents of a copy, nothing if they are
// those of one instant of the window.
func (h *History) Check(c Contents, w Window) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := &verdict{there: map[*operation]string{}, missing: map[*operation]string{}}
	for name, documents := range c {
		for n, version := range documents {
			if _, ok := h.documents[key{name, n}]; !ok {
				v.complain("%s: document %d version %d is there, which nobody wrote", name, n, version)
			}
		}
	}
	for k, operations := range h.documents {
		v.document(k, operations, c[k.collection][k.document], w)
	}
	v.instant(h.operations)
	return v.problems()
}

// verdict is a check under way.
type verdict struct {
	there, missing map[*operation]string // by an example of a document that says so
	complaints     []string
	lost, early    []string // documents
}

// complain keeps the first few complaints: one is enough to be broken.
func (v *verdict) complain(format string, args ...any) {
	if len(v.complaints) < 10 {
		v.complaints = append(v.complaints, fmt.Sprintf(format, args...))
	}
}

// versionAfter is what an operation leaves of a document.
func versionAfter(o *operation, document int) int {
	for _, c := range o.changes {
		if c.document == document {
			return c.version
		}
	}
	panic("the operation does not know the document")
}

// document looks at one document: which of its operations the copy has, and
// whether that is right.
func (v *verdict) document(k key, operations []*operation, seen int, w Window) {
	least, most := 0, 0 // how many of the operations must and may be there
	for i, o := range operations {
		if !o.acked.IsZero() && o.acked.Before(w.Called) {
			least = i + 1
		}
		if o.sent.Before(w.Returned) {
			most = i + 1
		}
	}
	var possible []int // numbers of operations that explain what is seen
	for n := 0; n <= len(operations); n++ {
		version := 0
		if n > 0 {
			version = versionAfter(operations[n-1], k.document)
		}
		if version == seen {
			possible = append(possible, n)
		}
	}
	if len(possible) == 0 {
		v.complain("%s: document %d has version %d, which nobody wrote", k.collection, k.document, seen)
		return
	}
	allowed := slices.DeleteFunc(slices.Clone(possible), func(n int) bool { return n < least || n > most })
	if len(allowed) == 0 {
		what := fmt.Sprintf("%s/%d has version %d", k.collection, k.document, seen)
		if possible[len(possible)-1] < least {
			v.lost = append(v.lost, what+fmt.Sprintf(", acknowledged before: %s", operations[least-1]))
		} else {
			v.early = append(v.early, what)
		}
		return
	}
	example := fmt.Sprintf("%s/%d", k.collection, k.document)
	for i, o := range operations {
		if i < allowed[0] {
			v.there[o] = example
		}
		if i >= allowed[len(allowed)-1] {
			v.missing[o] = example
		}
	}
}

// instant looks for one that explains which operations are there and which are not.
func (v *verdict) instant(operations []*operation) {
	var newest, oldest *operation // there, by sending; missing, by acknowledgement
	for _, o := range operations {
		there, isThere := v.there[o]
		missing, isMissing := v.missing[o]
		if isThere && isMissing {
			v.complain("%s is there in part: in %s it is, in %s it is not", o, there, missing)
			continue
		}
		if isThere && (newest == nil || o.sent.After(newest.sent)) {
			newest = o
		}
		if isMissing && !o.acked.IsZero() && (oldest == nil || o.acked.Before(oldest.acked)) {
			oldest = o
		}
	}
	if newest != nil && oldest != nil && oldest.acked.Before(newest.sent) {
		v.complain("not one instant: %s is there, %s is not, which was acknowledged %v before the other was sent",
			newest, oldest, newest.sent.Sub(oldest.acked))
	}
}

func (v *verdict) problems() []string {
	all := v.complaints
	for what, list := range map[string][]string{
		"documents older than what was acknowledged before the copy was asked for": v.lost,
		"documents newer than what was sent before the copy was made":              v.early,
	} {
		if len(list) > 0 {
			slices.Sort(list)
			all = append(all, fmt.Sprintf("%d %s, such as %s", len(list), what, list[0]))
		}
	}
	slices.Sort(all)
	return all
}
