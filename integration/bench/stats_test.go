//go:build bench

package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// table collects the times of rounds: one per row, target and round.
type table struct {
	rows, targets []string
	times         map[string]map[string][]time.Duration // row → target → by round
}

func newTable(targets []string) *table {
	return &table{targets: targets, times: map[string]map[string][]time.Duration{}}
}

func (t *table) add(row, target string, d time.Duration) {
	if t.times[row] == nil {
		t.rows = append(t.rows, row)
		t.times[row] = map[string][]time.Duration{}
	}
	t.times[row][target] = append(t.times[row][target], d)
}

// print writes, per row and target, the median ratio to the first target of the
// same round, and in brackets the lower and the upper quartile.
func (t *table) print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	base := t.targets[0]
	fmt.Fprintf(tw, "| \t| %s\t|\n", strings.Join(t.targets, "\t| "))
	fmt.Fprintf(tw, "|---\t%s|\n", strings.Repeat("|---\t", len(t.targets)))
	for _, row := range t.rows {
		fmt.Fprintf(tw, "| %s", row)
		for _, target := range t.targets {
			switch mine := t.times[row][target]; {
			case len(mine) == 0:
				fmt.Fprint(tw, "\t| –")
			case target == base:
				fmt.Fprintf(tw, "\t| %.0f ms", ms(quantile(mine, 0.5)))
			default:
				var ratios []float64
				for i, d := range mine {
					ratios = append(ratios, float64(d)/float64(t.times[row][base][i]))
				}
				fmt.Fprintf(tw, "\t| **%.2f** (%.2f–%.2f)", quantile(ratios, 0.5), quantile(ratios, 0.25), quantile(ratios, 0.75))
			}
		}
		fmt.Fprint(tw, "\t|\n")
	}
	tw.Flush()
}

// quantile returns the q-quantile by linear interpolation.
func quantile[T ~int64 | ~float64](values []T, q float64) T {
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + T((at-float64(low))*float64(sorted[high]-sorted[low]))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
