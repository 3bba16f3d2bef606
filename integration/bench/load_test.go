//go:build bench

package bench

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

// The load of ChromaDB: documents with metadata and 384 floats, as of a small
// embedding model, in batches of 100 to three collections; then searches, then
// updates and deletions.
const (
	documents  = 6000
	batchSize  = 100
	dimensions = 384
	searches   = 300
)

var collections = []string{"first", "second", "third"}

// request is a request that was encoded before the clock started.
type request struct {
	collection, action string
	body               []byte
}

type chromaLoad struct{ ingest, search, change []request }

func newChromaLoad(t testing.TB) chromaLoad {
	rnd := rand.New(rand.NewPCG(1, 2))
	var load chromaLoad
	for n := 0; n < documents; n += batchSize {
		c := collections[n/batchSize%len(collections)]
		load.ingest = append(load.ingest, encode(t, c, "add", batch(rnd, n, batchSize)))
	}
	for i := range searches {
		load.search = append(load.search, encode(t, collections[i%len(collections)], "query", map[string]any{
			"query_embeddings": [][]float32{vector(rnd)}, "n_results": 10, "include": []string{"documents", "metadatas", "distances"},
		}))
	}
	for n := 0; n < documents/2; n += batchSize {
		c := collections[n/batchSize%len(collections)]
		if n/batchSize%2 == 0 {
			load.change = append(load.change, encode(t, c, "update", batch(rnd, n, batchSize)))
		} else {
			load.change = append(load.change, encode(t, c, "delete", map[string]any{"ids": batch(rnd, n, batchSize)["ids"]}))
		}
	}
	return load
}

func batch(rnd *rand.Rand, first, count int) map[string]any {
	var ids, texts []string
	var vectors [][]float32
	var meta []map[string]any
	for i := first; i < first+count; i++ {
		ids, vectors = append(ids, fmt.Sprintf("id-%07d", i)), append(vectors, vector(rnd))
		texts = append(texts, fmt.Sprintf("document %d says %x %x and is long enough to be a paragraph of some text", i, rnd.Uint64(), rnd.Uint64()))
		meta = append(meta, map[string]any{"source": fmt.Sprintf("file-%d.txt", i%50), "page": i % 300})
	}
	return map[string]any{"ids": ids, "embeddings": vectors, "documents": texts, "metadatas": meta}
}

func vector(rnd *rand.Rand) []float32 {
	v := make([]float32, dimensions)
	for i := range v {
		v[i] = rnd.Float32()
	}
	return v
}

func encode(t testing.TB, collection, action string, body any) request {
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return request{collection, action, b}
}

// run runs the load on a ChromaDB server of its own and calls note for each row.
func (l chromaLoad) run(t testing.TB, p place, note func(row string, d time.Duration)) {
	server := harness.StartServer(t, filepath.Join(p.path, "chroma"))
	defer server.Stop()
	for _, c := range collections {
		server.CreateDefault(c)
	}
	timed := func(row string, requests []request) {
		start := time.Now()
		for _, r := range requests {
			server.Post(r.collection, r.action, r.body)
		}
		note(row, time.Since(start))
	}
	timed("ChromaDB ingest", l.ingest)
	p.check()
	timed("ChromaDB queries", l.search)
	timed("ChromaDB update and delete", l.change)
}

// commits are transactions as small as an application can make them: each inserts
// or changes one row, in SQLite's default mode, and is a journal made, synced and
// removed. ChromaDB's own are a hundred times as large.
func commits() string {
	var b strings.Builder
	b.WriteString("CREATE TABLE t (n INTEGER PRIMARY KEY, x TEXT);\n")
	for i := range 300 {
		fmt.Fprintf(&b, "INSERT OR REPLACE INTO t VALUES (%d, '%0200d');\n", i*7%100, i)
	}
	return b.String()
}

func runSQLite(t testing.TB, p place, note func(row string, d time.Duration)) {
	timed := func(row string, cmd *exec.Cmd) {
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", cmd.Args, err, out)
		}
		note(row, time.Since(start))
		p.check()
	}
	speedtest := os.Getenv("CHROMAFS_BENCH_SPEEDTEST")
	if speedtest == "" {
		t.Fatal("CHROMAFS_BENCH_SPEEDTEST is not set: run this with scripts/bench")
	}
	timed("SQLite speedtest1", exec.Command(speedtest, "--size", "50", filepath.Join(p.path, "speedtest.sqlite3")))
	small := exec.Command("sqlite3", "-batch", filepath.Join(p.path, "commits.sqlite3"))
	small.Stdin = strings.NewReader(commits())
	timed("SQLite, 300 commits of one row", small)
}

// runCachedReads reads a file that the kernel has in its cache.
func runCachedReads(t testing.TB, p place, note func(row string, d time.Duration)) {
	const size = 64 << 20
	name := filepath.Join(p.path, "cached")
	writeRandom(t, name, size)
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	read := func(n int, at func() int64, length int) {
		for range n {
			if _, err := f.ReadAt(buf[:length], at()); err != nil {
				t.Fatal(err)
			}
		}
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	var off int64
	next := func() int64 { off = (off + 1<<20) % size; return off }
	read(size>>20, next, 1<<20)
	start := time.Now()
	read(20*size>>20, next, 1<<20)
	read(200_000, func() int64 { return rnd.Int64N(size/4096) * 4096 }, 4096)
	note("cached reads", time.Since(start))
}
