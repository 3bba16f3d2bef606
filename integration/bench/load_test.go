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

// sqliteMix is a mix of statements in the manner of SQLite's speedtest1: many small
// transactions, some big ones, an index, scans, joins, and a VACUUM.
func sqliteMix() string {
	rnd := rand.New(rand.NewPCG(3, 4))
	var b strings.Builder
	b.WriteString("CREATE TABLE t1(a INTEGER, b INTEGER, c TEXT);\nCREATE TABLE t2(a INTEGER PRIMARY KEY, b INTEGER, c TEXT);\n")
	for i := range 150 { // each a transaction of its own
		fmt.Fprintf(&b, "INSERT INTO t1 VALUES(%d,%d,'%x %x');\n", i, rnd.IntN(100_000), rnd.Uint64(), rnd.Uint64())
	}
	b.WriteString("BEGIN;\n")
	for i := range 20_000 {
		fmt.Fprintf(&b, "INSERT INTO t2 VALUES(%d,%d,'%x %x');\n", i, rnd.IntN(100_000), rnd.Uint64(), rnd.Uint64())
	}
	b.WriteString("COMMIT;\nCREATE INDEX i2 ON t2(b);\n")
	for range 100 {
		low := rnd.IntN(99_000)
		fmt.Fprintf(&b, "SELECT count(*), avg(b) FROM t2 WHERE b BETWEEN %d AND %d;\n", low, low+1000)
		fmt.Fprintf(&b, "UPDATE t2 SET b=%d WHERE a=%d;\n", rnd.IntN(100_000), rnd.IntN(20_000))
	}
	b.WriteString("BEGIN;\n")
	for range 2000 {
		fmt.Fprintf(&b, "UPDATE t2 SET c='%x', b=b+1 WHERE a=%d;\n", rnd.Uint64(), rnd.IntN(20_000))
	}
	b.WriteString("COMMIT;\nINSERT INTO t1 SELECT a,b,c FROM t2;\nDELETE FROM t2 WHERE b < 20000;\n")
	b.WriteString("SELECT count(*) FROM t1 JOIN t2 ON t1.a = t2.a WHERE t1.b > 50000;\nVACUUM;\n")
	return b.String()
}

func runSQLite(t testing.TB, p place, script string, note func(row string, d time.Duration)) {
	cmd := exec.Command("sqlite3", "-batch", filepath.Join(p.path, "mix.sqlite3"))
	cmd.Stdin = strings.NewReader(script)
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sqlite3: %v: %s", err, out)
	}
	note("SQLite mix", time.Since(start))
	p.check()
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
