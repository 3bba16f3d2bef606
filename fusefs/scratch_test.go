package fusefs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// old is 1 MiB of what files hold at the cut. Bigger buffers are slow with the race
// detector.
func old() []byte { return bytes.Repeat([]byte("old."), 1<<18) }

// sized makes a file of the mount with size bytes of data, on disk.
func sized(t *testing.T, fx *fixture, name string, size int64) *os.File {
	t.Helper()
	f := openWrite(t, in(fx.mnt, name), nil)
	fill(t, f, size)
	return f
}

func fill(t *testing.T, f *os.File, size int64) {
	t.Helper()
	chunk := old()
	for off := int64(0); off < size; off += int64(len(chunk)) {
		_, err := f.WriteAt(chunk[:min(int64(len(chunk)), size-off)], off)
		must(t, err)
	}
	must(t, f.Sync())
}

func given(t *testing.T, v *View, name string, why error) {
	t.Helper()
	if _, err := v.Open(name); !errors.Is(err, ErrViewAbandoned) || (why != nil && !errors.Is(err, why)) {
		t.Errorf("open of the view: %v, want ErrViewAbandoned for %v", err, why)
	} else if exitcode.Hint(err) == "" {
		t.Errorf("%v: no hint", err)
	}
}

func onlyOld(t *testing.T, v *View, name string, size int64) {
	t.Helper()
	e := v.Entries()[0]
	if e.Path != name || e.Size != size {
		t.Fatalf("the view holds %s with %d bytes, want %s with %d", e.Path, e.Size, name, size)
	}
	r, err := v.Open(name)
	must(t, err)
	defer r.Close()
	want, got := old(), make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(got)) {
		n, err := r.ReadAt(got, off)
		if err != nil && err != io.EOF || !bytes.Equal(got[:n], want[:n]) || int64(n) != min(int64(len(got)), size-off) {
			t.Fatalf("the view shows what was written after the cut, at %d: %d bytes, %v", off, n, err)
		}
	}
}

// onTmpfs is mounted, but DIR is on a tmpfs, which is quick and shares no blocks.
func onTmpfs(t *testing.T, change ...func(*Options)) *fixture {
	t.Helper()
	top := openTempDir(t)
	fx := &fixture{dir: filepath.Join(tmpfs(t, top), "dir"), mnt: filepath.Join(top, "mnt"), rec: &markRecorder{}}
	must(t, errors.Join(os.Mkdir(fx.dir, 0o755), os.Mkdir(fx.mnt, 0o755)))
	fx.mount(t, change...)
	return fx
}

func tmpfs(t *testing.T, top string) string {
	t.Helper()
	disk := filepath.Join(top, "tmpfs")
	must(t, os.Mkdir(disk, 0o755))
	must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "size=600m"))
	t.Cleanup(func() { must(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	return disk
}

// F4: what a view saves is counted and bounded. Above the limit the view is given
// up with a hint, the write succeeds, and the next cut works.
func TestScratchLimit(t *testing.T) {
	fx := mounted(t, func(o *Options) { o.ScratchLimit.Bytes = 1 << 20 })
	f := sized(t, fx, "f", 4<<20)
	write := func(text string, off, n int) {
		t.Helper()
		_, err := f.WriteAt(bytes.Repeat([]byte(text), n/len(text)), int64(off))
		must(t, errors.Join(err, f.Sync()))
	}
	cutOnce(t, fx, func(v *View) {
		write("new.", 0, 1<<20)
		write("NEW.", 0, 1<<20) // the same blocks: nothing more to save
		onlyOld(t, v, "f", 4<<20)
		if used, limit := fx.fs.Scratch(); used != 1<<20 || limit != 1<<20 {
			t.Errorf("%d bytes of %d in scratch", used, limit)
		}
		must(t, v.Close())
		if used := v.scratch.Load(); used != 0 {
			t.Errorf("%d bytes count after the end of the view", used)
		}
	})
	if used, limit := fx.fs.Scratch(); used != 0 || limit != 0 {
		t.Errorf("%d bytes of %d in scratch without a view", used, limit)
	}
	f.Close()
	must(t, os.Remove(in(fx.mnt, "f")))
	f = sized(t, fx, "f", 4<<20)
	cutOnce(t, fx, func(v *View) {
		write("new.", 0, 1<<20+4)
		given(t, v, "f", nil)
		var full *scratchFullError
		if err := v.err(); !errors.As(err, &full) {
			t.Errorf("given up for %v", err)
		}
		eventually(t, "what it saved is freed", func() bool { return v.scratch.Load() == 0 })
	})
	cutOnce(t, fx, func(v *View) {
		if got := readEntry(t, v, v.Entries()[0]); !bytes.HasPrefix(got, []byte("new.")) {
			t.Errorf("the next view shows %q", got[:4])
		}
	})
	if n := fx.fs.CutStats().Abandoned; n != 1 {
		t.Errorf("%d views given up", n)
	}
}

func TestScratchLimitIsAShareOfFreeSpace(t *testing.T) {
	for _, c := range []struct {
		limit ScratchLimit
		want  int64
	}{{ScratchLimit{Percent: 10}, 100}, {ScratchLimit{Percent: 0.5}, 5}, {ScratchLimit{Bytes: 7, Percent: 10}, 7}} {
		if got := c.limit.of(1000); got != c.want {
			t.Errorf("%+v of 1000: %d, want %d", c.limit, got, c.want)
		}
	}
	fx := mounted(t)
	cutOnce(t, fx, func(v *View) {
		free, _, err := fx.fs.fsys.scratchSpace()
		must(t, err)
		if v.limit < free/11 || v.limit > free/9 {
			t.Errorf("the default is %d bytes of %d free", v.limit, free)
		}
	})
}

// losses are the calls that take all of a file at once.
func losses() map[string]func(f *os.File, size int64) error {
	return map[string]func(f *os.File, size int64) error{
		"truncate": func(f *os.File, _ int64) error { return f.Truncate(0) },
		"punch": func(f *os.File, size int64) error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, size)
		},
	}
}

