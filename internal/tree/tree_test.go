package tree

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPartSizeStaysWithinTheLimitOfParts(t *testing.T) {
	for _, tc := range []struct{ size, want int64 }{
		{0, 8 << 20},
		{1, 8 << 20},
		{MaxParts * (8 << 20), 8 << 20},
		{MaxParts*(8<<20) + 1, 16 << 20},
		{5 << 40, 1 << 30},
	} {
		got := PartSize(tc.size)
		if got != tc.want {
			t.Errorf("PartSize(%d) = %d, want %d", tc.size, got, tc.want)
		}
		if n := PartCount(tc.size, got); n > MaxParts {
			t.Errorf("size %d: %d parts", tc.size, n)
		}
	}
}

func TestPartRangesCoverTheFileOnce(t *testing.T) {
	for _, size := range []int64{0, 1, 7, 8, 9, 16, 17} {
		var end int64
		for i := range PartCount(size, 8) {
			off, length := PartRange(size, 8, i)
			if off != end || length <= 0 {
				t.Fatalf("size %d part %d: offset %d length %d after %d", size, i, off, length, end)
			}
			end += length
		}
		if end != size {
			t.Errorf("size %d: parts end at %d", size, end)
		}
	}
}

func TestHashPartsRefusesAShortFile(t *testing.T) {
	r := bytes.NewReader(make([]byte, 10))
	if _, err := HashParts(context.Background(), r, 11, 8); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("hashing 11 bytes of 10: %v", err)
	}
	sums, err := HashParts(context.Background(), r, 10, 8)
	if err != nil || len(sums) != 2 || sums[0] == sums[1] {
		t.Errorf("sums %v, error %v", sums, err)
	}
}

func TestHashTextRoundTrips(t *testing.T) {
	sum, err := HashPart(strings.NewReader("abc"), 0, 3)
	if err != nil {
		t.Fatal(err)
	}
	const want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // FIPS 180-4, example "abc"
	if sum.String() != want {
		t.Fatalf("sum %s", sum)
	}
	var back Hash
	if err := back.UnmarshalText([]byte(want)); err != nil || back != sum {
		t.Errorf("%v, %v", back, err)
	}
	for _, bad := range []string{"", "ba78", strings.Repeat("x", 64)} {
		if back.UnmarshalText([]byte(bad)) == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestWalkListsInPathOrderAndNeverFollows(t *testing.T) {
	dir := t.TempDir()
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"), "x")
	write(t, filepath.Join(dir, "b"), "four")
	write(t, filepath.Join(dir, "a", "x"), "1")
	write(t, filepath.Join(dir, "a.b"), "")
	write(t, filepath.Join(dir, ".hidden", "y"), "")
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	entries, special, err := Walk(open(t, dir), func(p string) bool { return p == ".hidden" })
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Type.String()+" "+e.Path)
	}
	want := []string{"dir a", "file a.b", "file a/x", "file b", "symlink link"}
	if strings.Join(got, ",") != strings.Join(want, ",") {
		t.Errorf("walk: %v, want %v", got, want)
	}
	if len(special) != 1 || special[0] != "fifo" {
		t.Errorf("special files: %v", special)
	}
	if e := entries[3]; e.Size != 4 || e.Inode == 0 || e.ModTime == 0 {
		t.Errorf("entry b: %+v", e)
	}
	if entries[4].Target != outside {
		t.Errorf("target %q", entries[4].Target)
	}
}

func TestOpenBeneathCannotLeave(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "root", "in", "file"), "x")
	write(t, filepath.Join(dir, "out"), "x")
	os.Symlink("../out", filepath.Join(dir, "root", "up"))
	os.Symlink("in", filepath.Join(dir, "root", "same"))
	root := open(t, filepath.Join(dir, "root"))
	for _, name := range []string{"../out", "up", "/etc/passwd", "in/../../out", "same/file"} {
		if f, err := OpenBeneath(root, name, unix.O_RDONLY, 0); err == nil {
			f.Close()
			t.Errorf("%s could be opened", name)
		}
	}
	f, err := OpenBeneath(root, "in/file", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func write(t *testing.T, name, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
