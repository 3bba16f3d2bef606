package fusefs

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// rowsKept is how many rows a matrixWriter leaves, so that copies stay small.
const rowsKept = 150

// matrixWriter writes a database of its own all the time and knows what was
// acknowledged.
type matrixWriter struct {
	name          string
	conn          *sqliteConn
	issued, acked atomic.Int64
	ended         chan error
}

// write makes transaction after transaction: the number of the last one is the
// largest id, and none is missing below it. The cache is so small that pages spill.
func (w *matrixWriter) write(stop *atomic.Bool) {
	for i := int64(1); !stop.Load(); i++ {
		w.issued.Store(i)
		_, err := w.conn.run(fmt.Sprintf("BEGIN; INSERT INTO rows(id, pad) VALUES (%[1]d, randomblob(300));"+
			"UPDATE rows SET pad = randomblob(%[2]d) WHERE id %% 5 = %[1]d %% 5; DELETE FROM rows WHERE id <= %[1]d - %[3]d; COMMIT;",
			i, rand.IntN(900), rowsKept))
		if err != nil {
			w.ended <- err
			return
		}
		w.acked.Store(i)
		time.Sleep(rand.N(8 * time.Millisecond)) // as programs have other things to do
	}
	w.ended <- nil
}

// check looks at a copy of the database.
func (w *matrixWriter) check(t *testing.T, v *View, dir string, least int64) {
	t.Helper()
	most := w.issued.Load()
	got := sqliteRun(t, filepath.Join(dir, w.name), "PRAGMA integrity_check; SELECT count(*), coalesce(min(id), 1), coalesce(max(id), 0) FROM rows;")
	var count, low, top int64
	_, err := fmt.Sscanf(strings.ReplaceAll(got, "|", " "), "ok\n%d %d %d", &count, &low, &top)
	if err != nil || top < least || top > most || low != max(1, top-rowsKept+1) || count != top-low+1 {
		t.Errorf("cut %d (%s): %s: %q; %d were acknowledged before, %d begun", v.Number(), v.Consistency(), w.name, got, least, most)
	}
}

// S1: every view of databases that are written all the time passes SQLite's own
// check and holds each transaction that was acknowledged before the cut, in every
// journal mode and at every level of synchronous; four at once in one directory, two
// of them with a memory map (PRAGMA mmap_size), and it is quiescent.
func TestViewsOfBusyDatabases(t *testing.T) {
	for _, journal := range []string{"DELETE", "TRUNCATE", "PERSIST", "WAL"} {
		t.Run(journal, func(t *testing.T) { viewsOfBusyDatabases(t, journal) })
	}
}

func viewsOfBusyDatabases(t *testing.T, journal string) {
	fx := mounted(t)
	var stop atomic.Bool
	var writers []*matrixWriter
	for i, level := range []string{"OFF", "NORMAL", "FULL", "EXTRA"} {
		w := &matrixWriter{name: strings.ToLower(level) + ".sqlite3", ended: make(chan error, 1)}
		w.conn = sqliteOpen(t, fx, in(fx.mnt, w.name))
		got := w.conn.mustRun(t, fmt.Sprintf("PRAGMA journal_mode=%s; PRAGMA synchronous=%s; PRAGMA cache_size=10; PRAGMA mmap_size=%d; PRAGMA wal_autocheckpoint=40;"+
			"CREATE TABLE rows(id INTEGER PRIMARY KEY, pad BLOB);", journal, level, i%2*64<<20))
		if !strings.HasPrefix(got, strings.ToLower(journal)+"\n") {
			t.Fatalf("journal mode: %q", got)
		}
		writers = append(writers, w)
	}
	for _, w := range writers {
		go w.write(&stop)
	}
	worst, crash := time.Duration(0), 0
	const cuts = 8
	for range cuts {
		var least []int64
		for _, w := range writers {
			before := w.acked.Load()
			eventually(t, w.name+" is written", func() bool { return w.acked.Load() > before })
		}
		time.Sleep(rand.N(20 * time.Millisecond)) // ask anywhere in a transaction
		for _, w := range writers {
			least = append(least, w.acked.Load())
		}
		cutOnce(t, fx, func(v *View) {
			to := t.TempDir()
			copyView(t, v, to)
			for i, w := range writers {
				w.check(t, v, to, least[i])
			}
			if v.Consistency() != quiescent {
				crash++
			}
		})
		worst = max(worst, fx.fs.CutStats().LastWait)
	}
	stop.Store(true)
	for _, w := range writers {
		must(t, <-w.ended)
	}
	if crash > 0 {
		t.Errorf("%d of %d cuts were not quiescent", crash, cuts)
	}
	var counts []int64
	for _, w := range writers {
		counts = append(counts, w.acked.Load())
	}
	t.Logf("%v transactions; longest wait of a cut %s; %+v", counts, worst, fx.fs.CutStats())
}
