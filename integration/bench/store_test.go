//go:build bench

package bench

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

// The rows of the table.
const (
	rowFirst   = "first backup"
	rowRestore = "restore to an empty disk"
	rowChanged = "backup after 1 % of the documents changed"
	rowNothing = "backup with nothing changed"
	rowBehind  = "a copy that is one snapshot old brought up to date"
	rowFiles   = "first backup of 20,000 files of 1 KiB"
	rowFetched = "restore of 20,000 files of 1 KiB"
)

var rowOrder = []string{rowFirst, rowChanged, rowNothing, rowRestore, rowBehind, rowFiles, rowFetched}

// TestStore compares chromafs with other ways to bring a ChromaDB directory to a bucket
// and back, in turns, on one S3 server, and both with the raw limit: the same bytes
// moved and nothing else done.
//
// The page cache is warm: what is read was written or compared shortly before. Before
// each command all is written to disk, so that nobody waits for another's pages. The
// server does not sync what it stores; what is restored counts as done when it is on
// disk, whether the tool syncs it or not.
func TestStore(t *testing.T) {
	size := int64(number(t, "CHROMAFS_BENCH_MEGABYTES", 1000)) * 1_000_000
	rounds := number(t, "CHROMAFS_BENCH_ROUNDS", 3)
	data, small := newDataPair(t, size), newDataPair(t, max(size/10, 50_000_000))
	g := startGateway(t)
	l := newLedger(chosen(tools(t)))
	src := filepath.Join(g.scratch, "data")
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for round := range rounds {
		for _, i := range rnd.Perm(len(l.tools)) {
			of := l.tools[i]
			t.Run(fmt.Sprint(round, " ", of.name), func(t *testing.T) {
				run := storeRun{t: t, g: g, of: of, data: data, src: src, verify: round == 0}
				run.chain(func(row string, c cost) { l.add(row, of.name, c) })
			})
			if t.Failed() {
				return
			}
		}
	}
	t.Run("requests of a mount", func(t *testing.T) { l.mounted = requestsOfMount(t, g, small) })
	t.Run("files", func(t *testing.T) { manyFiles(t, g, l) })
	t.Run("24 snapshots", func(t *testing.T) { l.stored = storedAfter24(t, g, l.tools, small) })
	if t.Failed() {
		return
	}
	fmt.Printf("%d bytes in %d files; %d of them differ after the change, by parts. Medians of %d rounds in random order, quartiles in brackets.\n",
		data.bytes, countFiles(t, data.after), data.dirty, rounds)
	l.print(os.Stdout)
	l.printGoals(os.Stdout, data)
}

// chosen leaves of the tools the first two and those that the environment names.
func chosen(all []tool) []tool {
	only := os.Getenv("CHROMAFS_BENCH_TARGETS")
	if only == "" {
		return all
	}
	return slices.DeleteFunc(all, func(t tool) bool {
		return t.name != all[0].name && t.name != "chromafs" && !strings.Contains(","+only+",", ","+t.name+",")
	})
}

// storeRun is one tool's turn.
type storeRun struct {
	t      testing.TB
	g      *gateway
	of     tool
	data   dataPair
	src    string // the directory that is backed up, the same for all
	verify bool   // compare what comes back
}

// chain takes all rows one after the other: each begins where the one before ended.
func (r storeRun) chain(note func(row string, c cost)) {
	b := r.g.bucket(r.t, r.of)
	restored := filepath.Join(b.home, "restored")
	if err := errors.Join(os.RemoveAll(filepath.Join(r.src, ".chromafs")), os.Mkdir(restored, 0o755)); err != nil {
		r.t.Fatal(err)
	}
	become(r.t, r.src, r.data.before)
	note(rowFirst, r.g.measure(r.t, r.of, b, "", r.of.backup(b, r.src)))
	note(rowRestore, r.g.measure(r.t, r.of, b, restored, r.of.restore(b, restored)))
	if r.verify {
		holds(r.t, restored, r.data.before)
	}
	if r.of.does(rowChanged) {
		become(r.t, r.src, r.data.after)
		note(rowChanged, r.g.measure(r.t, r.of, b, "", r.of.backup(b, r.src)))
		for range 2 { // it is cheap
			note(rowNothing, r.g.measure(r.t, r.of, b, "", r.of.backup(b, r.src)))
		}
		update := r.of.update
		if update == nil {
			update = r.of.restore
		}
		note(rowBehind, r.g.measure(r.t, r.of, b, restored, update(b, restored)))
		if r.verify {
			holds(r.t, restored, r.data.after)
		}
	}
	r.g.remove(r.t, b)
}

