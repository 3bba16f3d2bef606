package proof

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Plan says how much of the proof is run, and how.
type Plan struct {
	Copies      int    // to take
	Seed        uint64 // of all that is random
	UntilBroken bool   // end at the first broken copy
	Keep        string // a folder for broken copies; empty: they are not kept
}

// keptCopies is how many broken copies a folder keeps at most.
const keptCopies = 10

// prove lets writers work on a new ChromaDB, takes copies meanwhile and checks every
// one. It fails the test only where the proof cannot be carried out.
func prove(t testing.TB, p Plan, asClient bool, start func(folder string) copier) Table {
	t.Helper()
	folder := t.TempDir()
	checker := startChecker(t)
	c := start(folder)
	history := NewHistory()
	var db database
	if asClient {
		db = startClient(t, c.path(), collectionNames())
	} else {
		db = startServer(t, c.path(), collectionNames())
	}
	l := startLoad(db, history, p.Seed)
	table := takeAll(p, c, checker, history, l)
	if err := errors.Join(table.err, l.stop()); err != nil {
		t.Fatal(err)
	}
	db.stop()
	directory := c.close()
	table.Waited, table.Held = c.holds()
	table.Operations = history.Count()

	// What was copied is whole itself: ChromaDB and the checker have no faults of
	// their own to show.
	now := time.Now()
	if problems := checker.look(directory, history, Window{now, now}).problems; len(problems) > 0 {
		t.Fatalf("the directory itself is not whole: %s", strings.Join(problems, "\n  "))
	}
	return table
}

// job is a copy that waits to be checked.
type job struct {
	taken  taken
	window Window
}

// takeAll takes the copies of a plan; another goroutine checks them.
func takeAll(p Plan, c copier, checker *checker, history *History, l *load) Table {
	var table Table
	jobs := make(chan job, 2)
	checked := make(chan struct{})
	broken := make(chan struct{})
	go func() {
		defer close(checked)
		for j := range jobs {
			if table.err != nil {
				continue
			}
			if table.err = checker.check(p, c, j, history, &table); table.err != nil || p.UntilBroken && table.Failed() {
				select {
				case <-broken:
				default:
					close(broken)
				}
			}
		}
	}()
	random := rand.New(rand.NewPCG(p.Seed, 1<<32))
	var taking error
	taken, aimed := 0, 0
taking:
	for n := range p.Copies {
		if n == 1 { // the first copy is of a database that has just been made
			if taking = awaitPersists(c.path(), l); taking != nil {
				break
			}
		}
		if c.await(random) {
			aimed++
		}
		j := job{window: Window{Called: time.Now()}}
		if j.taken, taking = c.take(); taking == nil {
			taking = l.err()
		}
		if taking != nil {
			break
		}
		j.window.Returned = time.Now()
		taken++
		select {
		case jobs <- j:
		case <-broken:
			break taking
		case <-checked: // it failed the test
			break taking
		}
	}
	close(jobs)
	<-checked
	table.Taken, table.Aimed = taken, aimed
	table.err = errors.Join(taking, table.err)
	return table
}

// awaitPersists waits until every collection has written its vector index out: there
// is something to cut through.
func awaitPersists(path string, l *load) error {
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		pickles, err := filepath.Glob(filepath.Join(path, "*", "index_metadata.pickle"))
		if err := errors.Join(err, l.err()); err != nil {
			return err
		}
		if len(pickles) > len(collectionNames()) { // and the ballast's
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("only %d collections wrote their vector index out", len(pickles))
		}
	}
}

// checker opens copies with SQLite and ChromaDB.
type checker struct {
	t      testing.TB
	folder string
	w      *worker
}

func startChecker(t testing.TB) *checker {
	return &checker{t: t, folder: t.TempDir(), w: startWorker(t, "check")}
}

// found is what a checker says of a copy.
type found struct {
	missing  bool // there is no database
	problems []string
}

// check opens a copy, looks at it, adds the result to the table and removes it.
func (k *checker) check(p Plan, c copier, j job, history *History, table *Table) error {
	to := filepath.Join(k.folder, fmt.Sprint(j.taken.number))
	var f found
	if err := c.open(j.taken, to); err != nil {
		f.problems = []string{err.Error()} // what cannot be restored is no copy
	} else {
		f = k.look(to, history, j.window)
	}
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if f.missing && j.taken.consistency == "" { // a snapshot that lacks it is broken
		table.Missing++
		return nil
	}
	if text := table.count(j.taken, f.problems); text != "" {
		return keepBroken(p, c, j, text)
	}
	return nil
}

// keepBroken puts a copy aside as it was before anyone opened it, with the reasons.
func keepBroken(p Plan, c copier, j job, text string) error {
	s, ok := c.(*mounted)
	if !ok || p.Keep == "" {
		return nil
	}
	if kept, err := filepath.Glob(filepath.Join(p.Keep, "*")); err != nil || len(kept) >= keptCopies {
		return err
	}
	folder := filepath.Join(p.Keep, fmt.Sprintf("%d-%s", p.Seed, j.taken.id))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if err := s.plain(j.taken, filepath.Join(folder, "copy")); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "reasons"), []byte(text+"\n"), 0o644)
}

// look opens a database and compares it with a history.
func (k *checker) look(path string, history *History, w Window) found {
	if _, err := os.Stat(filepath.Join(path, "chroma.sqlite3")); err != nil {
		missing := errors.Is(err, fs.ErrNotExist)
		return found{missing: missing, problems: []string{err.Error()}}
	}
	var answer struct {
		Problems    []string `json:"problems"`
		Collections Contents `json:"collections"`
	}
	err := k.w.send(map[string]any{"path": path})
	if err == nil {
		err = k.w.receive(&answer)
	}
	if err != nil { // a copy that kills ChromaDB is broken
		k.w = startWorker(k.t, "check")
		return found{problems: []string{err.Error()}}
	}
	return found{problems: append(answer.Problems, history.Check(answer.Collections, w)...)}
}
