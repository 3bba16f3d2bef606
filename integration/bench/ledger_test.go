//go:build bench

package bench

import (
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"
	"time"
)

// ledger collects what commands took: by row, tool and round.
type ledger struct {
	tools   []tool // the raw limit first
	costs   map[string]map[string][]cost
	mounted int64              // requests of a mount's snapshot with nothing dirty
	stored  map[string]float64 // after 24 snapshots, ÷ what is backed up
}

func newLedger(all []tool) *ledger {
	return &ledger{tools: all, costs: map[string]map[string][]cost{}}
}

func (l *ledger) add(row, name string, c cost) {
	if l.costs[row] == nil {
		l.costs[row] = map[string][]cost{}
	}
	l.costs[row][name] = append(l.costs[row][name], c)
}

// middle returns the median of what f says of a tool's rounds; of none it is no number.
func (l *ledger) middle(row, name string, f func(cost) float64) float64 {
	if len(l.costs[row][name]) == 0 {
		return math.NaN()
	}
	return quantile(l.each(row, name, f), 0.5)
}

func (l *ledger) each(row, name string, f func(cost) float64) (values []float64) {
	for _, c := range l.costs[row][name] {
		values = append(values, f(c))
	}
	return values
}

// What is said of a cost.
func wallOf(c cost) float64 { return c.wall.Seconds() }
func cpuOf(c cost) float64  { return c.cpu.Seconds() }
func peakOf(c cost) float64 { return float64(c.peak) / (1 << 20) }
func upOf(c cost) float64   { return float64(c.up) }
func downOf(c cost) float64 { return float64(c.down) }
func asked(c cost) float64  { return float64(c.requests) }

// untilPublished returns how long it took until the snapshot was published. What comes after
// is the copying of `current` inside the store.
func untilPublished(c cost) float64 { return c.published.Seconds() }

// ratios returns a tool's times ÷ those of the raw limit in the same round.
func (l *ledger) ratios(row, name string) (values []float64) {
	limit := l.costs[row][l.tools[0].name]
	for i, c := range l.costs[row][name] {
		if i < len(limit) {
			values = append(values, wallOf(c)/wallOf(limit[i]))
		}
	}
	return values
}

