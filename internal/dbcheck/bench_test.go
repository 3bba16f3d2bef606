package dbcheck

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// BenchmarkCheck checks databases of ChromaDB's shape: rows of some KB, of which a
// trigram index three times their size is kept in tables of FTS5. It makes them, of
// 10, 300 and 1,000 MB, in $TMPDIR, or takes the folders that
// CHROMAFS_TEST_DATABASES names (colon-separated). rss-MB is what the process holds
// afterwards, peak-MB what it ever held.
//
//	go test -run - -bench Check -benchtime 3x ./internal/dbcheck
func BenchmarkCheck(b *testing.B) {
	folders := strings.FieldsFunc(os.Getenv("CHROMAFS_TEST_DATABASES"), func(r rune) bool { return r == ':' })
	if len(folders) == 0 {
		for _, megabytes := range []int{10, 300, 1000} {
			folder := filepath.Join(b.TempDir(), fmt.Sprintf("%dMB", megabytes))
			if err := os.Mkdir(folder, 0o755); err != nil {
				b.Fatal(err)
			}
			generate(b, folder, megabytes)
			folders = append(folders, folder)
		}
	}
	for _, folder := range folders {
		for _, mode := range []Mode{Quick, Full} {
			b.Run(filepath.Base(folder)+"/"+string(mode), func(b *testing.B) {
				v := view(b, folder)
				var bytes int64
				for _, e := range v.Entries() {
					bytes += e.Size
				}
				b.SetBytes(bytes)
				before := cpu(b)
				for b.Loop() {
					r, err := Check(b.Context(), v, mode, everything)
					if err != nil || len(r.Damage) > 0 || len(r.Doubts) > 0 || r.Databases == 0 {
						b.Fatal(r, err)
					}
				}
				b.ReportMetric((cpu(b)-before).Seconds()/float64(b.N), "cpu-s/op")
				b.ReportMetric(memory(b, "VmRSS:"), "rss-MB")
				b.ReportMetric(memory(b, "VmHWM:"), "peak-MB")
			})
		}
	}
}

func generate(b *testing.B, folder string, megabytes int) {
	b.Helper()
	const perRow = 45 << 10 // measured
	sqlite(b, folder, fmt.Sprintf(`.open db
PRAGMA synchronous=OFF;
CREATE TABLE embedding_metadata(id INTEGER REFERENCES embeddings(id), key TEXT NOT NULL, string_value TEXT, int_value INTEGER,
	PRIMARY KEY (id, key));
CREATE INDEX embedding_metadata_string_value ON embedding_metadata(key, string_value) WHERE string_value IS NOT NULL;
CREATE VIRTUAL TABLE embedding_fulltext_search USING fts5(string_value, tokenize='trigram');
INSERT INTO embedding_metadata WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT %d)
	SELECT i, 'chroma:document', hex(randomblob(3500)), NULL FROM n;
INSERT INTO embedding_fulltext_search(rowid, string_value) SELECT id, string_value FROM embedding_metadata;
`, (megabytes<<20)/perRow))
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// memory returns a figure of /proc/self/status in MB.
func memory(b *testing.B, name string) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), name)
	kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return kb / 1000
}
