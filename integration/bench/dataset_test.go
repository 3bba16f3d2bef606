//go:build bench

package bench

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
	"github.com/chromafs/chromafs/internal/tree"
)

//go:embed dataset.py
var datasetPy string

// dataSeed is what the data follows from; ids of segments are ChromaDB's own.
const dataSeed = 1

// dataPair is one directory of a real ChromaDB in two states.
type dataPair struct {
	before, after string
	bytes         int64 // of after
	dirty         int64 // bytes of after in parts that before does not have, and in small files that differ
}

// newDataPair returns the directory of size bytes, which is made once and kept.
func newDataPair(t testing.TB, size int64) dataPair {
	t.Helper()
	cache := os.Getenv("CHROMAFS_BENCH_CACHE")
	if cache == "" {
		t.Fatal("CHROMAFS_BENCH_CACHE is not set: run this with scripts/bench")
	}
	key := sha256.Sum256([]byte(datasetPy))
	folder := filepath.Join(cache, fmt.Sprintf("bench-data-%x-%d-%d", key[:4], size, dataSeed))
	if !harness.Exists(t, folder) {
		t.Logf("making %d bytes of a ChromaDB in %s (once, minutes)", size, folder)
		fresh := folder + ".new"
		if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(fresh, 0o755)); err != nil {
			t.Fatal(err)
		}
		before, after := filepath.Join(fresh, "before"), filepath.Join(fresh, "after")
		chromaData(t, "make", before, size, dataSeed)
		harness.CopyTree(t, before, after)
		chromaData(t, "change", after, dataSeed+1)
		if err := os.Rename(fresh, folder); err != nil {
			t.Fatal(err)
		}
	}
	p := dataPair{before: filepath.Join(folder, "before"), after: filepath.Join(folder, "after")}
	p.bytes = apparentSize(t, p.after)
	eachFile(t, p.after, func(rel string) {
		p.dirty += differing(t, filepath.Join(p.before, rel), filepath.Join(p.after, rel), nil)
	})
	return p
}

// chromaData runs dataset.py.
func chromaData(t testing.TB, action, path string, numbers ...int64) {
	t.Helper()
	args := []string{"-c", datasetPy, action, path}
	for _, n := range numbers {
		args = append(args, strconv.FormatInt(n, 10))
	}
	cmd := exec.Command(harness.Python(t), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("dataset.py %s: %v\n%s", action, err, out)
	}
}

// differing counts the bytes of file b in parts that differ from those of file a, and
// writes them to a writer, if that is not nil, as they are found.
func differing(t testing.TB, a, b string, write func(part []byte, off int64) error) (n int64) {
	t.Helper()
	old, err := os.Open(a)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	defer old.Close() // of no file: an error
	now, err := os.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	defer now.Close()
	info, err := now.Stat()
	if err != nil {
		t.Fatal(err)
	}
	length := min(tree.MinPartSize, info.Size()+1) // a small file needs no more
	was, is := make([]byte, length), make([]byte, length)
	for off := int64(0); ; off += tree.MinPartSize {
		length, err := now.ReadAt(is, off)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if length == 0 {
			return n
		}
		had := 0
		if old != nil {
			if had, err = old.ReadAt(was, off); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		if bytes.Equal(was[:had], is[:length]) {
			continue
		}
		n += int64(length)
		if write != nil {
			if err := write(is[:length], off); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// become makes dir hold what a state of the data holds, as an application would: it
// writes what differs, in place, now.
func become(t testing.TB, dir, state string) {
	t.Helper()
	eachFile(t, state, func(rel string) {
		name := filepath.Join(dir, rel)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		size := apparentSize(t, filepath.Join(state, rel))
		var f *os.File
		differing(t, name, filepath.Join(state, rel), func(part []byte, off int64) (err error) {
			if f == nil {
				if f, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644); err != nil {
					return err
				}
			}
			_, err = f.WriteAt(part, off)
			return err
		})
		if f != nil {
			if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
				t.Fatal(err)
			}
		} else if now := apparentSize(t, name); now != size {
			if err := os.Truncate(name, size); err != nil {
				t.Fatal(err)
			}
		}
	})
	eachFile(t, dir, func(rel string) {
		if !harness.Exists(t, filepath.Join(state, rel)) {
			if err := os.Remove(filepath.Join(dir, rel)); err != nil {
				t.Fatal(err)
			}
		}
	})
	// Some tools tell changed files by times of a second.
	time.Sleep(1100 * time.Millisecond)
}

// holds fails the test unless dir holds every file of a state.
func holds(t testing.TB, dir, state string) {
	t.Helper()
	eachFile(t, state, func(rel string) {
		have, want := filepath.Join(dir, rel), filepath.Join(state, rel)
		if differing(t, have, want, nil) != 0 || apparentSize(t, have) != apparentSize(t, want) {
			t.Fatalf("%s is not what was backed up", have)
		}
	})
}

// eachFile calls f for every file below a folder but those of chromafs's own.
func eachFile(t testing.TB, folder string, f func(rel string)) {
	t.Helper()
	err := filepath.WalkDir(folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			if err == nil && d.Name() == ".chromafs" {
				return fs.SkipDir
			}
			return err
		}
		rel, err := filepath.Rel(folder, name)
		if err == nil {
			f(rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// apparentSize returns how long the files are that lie at a path.
func apparentSize(t testing.TB, path string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
