//go:build bench

package bench

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

//go:embed cut.py
var cutPy string

// dataset is what lies in DIR while cuts are taken.
type dataset struct {
	name  string
	files int
	size  int64 // bytes of each
}

var datasets = []dataset{
	{"10 MB", 1, 10_000_000},
	{"1 GB", 10, 100_000_000},
	{"10 GB", 10, 1_000_000_000},
	{"10,000 files", 10_000, 1000},
}

// TestCut measures how long cuts hold requests, while one process writes, syncs,
// creates and unlinks files, and another commits SQLite transactions.
//
// "held" is by the daemon's own clock, from the moment that the gate closes for
// new mutations until it opens, and "waited" the longest that a request stood before
// it. The others are by the applications' clock: how long the slowest call took that
// was under way at a cut, and, since a slow call is the likelier to be under way at
// any instant, at instants half-way between two cuts.
func TestCut(t *testing.T) {
	cuts := number(t, "CHROMAFS_BENCH_ROUNDS", 100)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "| data\t| held, p50 / p99 / max\t| waited\t| write+fsync at a cut, p50 / p99\t| between\t| create+unlink at a cut\t| between\t| SQLite commit at a cut\t| between\t|")
	fmt.Fprintln(w, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, d := range datasets {
		t.Run(d.name, func(t *testing.T) { measureCuts(t, w, d, cuts) })
	}
	w.Flush()
}

func measureCuts(t *testing.T, w *tabwriter.Writer, d dataset, cuts int) {
	folder := t.TempDir()
	dir, point := filepath.Join(folder, "disk"), filepath.Join(folder, "mount")
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range d.files {
		writeRandom(t, filepath.Join(dir, "data", fmt.Sprint(i)), d.size)
	}
	flags := append([]string{"--log-level", "debug", "--log-format", "json", "--keep", "2"}, quiet...)
	m := harness.Start(t, harness.Options{Dir: dir, Point: point, Store: harness.NewFileStore(t), Flags: flags})
	defer m.Unmount()
	m.Snapshot() // the first one sends everything

	loads := []*cutLoad{startCutLoad(t, "sync", point), startCutLoad(t, "create", point), startCutLoad(t, "commit", point)}
	time.Sleep(time.Second) // calls that meet no cut
	held := takeCuts(t, m, cuts)
	fmt.Fprintf(w, "| %s", d.name)
	for _, times := range [][]time.Duration{held.durations, held.waits} {
		fmt.Fprintf(w, "\t| %.2f / %.2f / %.2f ms", ms(quantile(times, 0.5)), ms(quantile(times, 0.99)), ms(quantile(times, 1)))
	}
	for _, l := range loads {
		l.stop(t)
		for _, windows := range [][]window{held.at, between(held.at)} {
			slowest := l.slowest(t, windows)
			fmt.Fprintf(w, "\t| %.1f / %.1f ms", ms(quantile(slowest, 0.5)), ms(quantile(slowest, 0.99)))
		}
	}
	fmt.Fprint(w, "\t|\n")
}

// cutTimes is when cuts held the gate, and for how long.
type cutTimes struct {
	at        []window
	durations []time.Duration
	waits     []time.Duration // the longest of each cut
}

// window is a stretch of time.
type window struct{ from, to time.Time }

// slack is how far the log's time of a cut may be off the gate's.
const slack = time.Millisecond

// between returns windows as long as the given ones, half-way to the next.
func between(windows []window) (shifted []window) {
	for i, w := range windows[:len(windows)-1] {
		by := windows[i+1].from.Sub(w.from) / 2
		shifted = append(shifted, window{w.from.Add(by), w.to.Add(by)})
	}
	return shifted
}

// takeCuts takes snapshots and reads in the daemon's log when their cuts were.
func takeCuts(t *testing.T, m *harness.Mount, n int) (c cutTimes) {
	already := len(m.Log())
	for range n {
		m.Snapshot()
	}
	for text := range strings.Lines(m.Log()[already:]) {
		var line struct {
			Time time.Time     `json:"time"`
			Msg  string        `json:"msg"`
			Held time.Duration `json:"held"`
			Wait time.Duration `json:"longest_wait"`
		}
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			continue // not of the log
		}
		switch line.Msg {
		case "cut":
			c.at = append(c.at, window{line.Time.Add(-line.Held - slack), line.Time.Add(slack)})
			c.durations = append(c.durations, line.Held)
		case "a cut's view is closed":
			c.waits = append(c.waits, line.Wait)
		}
	}
	if len(c.at) < n || len(c.waits) < n {
		t.Fatalf("the log tells of %d cuts and %d views, want %d", len(c.at), len(c.waits), n)
	}
	return c
}

// cutLoad is an application whose calls are timed.
type cutLoad struct {
	cmd *exec.Cmd
	out strings.Builder
}

func startCutLoad(t *testing.T, kind, point string) *cutLoad {
	l := &cutLoad{cmd: exec.Command(harness.Python(t), "-c", cutPy, kind, point)}
	l.cmd.Stdout, l.cmd.Stderr = &l.out, os.Stderr
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.cmd.Process.Kill() }) // after a failure; else it has ended
	return l
}

// stop ends the load.
func (l *cutLoad) stop(t *testing.T) {
	if err := l.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := l.cmd.Wait(); err != nil {
		t.Fatalf("a load ended with: %v", err)
	}
}

// slowest returns the slowest call of each window that met any.
func (l *cutLoad) slowest(t *testing.T, windows []window) (met []time.Duration) {
	slowest := make([]time.Duration, len(windows))
	i := 0
	for line := range strings.Lines(l.out.String()) {
		var from, took int64
		if _, err := fmt.Sscan(line, &from, &took); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		begin := time.Unix(0, from)
		end := begin.Add(time.Duration(took))
		for i < len(windows) && windows[i].to.Before(begin) {
			i++
		}
		for k := i; k < len(windows) && windows[k].from.Before(end); k++ {
			slowest[k] = max(slowest[k], time.Duration(took))
		}
	}
	for _, d := range slowest {
		if d > 0 {
			met = append(met, d)
		}
	}
	if len(met) == 0 {
		t.Fatal("no call met any window")
	}
	return met
}
