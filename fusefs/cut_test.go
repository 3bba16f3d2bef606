package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/tree"
)

// start runs one of children until the test ends, and fails the test if it ended
// with an error before.
func start(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := child(t, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	runUntilEnd(t, cmd, &out)
}

func runUntilEnd(t *testing.T, cmd *exec.Cmd, out *bytes.Buffer) {
	t.Helper()
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		select {
		case err := <-ended:
			t.Errorf("%s ended early: %v: %s", cmd.Args, err, out)
		default:
			cmd.Process.Kill()
			<-ended
		}
	})
}

// readable is a view of a mount, or of a folder (package dirview).
type readable interface {
	Entries() []tree.Entry
	Open(path string) (tree.Reader, error)
}

// copyView writes a view out as plain files.
func copyView(t *testing.T, v readable, to string) {
	t.Helper()
	for _, e := range v.Entries() {
		name := filepath.Join(to, e.Path)
		switch e.Type {
		case tree.Dir:
			must(t, os.MkdirAll(name, 0o755))
		case tree.Symlink:
			must(t, os.Symlink(e.Target, name))
		case tree.File:
			must(t, os.MkdirAll(filepath.Dir(name), 0o755))
			must(t, os.WriteFile(name, readEntry(t, v, e), 0o644))
		}
	}
}

func readEntry(t *testing.T, v readable, e tree.Entry) []byte {
	t.Helper()
	r, err := v.Open(e.Path)
	must(t, err)
	defer r.Close()
	data := make([]byte, e.Size)
	if _, err := r.ReadAt(data, 0); err != nil && err != io.EOF {
		t.Fatalf("read %s from the view: %v", e.Path, err)
	}
	return data
}

// cutOnce cuts and runs f on the view.
func cutOnce(t *testing.T, fx *fixture, f func(v *View)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	v, err := fx.fs.Cut(ctx)
	must(t, err)
	f(v)
	must(t, v.Close())
}

// S1: everything written before the cut was asked for is in it, also what the
// kernel had not handed over.
func TestViewHasEverythingWrittenBefore(t *testing.T) {
	fx := mounted(t)
	for i := range 20 {
		name := fmt.Sprintf("f%d", i%4)
		data := bytes.Repeat([]byte{byte(i + 1)}, 1000*i+1)
		f := openWrite(t, in(fx.mnt, name), data)
		cutOnce(t, fx, func(v *View) {
			r, err := v.Open(name)
			must(t, err)
			defer r.Close()
			got := make([]byte, len(data))
			if _, err := r.ReadAt(got, 0); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			if !bytes.Equal(got, data) {
				t.Errorf("round %d: the view has other bytes than were written before it", i)
			}
		})
		f.Close()
	}
}

// churnBlocks is the size of the files that childChurn plays with, in 4 KiB blocks.
const churnBlocks = 96

// childChurn changes the files and folders of args[0] at random, for ever.
func childChurn(args []string) error {
	rnd := rand.New(rand.NewPCG(7, 7))
	at := func(s string) string { return filepath.Join(args[0], s) }
	names := []string{"x/1", "x/2", "x/sub/3", "y/4", "y/5", "6"}
	buf := make([]byte, 4096)
	for i := 0; ; i++ {
		name := at(names[rnd.IntN(len(names))])
		other := at(names[rnd.IntN(len(names))])
		for j := range buf {
			buf[j] = byte(i)
		}
		switch op := rnd.IntN(16); op {
		case 0:
			os.Remove(name)
		case 1:
			os.Rename(name, other)
		case 2:
			os.Link(name, other)
		case 3:
			os.Truncate(name, int64(rnd.IntN(churnBlocks))*4096+17)
		case 4:
			os.Rename(at("x"), at("z"))
			os.Rename(at("z"), at("x"))
		case 5:
			os.Rename(at("x/sub"), at("y/sub"))
		case 6:
			os.Rename(at("y/sub"), at("x/sub"))
		default:
			os.MkdirAll(filepath.Dir(name), 0o755)
			f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
			if err != nil {
				continue
			}
			off := int64(rnd.IntN(churnBlocks)) * 4096
			if op == 7 {
				unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, 8192)
			} else {
				f.WriteAt(buf, off)
			}
			if op == 8 {
				f.Sync()
			}
			f.Close()
		}
	}
}

