package main

import (
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// BenchmarkSnapshotOfALittleChange takes snapshots of a file of 1 GiB of which 8 MiB
// changed, with views that know what was touched and views that do not. plan-ms is
// the time until the first byte is sent; the rest is the store in memory.
func BenchmarkSnapshotOfALittleChange(b *testing.B) {
	for _, blind := range []bool{true, false} {
		b.Run(fmt.Sprintf("blind=%v", blind), func(b *testing.B) {
			w := newDirtyWorld(b, slog.New(slog.DiscardHandler))
			w.blind = blind
			f, err := os.Create(w.in("chroma.sqlite3"))
			w.must(err)
			defer f.Close()
			chunk := make([]byte, worldPart)
			for i := range int64(128) {
				chunk[i] = byte(i)
				_, err := f.WriteAt(chunk, i*worldPart)
				w.must(err)
			}
			_, err = w.up.Snapshot(b.Context())
			w.must(err)
			w.read.Store(0)
			var planned time.Duration
			for i := 0; b.Loop(); i++ {
				chunk[0]++
				_, err := f.WriteAt(chunk, int64(i%128)*worldPart)
				w.must(err)
				var begun time.Time
				w.afterCut = func() { begun = time.Now() }
				w.store.Fail = func(op memstore.Op) error {
					if op.Kind == "new-upload" && !op.After {
						planned += time.Since(begun)
					}
					return nil
				}
				_, err = w.up.Snapshot(b.Context())
				w.must(err)
			}
			b.ReportMetric(float64(w.read.Load())/float64(b.N)/(1<<20), "MiB-read/op")
			b.ReportMetric(float64(planned.Milliseconds())/float64(b.N), "plan-ms/op")
		})
	}
}
