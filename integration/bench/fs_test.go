//go:build bench

package bench

import (
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestFS compares chromafs with the bare disk and with other FUSE file systems.
func TestFS(t *testing.T) {
	rounds := number(t, "CHROMAFS_BENCH_ROUNDS", 9)
	all := targets()
	if only := os.Getenv("CHROMAFS_BENCH_TARGETS"); only != "" {
		kept := all[:1]
		for _, tg := range all[1:] {
			if strings.Contains(","+only+",", ","+tg.name+",") {
				kept = append(kept, tg)
			}
		}
		all = kept
	}
	var names []string
	for _, tg := range all {
		names = append(names, tg.name)
	}
	results := newTable(names)
	load := newChromaLoad(t)
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for round := range rounds {
		for _, i := range rnd.Perm(len(all)) {
			tg := all[i]
			t.Run(strconv.Itoa(round)+" "+tg.name, func(t *testing.T) {
				p := tg.start(t)
				defer p.stop()
				note := func(row string, d time.Duration) { results.add(row, tg.name, d) }
				load.run(t, p, note)
				runSQLite(t, p, note)
				if tg.name != "chromafs while uploading" {
					runCachedReads(t, p, note)
				}
			})
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("medians of %d rounds; ratios to the %s of the same round, quartiles in brackets", rounds, names[0])
	results.print(os.Stdout)
}

// number reads a number from the environment.
func number(t testing.TB, variable string, otherwise int) int {
	v := os.Getenv(variable)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, want a number of at least 1", variable, v)
	}
	return n
}
