package proof

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// at is an instant of these tests.
func at(n int) time.Time { return time.Unix(1_000_000, int64(n)) }

// past builds a history of operations with given times.
type past struct{ *History }

func (p past) add(sent, acked int, collection string, changes ...change) {
	o := &operation{verb: Upsert, collection: collection, changes: changes}
	p.send(o)
	o.sent = at(sent)
	if acked > 0 {
		o.acked = at(acked)
	}
}

// Each rule of the package comment, by contents that keep it and contents that
// break it.
func TestHistoryFindsWhatIsNoInstant(t *testing.T) {
	t.Parallel()
	p := past{NewHistory()}
	p.add(10, 20, "x", change{1, 1}, change{2, 1})
	p.add(30, 40, "y", change{7, 1})
	p.add(50, 60, "x", change{1, 2})
	p.add(70, 80, "x", change{2, 0})
	p.add(90, 100, "y", change{7, 2}, change{8, 1})
	p.add(110, 0, "x", change{1, 3}) // never acknowledged
	everything := Contents{"x": {1: 3}, "y": {7: 2, 8: 1}}
	for name, c := range map[string]struct {
		contents         Contents
		called, returned int
		want             string // what is said; empty: it is whole
	}{
		"all":                           {everything, 105, 200, ""},
		"the last one may be missing":   {Contents{"x": {1: 2}, "y": {7: 2, 8: 1}}, 105, 200, ""},
		"nothing yet":                   {Contents{}, 5, 6, ""},
		"an earlier instant":            {Contents{"x": {1: 1, 2: 1}, "y": {7: 1}}, 45, 55, ""},
		"any instant of a long window":  {Contents{"x": {1: 2, 2: 1}, "y": {7: 1}}, 5, 300, ""},
		"an update is lost":             {Contents{"x": {1: 1, 2: 1}, "y": {7: 1}}, 65, 68, "1 documents older"},
		"a delete is lost":              {Contents{"x": {1: 2, 2: 1}, "y": {7: 1}}, 85, 88, "1 documents older"},
		"a document is lost":            {Contents{"x": {1: 2}, "y": {8: 1}}, 105, 108, "1 documents older"},
		"from the future":               {everything, 85, 88, "3 documents newer"},
		"never written version":         {Contents{"x": {1: 9, 2: 1}}, 5, 300, "which nobody wrote"},
		"never written document":        {Contents{"x": {5: 1}}, 5, 300, "which nobody wrote"},
		"in part":                       {Contents{"x": {1: 2}, "y": {7: 2}}, 85, 300, "there in part"},
		"a later write, not the former": {Contents{"x": {1: 2, 2: 1}, "y": {}}, 25, 300, "not one instant"},
		"across collections":            {Contents{"x": {1: 1, 2: 1}, "y": {7: 2, 8: 1}}, 45, 300, "not one instant"},
	} {
		problems := p.Check(c.contents, Window{at(c.called), at(c.returned)})
		if c.want == "" && len(problems) > 0 {
			t.Errorf("%s: %v", name, problems)
		}
		if c.want != "" && !slices.ContainsFunc(problems, func(s string) bool { return strings.Contains(s, c.want) }) {
			t.Errorf("%s: want %q, got %q", name, c.want, problems)
		}
	}
}

// The counting writer's check, likewise, is in TestEachMechanismIsMissed.

// A writer keeps to the limits within which a search of ChromaDB finds everything.
func TestWritersStayWithinTheLimits(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5) {
		w := newWriter(seed, 0)
		verbs := map[Verb]int{}
		for range 2000 {
			o := w.plan()
			verbs[o.verb]++
			if len(o.changes) == 0 {
				t.Fatalf("seed %d: an operation without documents: %v", seed, o.verb)
			}
		}
		for _, name := range collectionNames() {
			if n := w.added[name]; n > maxElements/writers {
				t.Errorf("seed %d: %d documents in %s", seed, n, name)
			}
		}
		for _, v := range []Verb{Add, Update, Upsert, Delete} {
			if verbs[v] == 0 {
				t.Errorf("seed %d: no %s", seed, v)
			}
		}
	}
}