// remove frees the disk.
func (g *gateway) remove(t testing.TB, b bucketAt) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(b.home), os.RemoveAll(filepath.Join(g.Dir, b.name))); err != nil {
		t.Fatal(err)
	}
}

// named returns a tool that takes part.
func named(t testing.TB, all []tool, name string) tool {
	t.Helper()
	i := slices.IndexFunc(all, func(of tool) bool { return of.name == name })
	if i < 0 {
		t.Fatalf("%s does not take part", name)
	}
	return all[i]
}

// requestsOfMount counts the requests of a snapshot that a daemon is asked for when
// nothing is dirty.
func requestsOfMount(t *testing.T, g *gateway, data dataPair) int64 {
	of := named(t, tools(t), "chromafs")
	b := g.bucket(t, of)
	defer g.remove(t, b)
	dir := filepath.Join(b.home, "disk")
	become(t, dir, data.before)
	m := harness.Start(t, harness.Options{
		Dir: dir, Point: filepath.Join(b.home, "mount"), Flags: quiet,
		Store: &harness.Store{URL: "s3://" + b.name, Endpoint: b.endpoint, Region: b.region, Key: accessKey, Secret: secretKey},
	})
	m.Snapshot()
	before := g.wire.requests.Load()
	m.Snapshot()
	n := g.wire.requests.Load() - before
	m.Unmount()
	g.wire.take(t)
	return n
}

// manyFiles measures what many small files take, once.
func manyFiles(t *testing.T, g *gateway, l *ledger) {
	src := filepath.Join(g.scratch, "files")
	rnd := rand.NewChaCha8([32]byte{1})
	content := make([]byte, 1<<10)
	for i := range 20_000 {
		folder := filepath.Join(src, strconv.Itoa(i%100))
		rnd.Read(content)
		if err := errors.Join(os.MkdirAll(folder, 0o755), os.WriteFile(filepath.Join(folder, strconv.Itoa(i)), content, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"raw limit", "chromafs"} {
		of := named(t, l.tools, name)
		b := g.bucket(t, of)
		l.add(rowFiles, name, g.measure(t, of, b, "", of.backup(b, src)))
		restored := filepath.Join(b.home, "restored")
		if err := os.Mkdir(restored, 0o755); err != nil {
			t.Fatal(err)
		}
		l.add(rowFetched, name, g.measure(t, of, b, restored, of.restore(b, restored)))
		holds(t, restored, src)
		g.remove(t, b)
	}
}

// storedAfter24 returns how many bytes each tool's bucket holds after 24 backups of a
// directory in which a real ChromaDB changes 1 % of the documents in between, as a
// multiple of what the directory holds.
func storedAfter24(t *testing.T, g *gateway, all []tool, data dataPair) map[string]float64 {
	dir := filepath.Join(g.scratch, "grows")
	become(t, dir, data.before)
	buckets := map[string]bucketAt{}
	for i := range int64(24) {
		if i > 0 {
			chromaData(t, "change", dir, 100+i)
		}
		for _, of := range all {
			if !of.does(rowChanged) {
				continue
			}
			if i == 0 {
				buckets[of.name] = g.bucket(t, of)
			}
			b := buckets[of.name]
			g.measure(t, of, b, "", of.backup(b, dir))
		}
	}
	stored := map[string]float64{}
	var live int64
	eachFile(t, dir, func(rel string) { live += apparentSize(t, filepath.Join(dir, rel)) })
	for name, b := range buckets {
		stored[name] = float64(apparentSize(t, filepath.Join(g.Dir, b.name))) / float64(live)
		g.remove(t, b)
	}
	return stored
}

func countFiles(t testing.TB, folder string) (n int) {
	eachFile(t, folder, func(string) { n++ })
	return n
}
