package proof

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Table counts copies.
type Table struct {
	Taken      int
	Whole      int
	Broken     int
	Missing    int // no database at all
	Crash      int // snapshots that say of themselves that they are not quiescent
	Aimed      int // asked for while a persist was under way
	Operations int // that were acknowledged meanwhile
	Reasons    []string
	Waited     []time.Duration // how long each cut waited for a quiet moment
	Held       []time.Duration // how long each cut held requests
	err        error
}

// add sums two up.
func (t *Table) add(o Table) {
	t.Taken += o.Taken
	t.Whole += o.Whole
	t.Broken += o.Broken
	t.Missing += o.Missing
	t.Crash += o.Crash
	t.Aimed += o.Aimed
	t.Operations += o.Operations
	t.Reasons = append(t.Reasons, o.Reasons...)
	t.Waited = append(t.Waited, o.Waited...)
	t.Held = append(t.Held, o.Held...)
}

// count adds a copy with what is wrong with it. It returns why it is broken.
func (t *Table) count(c taken, problems []string) (why string) {
	if c.consistency != "" && c.consistency != "quiescent" {
		t.Crash++
	}
	if len(problems) == 0 {
		t.Whole++
		return ""
	}
	t.Broken++
	why = fmt.Sprintf("copy %d %s %s\n  %s", c.number, c.id, c.consistency, strings.Join(problems, "\n  "))
	t.Reasons = append(t.Reasons, why)
	return why
}

// Failed reports whether there are copies that a snapshot of a mount must not be.
func (t *Table) Failed() bool { return t.Broken+t.Missing+t.Crash > 0 }

// TableHead is the head of the lines that Line writes, in Markdown.
const TableHead = `| copies | taken | within a persist | whole | broken | no database | crash-consistent | waited p50/p99/max ms | held p50/p99/max ms | writes |
|---|---|---|---|---|---|---|---|---|---|`

// Line is the table as one line of Markdown.
func (t *Table) Line(name string) string {
	return fmt.Sprintf("| %s | %d | %d | **%d** | **%d** | %d | %d | %s | %s | %d |", name,
		t.Taken, t.Aimed, t.Whole, t.Broken, t.Missing, t.Crash, percentiles(t.Waited), percentiles(t.Held), t.Operations)
}

// Why lists the first few reasons.
func (t *Table) Why(limit int) string {
	return strings.Join(t.Reasons[:min(limit, len(t.Reasons))], "\n")
}

func percentiles(all []time.Duration) string {
	if len(all) == 0 {
		return "–"
	}
	sorted := slices.Sorted(slices.Values(all))
	at := func(p int) float64 {
		return float64(sorted[(len(sorted)-1)*p/100].Microseconds()) / 1000
	}
	return fmt.Sprintf("%.1f / %.1f / %.1f", at(50), at(99), at(100))
}
