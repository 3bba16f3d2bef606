package dirview

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	name = filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func newView(t *testing.T, dir string) *View {
	return loggedView(t, dir, slog.New(slog.DiscardHandler))
}

func loggedView(t *testing.T, dir string, log *slog.Logger) *View {
	t.Helper()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	v, err := New(t.Context(), Options{Root: root, Number: 7, Now: time.Now, Log: log,
		Skip: func(p string) bool { return p == ".chromafs" }})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func fill(t *testing.T) string {
	dir := t.TempDir()
	write(t, dir, "chroma.sqlite3", "database")
	write(t, dir, "seg/data_level0.bin", "vectors")
	write(t, dir, ".chromafs/journal.db", "hidden")
	if err := os.Symlink("chroma.sqlite3", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestViewShowsTheDirectory(t *testing.T) {
	dir := fill(t)
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	v := newView(t, dir)
	var paths []string
	for _, e := range v.Entries() {
		paths = append(paths, e.Path)
	}
	if want := []string{"chroma.sqlite3", "link", "seg", "seg/data_level0.bin"}; !slices.Equal(paths, want) {
		t.Errorf("entries %v, want %v", paths, want)
	}
	if !slices.Equal(v.Special(), []string{"pipe"}) {
		t.Errorf("special %v", v.Special())
	}
	if v.Number() != 7 || v.Consistency() != "quiescent" || v.Created().IsZero() {
		t.Errorf("number %d, %s, %v", v.Number(), v.Consistency(), v.Created())
	}
	f, err := v.Open("seg/data_level0.bin")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
	if err != nil || string(got) != "vectors" {
		t.Errorf("read %q, %v", got, err)
	}
	for _, path := range []string{"link", "seg", "pipe", "missing", ".chromafs/journal.db", "../x"} {
		if f, err := v.Open(path); err == nil {
			f.Close()
			t.Errorf("opened %s", path)
		}
	}
	if err := v.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

// S1: whatever wrote meanwhile is found, also where it left the size alone.
func TestVerifyFindsEveryChange(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, dir string) (path string){
		"overwrite in place": func(t *testing.T, dir string) string {
			write(t, dir, "chroma.sqlite3", "DATABASE")
			return "chroma.sqlite3"
		},
		"overwrite with the old mtime": func(t *testing.T, dir string) string {
			name := filepath.Join(dir, "chroma.sqlite3")
			st, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			write(t, dir, "chroma.sqlite3", "DATABASE")
			if err := os.Chtimes(name, st.ModTime(), st.ModTime()); err != nil {
				t.Fatal(err)
			}
			return "chroma.sqlite3"
		},
		"replace": func(t *testing.T, dir string) string {
			write(t, dir, "new", "database")
			if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "chroma.sqlite3")); err != nil {
				t.Fatal(err)
			}
			return "chroma.sqlite3"
		},
		"create": func(t *testing.T, dir string) string { write(t, dir, "seg/new", ""); return "seg/new" },
		"remove": func(t *testing.T, dir string) string {
			os.Remove(filepath.Join(dir, "seg/data_level0.bin"))
			return "seg/data_level0.bin"
		},
		"mode of a folder": func(t *testing.T, dir string) string {
			os.Chmod(filepath.Join(dir, "seg"), 0o700)
			return "seg"
		},
		"another link": func(t *testing.T, dir string) string {
			os.Remove(filepath.Join(dir, "link"))
			os.Symlink("elsewhere.sqlite", filepath.Join(dir, "link"))
			return "link"
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := fill(t)
			v := newView(t, dir)
			tick(t, dir)
			path := change(t, dir)
			err := v.Verify(t.Context())
			if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), path) {
				t.Fatalf("Verify: %v, want it to name %s", err, path)
			}
		})
	}
}

// tick waits until the file system's clock has moved: two changes within one tick
// of it cannot be told apart by any program.
func tick(t *testing.T, dir string) {
	t.Helper()
	probe := filepath.Join(dir, ".chromafs", "probe")
	stat := func() time.Time {
		if err := os.WriteFile(probe, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(probe, 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(probe)
		if err != nil {
			t.Fatal(err)
		}
		return st.ModTime()
	}
	first := stat()
	for deadline := time.Now().Add(10 * time.Second); !stat().After(first); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the clock of the file system stands still")
		}
	}
}

func TestOpenRefusesAnotherFile(t *testing.T) {
	dir := fill(t)
	v := newView(t, dir)
	write(t, dir, "chroma.sqlite3", "a longer database")
	if f, err := v.Open("chroma.sqlite3"); !errors.Is(err, ErrChanged) {
		if err == nil {
			f.Close()
		}
		t.Errorf("Open: %v", err)
	}
	os.Remove(filepath.Join(dir, "chroma.sqlite3"))
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "chroma.sqlite3")); err != nil {
		t.Fatal(err)
	}
	if f, err := v.Open("chroma.sqlite3"); !errors.Is(err, ErrChanged) {
		if err == nil {
			f.Close()
		}
		t.Errorf("a link in its place: %v", err)
	}
}

func TestEndedContext(t *testing.T) {
	v := newView(t, fill(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := New(ctx, v.o); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// S1: what is left out of the view, so that SQLite rolls back where it is restored, is
// looked at again all the same; what only has such a name is in the view.
func TestHalfDoneCommitIsUndecided(t *testing.T) {
	const (
		super = "a.db-mj0A1B2C9D4"
		user  = "x-mj0123459AB"
		magic = "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
		named = "\x00\x04\x00\x01/a.db-mj0A1B2C9D4\x00\x00\x00\x11\x00\x00\x00\x00" + magic
	)
	dir := fill(t)
	write(t, dir, super, "journals")
	write(t, dir, user, "mine")
	write(t, dir, "a.db-journal", magic+named)
	var log strings.Builder
	v := loggedView(t, dir, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	sizes := map[string]int64{}
	for _, e := range v.Entries() {
		sizes[e.Path] = e.Size
	}
	if _, ok := sizes[super]; ok || sizes["a.db-journal"] != int64(len(magic)) || sizes[user] != int64(len("mine")) {
		t.Errorf("the view holds %v", sizes)
	}
	if !strings.Contains(log.String(), super) {
		t.Errorf("log: %s", &log)
	}
	if err := v.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(dir, super)); err != nil {
		t.Fatal(err)
	}
	if err := v.Verify(t.Context()); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), super) {
		t.Errorf("committed meanwhile: %v", err)
	}
}