// print writes one table per row.
func (l *ledger) print(w io.Writer) {
	for _, row := range rowOrder {
		if len(l.costs[row]) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s\n\n", row)
		tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
		fmt.Fprintln(tw, "| \t| time\t| ÷ raw limit\t| CPU\t| peak memory\t| sent\t| received\t| requests\t|")
		fmt.Fprintln(tw, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
		for _, of := range l.tools {
			name := of.name
			if len(l.costs[row][name]) == 0 {
				continue
			}
			times := l.each(row, name, wallOf)
			fmt.Fprintf(tw, "| %s\t| %s", name, spread(times, "%.2f", " s"))
			if ratios := l.ratios(row, name); len(ratios) > 0 && name != l.tools[0].name {
				fmt.Fprintf(tw, "\t| **%.2f** (%.2f–%.2f)", quantile(ratios, 0.5), quantile(ratios, 0.25), quantile(ratios, 0.75))
			} else {
				fmt.Fprint(tw, "\t| –")
			}
			fmt.Fprintf(tw, "\t| %.2f s\t| %.0f MiB", l.middle(row, name, cpuOf), l.middle(row, name, peakOf))
			if of.direct {
				fmt.Fprint(tw, "\t| –\t| –\t| –\t|\n")
				continue
			}
			fmt.Fprintf(tw, "\t| %s\t| %s\t| %.0f\t|\n", megabytes(l.middle(row, name, upOf)), megabytes(l.middle(row, name, downOf)), l.middle(row, name, asked))
		}
		tw.Flush()
		if took := l.middle(row, "chromafs", untilPublished); took > 0 {
			fmt.Fprintf(w, "chromafs's snapshot was published after %.2f s; then `current` was copied inside the store\n", took)
		}
	}
	fmt.Fprintf(w, "\nBytes stored after 24 snapshots, of a tenth of the data, ÷ what is backed up:")
	for _, of := range l.tools {
		if n, ok := l.stored[of.name]; ok {
			fmt.Fprintf(w, " %s %.2f;", of.name, n)
		}
	}
	fmt.Fprintf(w, "\nRequests of a snapshot through a mount with nothing dirty: %d\n", l.mounted)
}

// spread writes a median and, where there are several values, the quartiles.
func spread(values []float64, format, unit string) string {
	text := fmt.Sprintf(format+unit, quantile(values, 0.5))
	if len(values) < 2 {
		return text
	}
	return fmt.Sprintf("%s ("+format+"–"+format+")", text, quantile(values, 0.25), quantile(values, 0.75))
}

func megabytes(n float64) string {
	if n < 1e6 {
		return fmt.Sprintf("%.1f kB", n/1e3)
	}
	return fmt.Sprintf("%.1f MB", n/1e6)
}

// goal is what was aimed at, and what came out.
type goal struct {
	text, found string
	met         bool
}

// printGoals writes what was aimed at and whether it was met.
func (l *ledger) printGoals(w io.Writer, data dataPair) {
	const ours = "chromafs"
	var goals []goal
	aim := func(met bool, text, format string, args ...any) {
		goals = append(goals, goal{text, fmt.Sprintf(format, args...), met})
	}
	for _, row := range []string{rowFirst, rowRestore} {
		if len(l.ratios(row, ours)) == 0 {
			continue
		}
		ratio := quantile(l.ratios(row, ours), 0.5)
		aim(ratio <= 1.15, row+" ≤ 1.15 × the raw limit", "%.2f", ratio)
		fastest, peer := l.fastestPeer(row)
		mine := l.middle(row, ours, wallOf)
		aim(peer == "" || mine < fastest, row+" faster than every peer", "%.2f s; %s %.2f s", mine, peer, fastest)
	}
	sent := l.middle(rowChanged, ours, upOf)
	if len(l.costs[rowChanged]["rclone"]) > 0 {
		rclone := l.middle(rowChanged, "rclone", upOf)
		aim(sent < rclone, "1 % changed: fewer bytes than rclone", "%s; rclone %s", megabytes(sent), megabytes(rclone))
	}
	aim(sent <= 1.05*float64(data.dirty), "1 % changed: ≤ 1.05 × the dirty parts", "%.3f (%s)", sent/float64(data.dirty), megabytes(sent))
	requests := max(float64(l.mounted), l.middle(rowNothing, ours, asked))
	aim(requests <= 3, "nothing changed: ≤ 3 requests", "%d through a mount, %.0f offline", l.mounted, l.middle(rowNothing, ours, asked))
	fetched := l.middle(rowBehind, ours, downOf)
	aim(fetched <= 1.05*float64(data.dirty), "one snapshot behind: ≤ 1.05 × the parts that differ", "%.3f (%s)", fetched/float64(data.dirty), megabytes(fetched))
	idle := l.middle(rowNothing, ours, peakOf)
	for _, row := range []string{rowFirst, rowRestore, rowFiles, rowFetched} {
		if len(l.costs[row][ours]) == 0 {
			continue
		}
		above := slices.Max(l.each(row, ours, peakOf)) - idle
		aim(above <= 128, row+": ≤ 128 MiB above idle", "%.0f MiB above %.0f", above, idle)
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprint(tw, "| goal\t| \t| \t|\n|---\t|---\t|---\t|\n")
	for _, g := range goals {
		verdict := "**not met**"
		if g.met {
			verdict = "met"
		}
		fmt.Fprintf(tw, "| %s\t| %s\t| %s\t|\n", g.text, g.found, verdict)
	}
	tw.Flush()
}

// fastestPeer returns the smallest median of the others, and whose it is.
func (l *ledger) fastestPeer(row string) (seconds float64, name string) {
	seconds = time.Hour.Seconds()
	for _, of := range l.tools {
		if of.rows != nil || of.name == "chromafs" || len(l.costs[row][of.name]) == 0 {
			continue
		}
		if s := l.middle(row, of.name, wallOf); s < seconds {
			seconds, name = s, of.name
		}
	}
	return seconds, name
}