// F4: no call waits for more than copyLimit to be copied. Where sharing the blocks
// is not possible the view is given up at once. Holes cost nothing.
func TestNoCallWaitsForALongCopy(t *testing.T) {
	for name, lose := range losses() {
		t.Run(name, func(t *testing.T) {
			fx := onTmpfs(t, func(o *Options) { o.ScratchLimit.Bytes = 1 << 40 })
			f := sized(t, fx, "f", copyLimit+1<<20)
			cutOnce(t, fx, func(v *View) {
				start := time.Now()
				must(t, lose(f, copyLimit+1<<20))
				t.Logf("%s took %v", name, time.Since(start))
				given(t, v, "f", errLongCopy)
				if v.scratch.Load() != 0 {
					t.Error("something was copied before the view was given up")
				}
			})
			// Mostly a hole: as much as may be copied of it is data.
			must(t, f.Truncate(0))
			fill(t, f, 8<<20)
			must(t, errors.Join(f.Truncate(1<<40), f.Sync()))
			cutOnce(t, fx, func(v *View) {
				start := time.Now()
				must(t, lose(f, 1<<40))
				t.Logf("%s of a sparse file took %v", name, time.Since(start))
				r, err := v.Open("f")
				must(t, err)
				defer r.Close()
				for _, off := range []int64{0, 8<<20 - 4, 8 << 20, 1<<40 - 4} {
					want := "old."
					if off >= 8<<20 {
						want = "\x00\x00\x00\x00"
					}
					got := make([]byte, 4)
					if _, err := r.ReadAt(got, off); err != nil && err != io.EOF || string(got) != want {
						t.Errorf("the view holds %q at %d, want %q: %v", got, off, want, err)
					}
				}
			})
		})
	}
}

// Where the file system can share blocks, a long loss is no reason to give the view
// up, and what it shares counts.
func TestLongLossIsSharedOnXFS(t *testing.T) {
	top := openTempDir(t)
	image, disk := filepath.Join(tmpfs(t, top), "image"), filepath.Join(top, "disk")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 512<<20))
	must(t, os.Mkdir(disk, 0o755))
	if out, err := exec.Command("mkfs.xfs", "-q", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.xfs (package xfsprogs): %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, disk).CombinedOutput(); err != nil {
		t.Fatalf("mount an image: %v: %s", err, out)
	}
	t.Cleanup(func() { must(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	for name, lose := range losses() {
		t.Run(name, func(t *testing.T) {
			fx := &fixture{dir: filepath.Join(disk, name), mnt: filepath.Join(top, name), rec: &markRecorder{}}
			must(t, os.Mkdir(fx.dir, 0o755))
			must(t, os.Mkdir(fx.mnt, 0o755))
			fx.mount(t, func(o *Options) { o.ScratchLimit.Bytes = 1 << 40 })
			const size = copyLimit + 1<<20 + 12 // ends in the middle of a block
			f := sized(t, fx, "f", size)
			cutOnce(t, fx, func(v *View) {
				_, err := f.WriteAt([]byte("new."), 10*blockSize) // a block that is saved by then
				must(t, errors.Join(err, f.Sync()))
				start := time.Now()
				must(t, lose(f, size))
				t.Logf("%s took %v", name, time.Since(start))
				for off := int64(0); off < size+blockSize; off += 1 << 20 {
					_, err = f.WriteAt(bytes.Repeat([]byte("new."), 1<<18), off)
					must(t, err)
				}
				must(t, f.Sync())
				onlyOld(t, v, "f", size)
				if used := v.scratch.Load(); used < size || used > size+blockSize {
					t.Errorf("%d bytes count, of %d shared", used, size)
				}
			})
			must(t, f.Close())
			must(t, os.Remove(in(fx.mnt, "f")))
		})
	}
}