// S1: a view equals a copy that is made while the gate is held at the freeze,
// although it is read while writers overwrite, truncate, punch holes, link, rename
// files and folders, and unlink.
func TestViewEqualsACopyMadeUnderTheGate(t *testing.T) {
	fx := mounted(t)
	for _, dir := range []string{"x/sub", "y"} {
		must(t, os.MkdirAll(in(fx.mnt, dir), 0o755))
	}
	for range 2 {
		start(t, "churn", fx.mnt)
	}
	time.Sleep(50 * time.Millisecond)
	s := fx.fs.fsys
	compared := 0
	for range 25 {
		truth := t.TempDir()
		s.onFreeze.Store(ptr(func() {
			if out, err := exec.Command("cp", "-a", "--sparse=never", fx.dir+"/.", truth).CombinedOutput(); err != nil {
				t.Errorf("copy under the gate: %v: %s", err, out)
			}
		}))
		cutOnce(t, fx, func(v *View) {
			s.onFreeze.Store(nil)
			entries := v.Entries()
			rand.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
			for _, e := range entries {
				name := filepath.Join(truth, e.Path)
				st, err := os.Lstat(name)
				must(t, err)
				if st.IsDir() != (e.Type == tree.Dir) {
					t.Fatalf("%s is a %s in the view", e.Path, e.Type)
				}
				if e.Type != tree.File {
					continue
				}
				time.Sleep(time.Millisecond) // let the writers at it
				want, err := os.ReadFile(name)
				must(t, err)
				if got := readEntry(t, v, e); !bytes.Equal(got, want) {
					t.Errorf("cut %d: %s differs from the copy (%d and %d bytes)", v.Number(), e.Path, len(got), len(want))
				}
				compared++
			}
			if got, want := len(entries), countBelow(t, truth); got != want {
				t.Errorf("cut %d: %d entries, the copy has %d", v.Number(), got, want)
			}
		})
	}
	if compared < 25 {
		t.Errorf("only %d files were compared", compared)
	}
	t.Logf("%d files compared; %+v", compared, fx.fs.CutStats())
}

func ptr[T any](v T) *T { return &v }

func countBelow(t *testing.T, dir string) (n int) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		if d.Name() == ".chromafs" {
			return filepath.SkipDir
		}
		n++
		return nil
	}))
	return n
}

