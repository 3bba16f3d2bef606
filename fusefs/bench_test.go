package fusefs

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"
)

// A ChromaDB of n collections has 5 files in each of n folders, and keeps four of
// each five open for writing.
const filesPerFolder = 5

// fillFolders makes files of size bytes in folders below dir.
func fillFolders(b *testing.B, dir string, files, size int) (names []string) {
	b.Helper()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * 7)
	}
	for i := range files {
		folder := in(dir, fmt.Sprintf("segment-%04d", i/filesPerFolder))
		if i%filesPerFolder == 0 {
			must(b, os.Mkdir(folder, 0o755))
		}
		name := fmt.Sprintf("segment-%04d/%d.bin", i/filesPerFolder, i%filesPerFolder)
		must(b, os.WriteFile(in(dir, name), data, 0o644))
		names = append(names, name)
	}
	return names
}

// openFilled makes files and opens them for writing until the benchmark ends.
func openFilled(b *testing.B, fx *fixture, count int) (files []*os.File) {
	b.Helper()
	for _, name := range fillFolders(b, fx.mnt, count, 4096) {
		f, err := os.OpenFile(in(fx.mnt, name), os.O_RDWR, 0)
		must(b, err)
		b.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	return files
}

// What an fsync costs, by how many files are open for writing. Clean: nothing else
// is written; dirty: one other file of those is, each time.
func BenchmarkBarrier(b *testing.B) {
	for _, open := range []int{10, 1000, 5000} {
		for _, dirty := range []bool{false, true} {
			b.Run(fmt.Sprintf("open=%d/dirty=%t", open, dirty), func(b *testing.B) {
				fx := mounted(b)
				files := openFilled(b, fx, open)
				must(b, files[0].Sync()) // opens the descriptors to push through
				var slowest time.Duration
				for i := 0; b.Loop(); i++ {
					if dirty {
						_, err := files[1+i%(open-1)].WriteAt([]byte{byte(i)}, 100)
						must(b, err)
					}
					began := time.Now()
					must(b, files[0].Sync())
					slowest = max(slowest, time.Since(began))
				}
				b.ReportMetric(slowest.Seconds()*1000, "ms-slowest")
			})
		}
	}
}

// What a cut costs, by how many files there are and how much is in them, with one
// file of them written before each.
func BenchmarkCut(b *testing.B) {
	for _, c := range []struct{ files, total int }{
		{10, 10 << 20}, {10, 1 << 30}, {1000, 10 << 20}, {1000, 1 << 30}, {10_000, 10 << 20},
	} {
		b.Run(fmt.Sprintf("files=%d/MB=%d", c.files, c.total>>20), func(b *testing.B) {
			fx := mounted(b)
			names := fillFolders(b, fx.dir, c.files, c.total/c.files)
			f, err := os.OpenFile(in(fx.mnt, names[0]), os.O_RDWR, 0)
			must(b, err)
			defer f.Close()
			var waited time.Duration
			for i := 0; b.Loop(); i++ {
				_, err := f.WriteAt([]byte{byte(i)}, int64(i)%4096)
				must(b, err)
				v, err := fx.fs.Cut(context.Background())
				must(b, err)
				waited = max(waited, fx.fs.CutStats().LastWait)
				must(b, v.Close())
			}
			stats := fx.fs.CutStats()
			b.ReportMetric(float64(stats.LongestHold.Microseconds())/1000, "ms-longest-hold")
			b.ReportMetric(float64(waited.Microseconds())/1000, "ms-longest-wait")
		})
	}
}

// What a cut costs with as many files open for writing as 1,000 collections have.
func BenchmarkCutOfOpenFiles(b *testing.B) {
	for _, open := range []int{10, 1000, 5000} {
		b.Run(fmt.Sprintf("open=%d", open), func(b *testing.B) {
			fx := mounted(b)
			files := openFilled(b, fx, open)
			for i := 0; b.Loop(); i++ {
				_, err := files[i%open].WriteAt([]byte{byte(i)}, 100)
				must(b, err)
				v, err := fx.fs.Cut(context.Background())
				must(b, err)
				must(b, v.Close())
			}
			stats := fx.fs.CutStats()
			b.ReportMetric(float64(stats.LongestHold.Microseconds())/1000, "ms-longest-hold")
			b.ReportMetric(float64(stats.LongestWait.Microseconds())/1000, "ms-longest-mutation-wait")
		})
	}
}
