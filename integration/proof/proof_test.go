package proof

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

// The flags make the same test a long run: see scripts/soak.
var (
	snapshots = flag.Int("snapshots", 30, "how many snapshots to take and check")
	perRun    = flag.Int("per-run", 5, "how many of one database, before a new one is begun")
	seed      = flag.Uint64("seed", rand.Uint64(), "seed of all that is random, to run the same again")
	against   = flag.String("against", "", "instead of snapshots of a mount, copies of a bare directory by these, with commas: "+strings.Join(Peers(), ","))
	switchOff = flag.String("switch-off", "", "leave this mechanism of the cut out, to see that it is missed")
	keepIn    = flag.String("keep", "", "put broken snapshots here")
	progress  = flag.Bool("progress", false, "say on stdout how far it is")
)

// TestEverySnapshotIsOneInstant is S1, of every variant in turn.
func TestEverySnapshotIsOneInstant(t *testing.T) {
	t.Parallel()
	if *against != "" {
		for tool := range strings.SplitSeq(*against, ",") {
			table := soak(t, tool, func(t *testing.T, p Plan, _ int) Table {
				return prove(t, p, false, func(folder string) copier { return startBare(t, folder, tool) })
			})
			report(t, tool, table)
		}
		return
	}
	variants, proofOf := Variants(), proveMounted
	if *switchOff != "" {
		m := switchNamed(t, *switchOff)
		variants, proofOf = []Variant{m.variant()}, m.prove
	}
	byVariant := make([]Table, len(variants))
	total := soak(t, "snapshots", func(t *testing.T, p Plan, run int) Table {
		v := variants[run%len(variants)]
		t.Log(v.Name)
		table := proofOf(t, p, v)
		byVariant[run%len(variants)].add(table)
		return table
	})
	if *progress {
		fmt.Println(TableHead)
		for i, v := range variants {
			fmt.Println(byVariant[i].Line(v.Name))
		}
	}
	report(t, "all", total)
	if total.Failed() || total.Whole < *snapshots {
		t.Errorf("of %d snapshots %d are whole, %d broken, %d without a database, %d crash-consistent; seed %d",
			total.Taken, total.Whole, total.Broken, total.Missing, total.Crash, *seed)
	}
	if *switchOff == "" && total.Taken >= len(variants)**perRun && total.Aimed == 0 {
		t.Error("no snapshot was asked for within a persist: the proof is blunt")
	}
}

func proveMounted(t testing.TB, p Plan, v Variant) Table {
	return prove(t, p, v.Client, func(folder string) copier { return startMounted(t, folder, v, true) })
}

// soak takes all copies, with a new database every so often.
func soak(t *testing.T, name string, run func(t *testing.T, p Plan, run int) Table) Table {
	t.Helper()
	started := time.Now()
	var total Table
	for n := 0; total.Taken < *snapshots; n++ {
		var table Table
		ok := t.Run(fmt.Sprintf("%s-%d", name, n), func(t *testing.T) {
			p := Plan{Copies: min(*perRun, *snapshots-total.Taken), Seed: *seed + uint64(n), Keep: *keepIn}
			t.Logf("seed %d", p.Seed)
			table = run(t, p, n)
			if table.Broken > 0 {
				t.Logf("broken:\n%s", table.Why(5))
			}
		})
		if !ok {
			t.Fatalf("%s: run %d could not be carried out; seed %d", name, n, *seed)
		}
		total.add(table)
		if *progress {
			fmt.Printf("%s: %d of %d, %d whole, %d broken, %d without a database; %.1f s each\n", name, total.Taken, *snapshots,
				total.Whole, total.Broken, total.Missing, time.Since(started).Seconds()/float64(total.Taken))
			if why := table.Why(3); why != "" {
				fmt.Println(why)
			}
		}
	}
	return total
}

func report(t *testing.T, name string, table Table) {
	t.Helper()
	say := t.Logf
	if *progress {
		say = func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	}
	say("seed %d\n%s\n%s", *seed, TableHead, table.Line(name))
}

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if err := fixture.remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