// F4: a view that finds no room in scratch is given up with ErrViewAbandoned; the
// write that needed the room succeeds, and the next cut works.
func TestOutOfScratchAbandonsTheView(t *testing.T) {
	top := openTempDir(t)
	disk := filepath.Join(top, "disk")
	must(t, os.Mkdir(disk, 0o755))
	must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "size=8m"))
	t.Cleanup(func() { must(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	fx := &fixture{dir: filepath.Join(disk, "dir"), mnt: filepath.Join(top, "mnt"), rec: &markRecorder{}}
	must(t, os.Mkdir(fx.dir, 0o755))
	must(t, os.Mkdir(fx.mnt, 0o755))
	fx.mount(t, func(o *Options) { o.ScratchLimit.Bytes = 1 << 30 })
	f := openWrite(t, in(fx.mnt, "big"), bytes.Repeat([]byte("old."), 1<<20)) // 4 MiB of 8
	must(t, f.Sync())
	cutOnce(t, fx, func(v *View) {
		r, err := v.Open("big")
		must(t, err)
		defer r.Close()
		_, err = f.WriteAt(bytes.Repeat([]byte("new."), 1<<20), 0)
		must(t, err)
		must(t, f.Sync())
		if _, err := r.ReadAt(make([]byte, 4), 0); !errors.Is(err, ErrViewAbandoned) {
			t.Errorf("read of the view: %v, want ErrViewAbandoned", err)
		}
		if _, err := v.Open("big"); !errors.Is(err, ErrViewAbandoned) {
			t.Errorf("open of the view: %v, want ErrViewAbandoned", err)
		}
	})
	got, err := os.ReadFile(in(fx.dir, "big"))
	must(t, err)
	if !bytes.Equal(got, bytes.Repeat([]byte("new."), 1<<20)) {
		t.Error("the write that abandoned the view is not on the backing disk")
	}
	if n := fx.fs.CutStats().Abandoned; n != 1 {
		t.Errorf("%d views abandoned", n)
	}
	cutOnce(t, fx, func(v *View) {
		if got := readEntry(t, v, v.Entries()[0]); !bytes.HasPrefix(got, []byte("new.")) {
			t.Errorf("the next view shows %q", got[:4])
		}
	})
}

// Views are one at a time, numbered, and leave nothing open behind.
func TestCutNumbersAndTurns(t *testing.T) {
	fx := mounted(t)
	must(t, os.WriteFile(in(fx.mnt, "f"), []byte("1"), 0o644))
	before := openDescriptors(t)
	ctx := context.Background()
	v, err := fx.fs.Cut(ctx)
	must(t, err)
	if v.Number() != 2 || fx.fs.Info().Cut != 2 {
		t.Errorf("the first cut after mark number 1 has number %d", v.Number())
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := fx.fs.Cut(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second cut while the first view is open: %v", err)
	}
	must(t, os.WriteFile(in(fx.mnt, "f"), []byte("2"), 0o644))
	must(t, os.Remove(in(fx.mnt, "f")))
	if got := readEntry(t, v, v.Entries()[0]); string(got) != "1" {
		t.Errorf("the view shows %q", got)
	}
	if got := fx.rec.take(); !slices.Contains(got, "f") {
		t.Errorf("marked after the cut: %q", got)
	}
	must(t, v.Close())
	must(t, v.Close())
	if _, err := v.Open("f"); err == nil {
		t.Error("a closed view opens files")
	}
	cutOnce(t, fx, func(v *View) {
		if len(v.Entries()) != 0 || v.Number() != 3 {
			t.Errorf("cut %d: %v", v.Number(), v.Entries())
		}
	})
	eventually(t, "no descriptor is left", func() bool { return openDescriptors(t) <= before })
}

// S1: a mode, an owner or times that an application sets are no part of a view that
// lacks what was written before: a cut may not fall between its push and them.
func TestSetAttributesCount(t *testing.T) {
	fx := mounted(t)
	p := in(fx.mnt, "f")
	must(t, os.WriteFile(p, []byte("1"), 0o644))
	times := []unix.Timespec{{Sec: 1}, {Sec: 2}}
	for what, set := range map[string]func() error{
		"chmod":   func() error { return unix.Chmod(p, 0o600) },
		"chown":   func() error { return unix.Lchown(p, 7, 7) },
		"utimens": func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, p, times, 0) },
	} {
		before := fx.fs.fsys.busy.look().changes
		must(t, set())
		if fx.fs.fsys.busy.look().changes == before {
			t.Errorf("%s does not count", what)
		}
	}
}

// S1: a folder that is removed while a cut lists the tree is not in it, and no error.
func TestFolderRemovedDuringACut(t *testing.T) {
	fx := mounted(t)
	for _, name := range []string{"gone", "kept/gone"} {
		must(t, os.MkdirAll(in(fx.mnt, name), 0o755))
	}
	rec := fx.fs.fsys.views.record()
	defer fx.fs.fsys.views.endRecord(rec)
	must(t, rec.walk(context.Background()))
	for _, name := range []string{"gone", "kept/gone"} {
		must(t, os.Remove(in(fx.mnt, name)))
	}
	must(t, rec.refresh())
	v := newView(fx.fs.fsys)
	v.assemble(rec)
	if got := v.Entries(); len(got) != 1 || got[0].Path != "kept" {
		t.Errorf("the view holds %v", got)
	}
}

// The lost+found of a volume's root belongs to mkfs: a restore elsewhere must not
// bring it along. One below a folder is an application's.
func TestViewLeavesLostAndFoundOut(t *testing.T) {
	fx := mounted(t)
	for _, name := range []string{"lost+found", "seg/lost+found"} {
		must(t, os.MkdirAll(in(fx.mnt, name), 0o700))
	}
	cutOnce(t, fx, func(v *View) {
		var got []string
		for _, e := range v.Entries() {
			got = append(got, e.Path)
		}
		want := []string{"seg", "seg/lost+found"}
		if os.Geteuid() != 0 { // only root's is mkfs's
			want = append([]string{"lost+found"}, want...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("the view holds %q, want %q", got, want)
		}
	})
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

// The bitmap's runs are those of a slice of bools.
func TestBitmap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var b bitmap
	model := make([]bool, 1000)
	for range 300 {
		from := rnd.Int64N(1000)
		to := from + rnd.Int64N(1000-from)
		if rnd.IntN(4) == 0 {
			b.set(from, to)
			for i := from; i < to; i++ {
				model[i] = true
			}
		}
		f, e := b.clear(from, to)
		for i := from; i < f; i++ {
			if !model[i] {
				t.Fatalf("clear(%d,%d) passes over %d", from, to, i)
			}
		}
		for i := f; i < e; i++ {
			if model[i] {
				t.Fatalf("clear(%d,%d) includes %d", from, to, i)
			}
		}
		if e < to && !model[e] {
			t.Fatalf("clear(%d,%d) ends at %d, which is clear", from, to, e)
		}
		if from < to {
			in, until := b.run(from, to)
			for i := from; i < until; i++ {
				if model[i] != in {
					t.Fatalf("run(%d,%d) is wrong at %d", from, to, i)
				}
			}
		}
	}
}
