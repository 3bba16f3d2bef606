package journal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/tree"
)

// testLog sends records to the test's output.
type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(string(bytes.TrimSpace(b)))
	return len(b), nil
}

func folder(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func tryOpen(t testing.TB, dir string, fault func(string) error) (*Journal, error) {
	t.Helper()
	return Open(folder(t, dir), Options{fault: fault, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))})
}

// open opens the journal in dir. It is checked and closed when the test ends, if
// the test has not closed it by then.
func open(t testing.TB, dir string) *Journal { return openFaulty(t, dir, nil) }

func openFaulty(t testing.TB, dir string, fault func(string) error) *Journal {
	t.Helper()
	j, err := tryOpen(t, dir, fault)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if j.closed {
			return
		}
		checked(t, j)
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j
}

func checked(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Check(); err != nil {
		t.Error(err)
	}
}

// reopen closes j as a crash would leave it and opens it again.
func reopen(t testing.TB, j *Journal, dir string) *Journal {
	t.Helper()
	checked(t, j)
	must(t, j.Close())
	return open(t, dir)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// record is a file as a snapshot holds it, of a content that size and seed tell.
func record(path string, size int64, seed byte) tree.Record {
	r := tree.Record{
		Entry:    tree.Entry{Path: path, Type: tree.File, Mode: 0o644, Size: size, ModTime: 1000 + int64(seed), ChangeTime: 2000 + int64(seed), Inode: 7, Nlink: 1},
		PartSize: tree.PartSize(size), ETag: fmt.Sprintf("etag-%d", seed),
	}
	for i := range tree.PartCount(size, r.PartSize) {
		r.Parts = append(r.Parts, tree.Hash(sha256.Sum256([]byte{seed, byte(i)})))
	}
	return r
}

func published(sequence, cut uint64, records ...tree.Record) Published {
	return Published{Lineage: "lineage", Sequence: sequence, Epoch: 3, ID: fmt.Sprintf("id-%d", sequence), Cut: cut, Records: records}
}

func wantMarks(t testing.TB, j *Journal, want map[string]uint64) {
	t.Helper()
	if got := j.Dirty(); fmt.Sprint(got.Marks) != fmt.Sprint(want) {
		t.Errorf("marked are %v, want %v", got.Marks, want)
	}
}

// smallDisk mounts a tmpfs of that size and returns its path.
func smallDisk(t testing.TB, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts a tmpfs to fill it: run it as root")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// fill leaves exactly free bytes of the disk that dir is on; it returns the file
// that takes up the rest.
func fill(t testing.TB, dir string, free int64) string {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	name := filepath.Join(dir, "filler")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	must(t, err)
	defer f.Close()
	if n := int64(st.Bavail)*st.Bsize - free; n > 0 {
		_, err := f.Write(make([]byte, n))
		must(t, err)
	}
	must(t, unix.Statfs(dir, &st))
	if got := int64(st.Bavail) * st.Bsize; got != free {
		t.Fatalf("%d bytes are free, want %d", got, free)
	}
	return name
}

// plainDir is a DIR with a .chromafs, some files, and a journal whose base is
// just what is there.
func plainDir(t testing.TB) (root *os.File, state string, j *Journal) {
	t.Helper()
	dir := t.TempDir()
	state = filepath.Join(dir, datadir.StateName)
	must(t, os.MkdirAll(filepath.Join(dir, "seg", "deep"), 0o755))
	must(t, os.Mkdir(state, 0o700))
	for name, content := range map[string]string{"chroma.sqlite3": "a database", "seg/data.bin": "vectors", "seg/length.bin": "lengths", "seg/deep/x": "x", "empty": ""} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), (tree.MinPartSize+4096)/16)
	must(t, os.WriteFile(filepath.Join(dir, "big"), big, 0o644))
	must(t, os.Symlink("seg/data.bin", filepath.Join(dir, "link")))
	root = folder(t, dir)
	j = open(t, state)
	must(t, j.Rebase(published(1, 1, records(t, root)...)))
	return root, state, j
}

// records describes what is in root as a snapshot of it would.
func records(t testing.TB, root *os.File) []tree.Record {
	t.Helper()
	entries := walk(t, root)
	out := make([]tree.Record, len(entries))
	for i, e := range entries {
		out[i].Entry = e
		if e.Type != tree.File {
			continue
		}
		f, err := tree.OpenBeneath(root, e.Path, unix.O_RDONLY, 0)
		must(t, err)
		out[i].PartSize = tree.PartSize(e.Size)
		out[i].Parts, err = tree.HashParts(context.Background(), f, e.Size, out[i].PartSize)
		must(t, err)
		f.Close()
	}
	return out
}

func walk(t testing.TB, root *os.File) []tree.Entry {
	t.Helper()
	entries, _, err := tree.Walk(root, func(p string) bool { return p == datadir.StateName })
	must(t, err)
	return entries
}

func kept(t testing.TB, state, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(state, pattern))
	must(t, err)
	slices.Sort(names)
	return names
}
