package journal

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/tree"
)

const childEnv = "CHROMAFS_JOURNAL_TEST_CHILD"

// TestMain runs the marking child of TestJ3Killed in place of the tests where the
// environment says so.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := markForever(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// markForever marks new paths from several goroutines, and says "marked CUT PATH"
// after each, while another one cuts and acknowledges, saying "ack CUT" before.
func markForever(dir string) error {
	state, err := os.Open(dir)
	if err != nil {
		return err
	}
	j, err := Open(state, Options{})
	if err != nil {
		return err
	}
	var out sync.Mutex
	say := func(format string, args ...any) {
		out.Lock()
		defer out.Unlock()
		fmt.Fprintf(os.Stdout, format+"\n", args...)
	}
	var cut, marked atomic.Uint64
	cut.Store(j.State().Cut + 1)
	failed, due := make(chan error), make(chan struct{}, 1)
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				c := cut.Load()
				p := fmt.Sprintf("w%d/%d-%d", w, c, i)
				if err := j.Mark(c, p); err != nil {
					failed <- err
				}
				say("marked %d %s", c, p)
				if marked.Add(1)%20 == 0 {
					select {
					case due <- struct{}{}:
					default: // the last one is still at work
					}
				}
			}
		}()
	}
	go func() {
		for range due {
			k := cut.Add(1)
			say("ack %d", k)
			if err := j.Acknowledge(published(k, k, record("chroma.sqlite3", 100, byte(k)))); err != nil {
				failed <- err
			}
		}
	}()
	return <-failed
}

// J1, J2, J3: whenever the process is killed, every mark that was answered is
// there, but for those that an acknowledgement begun by then may clear.
func TestJ3Killed(t *testing.T) {
	dir := t.TempDir()
	for round := range 8 {
		lines, answered := runAndKill(t, dir, 5+round*17), map[string]uint64{}
		var acked uint64
		for _, line := range lines {
			var n uint64
			var p string
			if _, err := fmt.Sscanf(line, "marked %d %s", &n, &p); err == nil {
				answered[p] = n
			} else if _, err := fmt.Sscanf(line, "ack %d", &n); err == nil {
				acked = n
			} else {
				t.Fatalf("the child said %q", line)
			}
		}
		j := open(t, dir)
		d := j.Dirty()
		for p, n := range answered {
			if n >= acked && !d.Covers(p) {
				t.Errorf("round %d: the answered mark %s of cut %d is lost (last acknowledged: %d)", round, p, n, acked)
			}
			if n > j.State().Cut {
				t.Errorf("cut %d was seen, the highest known is %d", n, j.State().Cut)
			}
		}
		checked(t, j)
		must(t, j.Close())
	}
}

// runAndKill runs the child until it has said n lines, kills it, and returns all
// whole lines that it said.
func runAndKill(t *testing.T, dir string, n int) (lines []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			break
		}
		if lines = append(lines, strings.TrimSuffix(line, "\n")); len(lines) == n {
			must(t, cmd.Process.Kill())
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(interface{ Signal() unix.Signal }).Signal() != unix.SIGKILL {
		t.Fatalf("the child ended by itself: %v", err)
	}
	return lines
}

// model is what the journal should hold, simply.
type model struct {
	cut   uint64
	marks map[string]uint64
	base  map[string]tree.Record
	state State
}

func (m *model) covered(p string, cut uint64) bool {
	for q := range selfAndAbove(p) {
		if n, ok := m.marks[q]; ok && n >= cut {
			return true
		}
	}
	return false
}

// J1, J2, J3 against the model: random marks, cuts, acknowledgements, rebases,
// stops and reopens without a clean stop.
func TestRandomAgainstModel(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3, rand.Uint64()} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			dir := t.TempDir()
			j := open(t, dir)
			m := &model{marks: map[string]uint64{}, base: map[string]tree.Record{}}
			name := func() string {
				if rnd.IntN(30) == 0 {
					return "."
				}
				return []string{"a", "b", "seg", "seg/a", "seg/b", "seg/deep/c", "z/y/x"}[rnd.IntN(7)]
			}
			for step := range 300 {
				switch n := rnd.IntN(20); {
				case n < 9:
					paths := []string{name(), name()}[:1+rnd.IntN(2)]
					must(t, j.Mark(m.cut, paths...))
					for _, p := range paths {
						if !m.covered(p, m.cut) {
							m.marks[p] = m.cut
						}
					}
				case n < 12:
					m.cut++
				case n < 15:
					k := m.cut - min(m.cut, uint64(rnd.IntN(3)))
					p := published(uint64(step+1), k, record(fmt.Sprintf("f%d", rnd.IntN(3)), rnd.Int64N(20<<20), byte(step)), record("chroma.sqlite3", 5, byte(step)))
					m.base = map[string]tree.Record{p.Records[0].Path: p.Records[0], p.Records[1].Path: p.Records[1]}
					m.state.ID, m.state.Intent = p.ID, nil
					if n == 14 {
						must(t, j.Rebase(p))
						clear(m.marks)
					} else {
						must(t, j.Acknowledge(p))
						maps.DeleteFunc(m.marks, func(_ string, n uint64) bool { return n < k })
					}
				case n < 16:
					id := fmt.Sprint("pending", rnd.IntN(4))
					if i := slices.Index(m.state.Pending, id); i >= 0 {
						must(t, j.DropPending(id))
						m.state.Pending = slices.Delete(m.state.Pending, i, i+1)
					} else {
						must(t, j.AddPending(id))
						m.state.Pending = append(m.state.Pending, id)
					}
				case n < 17:
					must(t, j.Stop([]tree.Entry{record("f1", 77, 9).Entry, record("new", 1, 9).Entry}))
				default:
					j = reopen(t, j, dir)
					m.cut = max(m.cut, j.State().Cut) + 1
				}
				m.compare(t, j, step)
				if t.Failed() {
					return
				}
			}
		})
	}
}

func (m *model) compare(t *testing.T, j *Journal, step int) {
	t.Helper()
	// A batch may hold a mark that another of the same batch covers: what counts
	// is what is covered from which cut on.
	d, s := j.Dirty(), j.State()
	for p, n := range m.marks {
		if !j.coveredLocked(p, n) {
			t.Errorf("step %d: %s is not marked with %d: %v", step, p, n, d.Marks)
		}
	}
	for p, n := range d.Marks {
		if !m.covered(p, n) {
			t.Errorf("step %d: %s is marked with %d, and should not be: %v", step, p, n, m.marks)
		}
	}
	if (len(m.marks) == 0) != d.Empty() || d.Empty() != d.Since.IsZero() {
		t.Errorf("step %d: dirty is %+v, model %v", step, d, m.marks)
	}
	if got := j.BaseRecords(); len(got) != len(m.base) || slices.ContainsFunc(got, func(r tree.Record) bool { return !sameRecord(r, m.base[r.Path]) }) {
		t.Errorf("step %d: the base is %v, model %v", step, got, m.base)
	}
	if s.ID != m.state.ID || !slices.Equal(s.Pending, m.state.Pending) {
		t.Errorf("step %d: state %+v, model %+v", step, s, m.state)
	}
}
