package journal

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/internal/tree"
)

func objectStored(key string, seed byte) Stored {
	return Stored{Key: key, Size: 10, PartSize: 10, ETag: "etag", Hashes: []tree.Hash{sha256.Sum256([]byte{seed})}}
}

func partStored(key string, n int, seed byte) Stored {
	return Stored{Key: key, Upload: "upload", Part: n, Size: 7, PartSize: 10, ETag: "part", Hashes: []tree.Hash{sha256.Sum256([]byte{seed})}}
}

func wantStored(t *testing.T, j *Journal, id string, want ...Stored) {
	t.Helper()
	got, err := j.Stored(id)
	if err != nil || len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %+v, %v, want %+v", id, got, err, want)
	}
}

// What is noted is there after a crash, the newest note counts, and it goes with its id.
func TestStored(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	for _, id := range []string{"a", "b"} {
		must(t, j.AddPending(id))
		must(t, j.AddStored(id, objectStored("history/"+id+"/x", 1), partStored("history/"+id+"/y", 2, 2)))
	}
	must(t, j.AddStored("a", partStored("history/a/y", 1, 3), objectStored("history/a/x", 4)))
	must(t, j.AddStored("a", Stored{Key: "history/a/y", Upload: "upload", Part: 2})) // is about to be replaced
	j = reopen(t, j, dir)
	wantStored(t, j, "a", objectStored("history/a/x", 4), partStored("history/a/y", 1, 3))
	wantStored(t, j, "b", objectStored("history/b/x", 1), partStored("history/b/y", 2, 2))
	must(t, j.SyncStored("a"))
	must(t, j.DropPending("a"))
	wantStored(t, j, "a")
	wantStored(t, j, "b", objectStored("history/b/x", 1), partStored("history/b/y", 2, 2))
	must(t, j.SyncStored("a")) // of nothing
	if err := j.AddStored("b", Stored{Key: "history/b/z"}); !errors.Is(err, errValue) {
		t.Errorf("nonsense: %v", err)
	}
	if err := j.AddStored("../b", objectStored("x", 1)); !errors.Is(err, errValue) {
		t.Errorf("an id that leads elsewhere: %v", err)
	}
	must(t, j.Close())
	if err := j.AddStored("b", objectStored("x", 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// A line that was torn costs itself alone, and a file whose id is not pending goes.
func TestStoredAfterACrash(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	must(t, j.AddPending("a"))
	must(t, j.AddStored("a", objectStored("history/a/x", 1), objectStored("history/a/y", 2)))
	path := filepath.Join(dir, storedPrefix+"a")
	text, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, text[:len(text)-5], 0o600))
	must(t, os.WriteFile(filepath.Join(dir, storedPrefix+"gone"), text, 0o600))
	j = reopen(t, j, dir)
	wantStored(t, j, "a", objectStored("history/a/x", 1))
	must(t, j.AddStored("a", objectStored("history/a/z", 3)))
	wantStored(t, j, "a", objectStored("history/a/x", 1), objectStored("history/a/z", 3))
	if _, err := os.Stat(filepath.Join(dir, storedPrefix+"gone")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of an id that is not pending: %v", err)
	}
}

// The file as this version writes it, and as other versions may.
func TestStoredFixture(t *testing.T) {
	text, err := os.ReadFile("testdata/stored1")
	must(t, err)
	want := []Stored{objectStored("history/a/x", 1), partStored("history/a/y", 2, 2)}
	if got := decodeStored(text); !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, want %+v", got, want)
	}
	for _, damage := range []struct{ old, new string }{
		{`"size":10`, `"size":11`}, {"\n1 ", "\n2 "}, {"history", "mystery"},
	} {
		if got := decodeStored([]byte(strings.ReplaceAll(string(text), damage.old, damage.new))); len(got) > 1 {
			t.Errorf("%q instead of %q: %+v", damage.new, damage.old, got)
		}
	}
}

func FuzzStored(f *testing.F) {
	text, err := os.ReadFile("testdata/stored1")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, s := range decodeStored(text) {
			if !s.valid() || s.ETag == "" {
				t.Errorf("%+v", s)
			}
		}
	})
}
