package fusefs

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const (
	tellers  = 8 // processes that move money
	auditors = 2 // processes that count it
	accounts = 40
	money    = accounts * 1000
)

// teller moves money between accounts, one transaction each, and counts them.
type teller struct {
	conn          *sqliteConn
	id            int
	issued, acked atomic.Int64
}

func (p *teller) work(stop *atomic.Bool) error {
	for i := int64(1); !stop.Load(); i++ {
		p.issued.Store(i)
		from, to := rand.IntN(accounts), rand.IntN(accounts)
		_, err := p.conn.run(fmt.Sprintf("BEGIN IMMEDIATE; UPDATE accounts SET money = money - %[3]d WHERE id = %[1]d;"+
			"UPDATE tellers SET done = %[4]d, pad = randomblob(%[6]d) WHERE id = %[5]d; UPDATE accounts SET money = money + %[3]d WHERE id = %[2]d; COMMIT;",
			from, to, rand.IntN(100), i, p.id, rand.IntN(9000)))
		if err != nil {
			return err
		}
		p.acked.Store(i)
	}
	return nil
}

// audit counts the money over and over.
func audit(conn *sqliteConn, stop *atomic.Bool) (times int, err error) {
	for ; !stop.Load(); times++ {
		got, err := conn.run("SELECT sum(money) FROM accounts;")
		if err != nil {
			return times, err
		}
		if got != fmt.Sprint(money) {
			return times, fmt.Errorf("audit %d found %q, not %d", times, got, money)
		}
	}
	return times, nil
}

// F1, S1: many processes write one database, and others, through a memory map, never
// see money made or lost; neither does any view, and it has each transaction that was
// acknowledged before the cut.
func TestManyProcessesOnOneDatabase(t *testing.T) {
	for _, journal := range []string{"DELETE", "WAL"} {
		t.Run(journal, func(t *testing.T) { bank(t, journal) })
	}
}

func bank(t *testing.T, journal string) {
	fx := mounted(t)
	db := in(fx.mnt, "bank.sqlite3")
	var sql strings.Builder
	fmt.Fprintf(&sql, "PRAGMA journal_mode=%s; BEGIN; CREATE TABLE accounts(id INTEGER PRIMARY KEY, money INTEGER); CREATE TABLE tellers(id INTEGER PRIMARY KEY, done INTEGER, pad BLOB);", journal)
	for i := range accounts {
		fmt.Fprintf(&sql, "INSERT INTO accounts VALUES (%d, %d);", i, money/accounts)
	}
	for i := range tellers {
		fmt.Fprintf(&sql, "INSERT INTO tellers VALUES (%d, 0, NULL);", i)
	}
	sqliteRun(t, db, sql.String()+"COMMIT;")
	var stop atomic.Bool
	var wg sync.WaitGroup
	var audits atomic.Int64
	staff := make([]*teller, tellers)
	for i := range staff {
		staff[i] = &teller{conn: sqliteOpen(t, fx, db), id: i}
		staff[i].conn.mustRun(t, fmt.Sprintf("PRAGMA synchronous=%s; PRAGMA cache_size=10; PRAGMA wal_autocheckpoint=50;", []string{"NORMAL", "FULL"}[i%2]))
	}
	for i := range auditors {
		conn := sqliteOpen(t, fx, db)
		conn.mustRun(t, fmt.Sprintf("PRAGMA mmap_size=%d;", i*64<<20))
		wg.Go(func() {
			n, err := audit(conn, &stop)
			if err != nil {
				t.Errorf("auditor %d: %v", i, err)
			}
			audits.Add(int64(n))
		})
	}
	for _, p := range staff {
		wg.Go(func() {
			if err := p.work(&stop); err != nil {
				t.Errorf("teller %d: %v", p.id, err)
			}
		})
	}
	var all int64
	for range 8 {
		least := make([]int64, tellers)
		sum := int64(0)
		eventually(t, "the tellers work", func() bool {
			sum = 0
			for i, p := range staff {
				least[i] = p.acked.Load()
				sum += least[i]
			}
			return sum >= all+20 || t.Failed()
		})
		all = sum
		cutOnce(t, fx, func(v *View) {
			to := t.TempDir()
			copyView(t, v, to)
			checkBank(t, fmt.Sprintf("cut %d (%s)", v.Number(), v.Consistency()), filepath.Join(to, "bank.sqlite3"), staff, least)
		})
	}
	stop.Store(true)
	wg.Wait()
	least := make([]int64, tellers)
	for i, p := range staff {
		least[i] = p.acked.Load()
	}
	checkBank(t, "at the end", db, staff, least)
	t.Logf("%d transactions, %d audits; %+v", all, audits.Load(), fx.fs.CutStats())
}

// checkBank checks a copy of the database: what was acknowledged is there, what was
// not begun is not, and all the money is.
func checkBank(t *testing.T, what, db string, staff []*teller, least []int64) {
	t.Helper()
	lines := strings.Split(sqliteRun(t, db, "PRAGMA integrity_check; SELECT sum(money) FROM accounts; SELECT done FROM tellers ORDER BY id;"), "\n")
	if len(lines) != 2+len(staff) || lines[0] != "ok" || lines[1] != fmt.Sprint(money) {
		t.Errorf("%s: %q", what, lines)
		return
	}
	for i, p := range staff {
		var done int64
		if _, err := fmt.Sscan(lines[2+i], &done); err != nil || done < least[i] || done > p.issued.Load() {
			t.Errorf("%s: teller %d has %s transactions; %d were acknowledged before", what, i, lines[2+i], least[i])
		}
	}
}
