package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/storetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("FILE_TEST_RACER"); dir != "" {
		os.Exit(racer(dir))
	}
	os.Exit(m.Run())
}

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := New(filepath.Join(t.TempDir(), "store with space"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *Store, key, text string) objstore.Object {
	t.Helper()
	made, err := s.Put(t.Context(), key, strings.NewReader(text), int64(len(text)), objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) objstore.Store { return newStore(t) })
}

// TestPlainFiles: what is stored is there for cp, and nothing else shows.
func TestPlainFiles(t *testing.T) {
	s := newStore(t)
	put(t, s, "history/1/chroma.sqlite3", "data")
	got, err := os.ReadFile(filepath.Join(s.dir, "history/1/chroma.sqlite3"))
	if err != nil || string(got) != "data" {
		t.Fatalf("the object's file: %q, %v", got, err)
	}
	for o, err := range s.List(t.Context(), "") {
		if err != nil || o.Key != "history/1/chroma.sqlite3" {
			t.Errorf("list: %+v, %v", o, err)
		}
	}
	for _, key := range []string{area, area + "/lock", area + "/tmp/x"} {
		if _, err := s.Put(t.Context(), key, strings.NewReader(""), 0, objstore.PutOptions{}); !errors.Is(err, objstore.ErrRefused) {
			t.Errorf("put %s: %v", key, err)
		}
		if _, _, err := s.Get(t.Context(), key, objstore.GetOptions{}); !errors.Is(err, objstore.ErrRefused) {
			t.Errorf("get %s: %v", key, err)
		}
	}
	for dir, want := range map[string]int{"tmp": 0, "uploads": 0} {
		left, err := os.ReadDir(filepath.Join(s.dir, area, dir))
		if err != nil || len(left) != want {
			t.Errorf("%s holds %v, %v", dir, left, err)
		}
	}
}

// TestFolderRules is R4 for folders.
func TestFolderRules(t *testing.T) {
	if _, err := New("relative/dir"); err == nil {
		t.Error("a relative folder was accepted")
	}
	base := t.TempDir()
	list := func(s *Store) (n int, err error) {
		for _, lerr := range s.List(t.Context(), "") {
			if lerr != nil {
				return n, lerr
			}
			n++
		}
		return n, nil
	}
	absent, _ := New(filepath.Join(base, "absent"))
	if n, err := list(absent); n != 0 || err != nil {
		t.Errorf("list of an absent folder: %d objects, %v", n, err)
	}
	if _, err := os.Stat(absent.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("reading made the folder: %v", err)
	}
	unmounted, _ := New(filepath.Join(base, "not mounted", "store"))
	_, err := list(unmounted)
	if objstore.KindOf(err) != objstore.ErrRefused || !strings.Contains(exitcode.Hint(err), "mounted") || exitcode.Of(err) != exitcode.Store {
		t.Errorf("list below an absent parent: %v, hint %q", err, exitcode.Hint(err))
	}
	for name, op := range map[string]func() error{
		"get": func() error { _, _, err := unmounted.Get(t.Context(), "k", objstore.GetOptions{}); return err },
		"put": func() error {
			_, err := unmounted.Put(t.Context(), "k", strings.NewReader(""), 0, objstore.PutOptions{})
			return err
		},
		"delete":  func() error { return unmounted.Delete(t.Context(), []string{"k"}) },
		"uploads": func() error { _, err := unmounted.Uploads(t.Context(), ""); return err },
	} {
		if err := op(); objstore.KindOf(err) != objstore.ErrRefused {
			t.Errorf("%s below an absent parent: %v", name, err)
		}
	}
	put(t, absent, "k", "v")
	if err := os.Rename(absent.dir, absent.dir+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := list(absent); objstore.KindOf(err) != objstore.ErrRefused {
		t.Errorf("list of a folder that vanished: %v", err)
	}
	_, err = absent.Put(t.Context(), "k2", strings.NewReader(""), 0, objstore.PutOptions{})
	if objstore.KindOf(err) != objstore.ErrRefused {
		t.Errorf("put to a folder that vanished: %v", err)
	}
	plain := filepath.Join(base, "plain file")
	os.WriteFile(plain, nil, 0o600)
	file, _ := New(plain)
	if _, err := list(file); objstore.KindOf(err) != objstore.ErrRefused {
		t.Errorf("list of a plain file: %v", err)
	}
}

// TestNoWayOut: neither a symbolic link nor a key leads out of DIR.
func TestNoWayOut(t *testing.T) {
	s := newStore(t)
	put(t, s, "k", "v")
	outside := t.TempDir()
	os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600)
	os.Symlink(outside, filepath.Join(s.dir, "out"))
	os.Symlink(filepath.Join(outside, "secret"), filepath.Join(s.dir, "link"))
	for _, key := range []string{"out/secret", "link"} {
		if _, _, err := s.Get(t.Context(), key, objstore.GetOptions{}); objstore.KindOf(err) != objstore.ErrRefused {
			t.Errorf("get %s: %v", key, err)
		}
	}
	if _, err := s.Put(t.Context(), "out/new", strings.NewReader("x"), 1, objstore.PutOptions{}); objstore.KindOf(err) != objstore.ErrRefused {
		t.Errorf("put through a link: %v", err)
	}
	if err := s.Delete(t.Context(), []string{"out/secret"}); objstore.KindOf(err) != objstore.ErrRefused {
		t.Errorf("delete through a link: %v", err)
	}
	put(t, s, "link", "replaced")
	if got, _ := os.ReadFile(filepath.Join(outside, "secret")); string(got) != "secret" {
		t.Errorf("what a link points to was changed: %q", got)
	}
}

// TestETag: content that is replaced has another ETag, though inode numbers come
// back at once and the clock stands still; a file edited in place has one too.
func TestETag(t *testing.T) {
	s := newStore(t)
	frozen := time.Now()
	s.now = func() time.Time { return frozen }
	seen := map[string]int{}
	for i := range 200 {
		o := put(t, s, "k", fmt.Sprintf("%03d", i))
		if before, ok := seen[o.ETag]; ok {
			t.Fatalf("states %d and %d have the same ETag %s", before, i, o.ETag)
		}
		seen[o.ETag] = i
	}
	src := put(t, s, "k", "abc")
	f, err := os.OpenFile(filepath.Join(s.dir, "k"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("xyz")
	f.Close()
	if _, err := s.Copy(t.Context(), "copy", src, objstore.CopyOptions{}); !errors.Is(err, objstore.ErrPrecondition) {
		t.Errorf("copy of a file edited in place: %v", err)
	}
}

// TestHardLinks: an immutable copy costs no space, another one is a file of its own.
func TestHardLinks(t *testing.T) {
	s := newStore(t)
	src := put(t, s, "history/1/big", strings.Repeat("x", 1<<20))
	inode := func(key string) uint64 {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(s.dir, key), &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	if reflinks(t, s.dir) {
		t.Log("this file system has reflinks: copies are never links")
	} else {
		for range 2 {
			made, err := s.Copy(t.Context(), "history/2/big", src, objstore.CopyOptions{Immutable: true})
			if err != nil {
				t.Fatal(err)
			}
			if inode("history/2/big") != inode("history/1/big") || made.ETag != src.ETag {
				t.Error("an immutable copy is not a second name")
			}
		}
	}
	if _, err := s.Copy(t.Context(), "big", src, objstore.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if inode("big") == inode("history/1/big") {
		t.Error("a copy that may be modified shares its file with history")
	}
	left, _ := os.ReadDir(filepath.Join(s.dir, area, "tmp"))
	if len(left) != 0 {
		t.Errorf("copies left %v", left)
	}
}

func reflinks(t *testing.T, dir string) bool {
	a, err := os.CreateTemp(dir, ".a")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(a.Name())
	defer a.Close()
	b, err := os.CreateTemp(dir, ".b")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(b.Name())
	defer b.Close()
	return unix.IoctlFileClone(int(b.Fd()), int(a.Fd())) == nil
}

// TestCopyInKernel takes the last way of copying, on a file system (tmpfs under
// /dev/shm) other than the one where the rest runs.
func TestCopyInKernel(t *testing.T) {
	dir := t.TempDir()
	want := storetest.Bytes(5, chunk+12345)
	if err := os.WriteFile(filepath.Join(dir, "src"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := os.Open(filepath.Join(dir, "src"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(filepath.Join("/dev/shm", filepath.Base(dir)+strconv.Itoa(os.Getpid())))
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dst.Name())
	defer dst.Close()
	if err := copyRange(t.Context(), dst, 7, src, 5, int64(len(want))-5); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dst.Name())
	if err != nil || !bytes.Equal(got[7:], want[5:]) {
		t.Errorf("copied %d bytes, not the right ones: %v", len(got), err)
	}
	err = copyRange(t.Context(), dst, 0, src, 5, int64(len(want)))
	if !errors.Is(err, objstore.ErrPrecondition) {
		t.Errorf("copy past the end of the source: %v", err)
	}
}

// TestSweep: what a killed process left in tmp goes, what a living one writes stays.
func TestSweep(t *testing.T) {
	s := newStore(t)
	f, err := s.open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	living, err := newTemporary(f.tmp)
	if err != nil {
		t.Fatal(err)
	}
	defer living.discard()
	tmp := filepath.Join(s.dir, area, "tmp")
	os.WriteFile(filepath.Join(tmp, "dead"), []byte("half"), 0o600)
	os.Mkdir(filepath.Join(tmp, "dead-upload"), 0o700)
	os.WriteFile(filepath.Join(tmp, "dead-upload", "key"), nil, 0o600)
	put(t, s, "k", "v")
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) != 1 || left[0].Name() != living.name {
		t.Errorf("tmp holds %v, want only %s; %v", left, living.name, err)
	}
}

// TestShortened: a file that someone cuts short while it is read is no end of file (O5).
func TestShortened(t *testing.T) {
	s := newStore(t)
	put(t, s, "k", strings.Repeat("x", 100_000))
	body, _, err := s.Get(t.Context(), "k", objstore.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if err := os.Truncate(filepath.Join(s.dir, "k"), 50_000); err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, body)
	if !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("read %d bytes, then %v", n, err)
	}
}

// TestFileBelowFile: a key cannot lie below an object on a file system.
func TestFileBelowFile(t *testing.T) {
	s := newStore(t)
	put(t, s, "x", "object")
	put(t, s, "d/y", "object")
	for _, key := range []string{"x/y", "d"} {
		_, err := s.Put(t.Context(), key, strings.NewReader("v"), 1, objstore.PutOptions{})
		if objstore.KindOf(err) != objstore.ErrRefused {
			t.Errorf("put %s: %v", key, err)
		}
		if _, _, err := s.Get(t.Context(), key, objstore.GetOptions{}); objstore.KindOf(err) != objstore.ErrNotFound {
			t.Errorf("get %s: %v", key, err)
		}
	}
	os.Mkdir(filepath.Join(s.dir, "empty"), 0o700) // as a crash leaves it
	put(t, s, "empty", "v")
}

// TestFullDisk: on a tmpfs of 1 MiB, a put that does not fit says so, leaves nothing,
// and the store goes on.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Fatal("mounting a small tmpfs takes root: run scripts/test as root")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s, err := New(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	small := put(t, s, "small", "fits")
	big := storetest.Bytes(1, 2<<20)
	for name, op := range map[string]func() error{
		"put": func() error {
			_, err := s.Put(t.Context(), "big", bytes.NewReader(big), int64(len(big)), objstore.PutOptions{})
			return err
		},
		"put part": func() error {
			up, err := s.NewUpload(t.Context(), "big")
			if err != nil {
				return err
			}
			defer up.Abort(context.Background())
			return up.PutPart(t.Context(), 1, bytes.NewReader(big), 0, int64(len(big)))
		},
	} {
		err := op()
		if objstore.KindOf(err) != objstore.ErrUnavailable || !errors.Is(err, unix.ENOSPC) ||
			exitcode.Of(err) != exitcode.NoSpace || !strings.Contains(exitcode.Hint(err), "full") {
			t.Errorf("%s: %v (exit code %d, hint %q)", name, err, exitcode.Of(err), exitcode.Hint(err))
		}
	}
	if _, err := s.Copy(t.Context(), "small copy", small, objstore.CopyOptions{}); err != nil {
		t.Errorf("copy after the disk was full: %v", err)
	}
	if err := s.Delete(t.Context(), []string{"small"}); err != nil {
		t.Errorf("delete after the disk was full: %v", err)
	}
	left, _ := os.ReadDir(filepath.Join(s.dir, area, "tmp"))
	if len(left) != 0 {
		t.Errorf("failed puts left %v", left)
	}
}

// TestRaceOfProcesses: O2 holds between processes. Each of 3 adds 40 to a counter by
// conditional replacement; not one addition may be lost.
func TestRaceOfProcesses(t *testing.T) {
	s := newStore(t)
	put(t, s, "counter", "0")
	const procs = 3
	done := make(chan error, procs)
	for range procs {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "FILE_TEST_RACER="+s.dir)
		go func() {
			out, err := cmd.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			done <- err
		}()
	}
	for range procs {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	body, _, err := s.Get(t.Context(), "counter", objstore.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	got, _ := io.ReadAll(body)
	if string(got) != strconv.Itoa(procs*racerRounds) {
		t.Errorf("the counter is %s, want %d", got, procs*racerRounds)
	}
}

const racerRounds = 40

func racer(dir string) int {
	s, err := New(dir)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	ctx := context.Background()
	for added := 0; added < racerRounds; {
		body, o, err := s.Get(ctx, "counter", objstore.GetOptions{})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		text, err := io.ReadAll(body)
		body.Close()
		n, perr := strconv.Atoi(string(text))
		if err = errors.Join(err, perr); err != nil {
			fmt.Println(err)
			return 1
		}
		next := strconv.Itoa(n + 1)
		_, err = s.Put(ctx, "counter", strings.NewReader(next), int64(len(next)), objstore.PutOptions{IfMatch: o.ETag})
		switch {
		case err == nil:
			added++
		case !errors.Is(err, objstore.ErrPrecondition):
			fmt.Println(err)
			return 1
		}
	}
	return 0
}
