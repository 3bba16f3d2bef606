package fusefs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
)

// hookWrites has f called before each WRITE that reaches the daemon.
func (fx *fixture) hookWrites(f func(path string, m *mutation) syscall.Errno) {
	s := fx.fs.fsys
	hook := func(m *mutation) syscall.Errno {
		path := ""
		if paths := s.paths(m.node); len(paths) > 0 {
			path = paths[0]
		}
		return f(path, m)
	}
	s.onWrite.Store(&hook)
}

// writeFile writes without closing or syncing.
func openWrite(t *testing.T, path string, data []byte) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	_, err = f.Write(data)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// requireWriteback fails where the kernel does not cache writes: then the tests of
// push and barrier would prove nothing.
func (fx *fixture) requireWriteback(t *testing.T) {
	t.Helper()
	if !fx.fs.fsys.writeback {
		t.Fatal("the mount is without write cache")
	}
}

// F3: fsync of one file waits for a WRITE of another that is on its way, in both
// ways of pushing.
func TestBarrierWaitsForWritesOfOtherFiles(t *testing.T) {
	for _, mode := range []pushMode{pushRange, pushFsync} {
		t.Run(mode.String(), func(t *testing.T) {
			fx := mounted(t, func(o *Options) { o.forcePush = mode })
			fx.requireWriteback(t)
			const delay = 300 * time.Millisecond
			var answered atomic.Bool
			fx.hookWrites(func(path string, _ *mutation) syscall.Errno {
				if path == "slow" {
					time.Sleep(delay)
					answered.Store(true)
				}
				return 0
			})
			openWrite(t, in(fx.mnt, "slow"), []byte("these bytes take their time"))
			other := openWrite(t, in(fx.mnt, "other"), []byte("x"))
			must(t, other.Sync())
			if !answered.Load() {
				t.Error("fsync returned before the other file's WRITE was answered")
			}
			got, err := os.ReadFile(in(fx.dir, "slow"))
			must(t, err)
			if string(got) != "these bytes take their time" {
				t.Errorf("on the backing disk: %q", got)
			}
			// A folder's fsync is a barrier too.
			answered.Store(false)
			openWrite(t, in(fx.mnt, "slow"), []byte("and again"))
			d, err := os.Open(fx.mnt)
			must(t, err)
			defer d.Close()
			must(t, d.Sync())
			if !answered.Load() {
				t.Error("fsync of a folder returned before a WRITE was answered")
			}
		})
	}
}

// F3: a WRITE that the disk refused after write(2) had said yes fails the fsync of
// any file, until it was written again, truncated away, or nobody has it open.
func TestRefusedWriteFailsEveryBarrier(t *testing.T) {
	for name, repair := range map[string]func(t *testing.T, fx *fixture, lost *os.File){
		"written again": func(t *testing.T, _ *fixture, lost *os.File) {
			_, err := lost.WriteAt(make([]byte, 8192), 0)
			must(t, err)
		},
		"truncated away": func(t *testing.T, _ *fixture, lost *os.File) { must(t, lost.Truncate(0)) },
		"closed": func(t *testing.T, fx *fixture, lost *os.File) {
			_ = lost.Close() // may well report it
			eventually(t, "the handle is released", func() bool { return fx.fs.Info().OpenFiles < 2 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			fx := mounted(t)
			fx.requireWriteback(t)
			var full atomic.Bool
			full.Store(true)
			fx.hookWrites(func(path string, _ *mutation) syscall.Errno {
				if path == "lost" && full.Load() {
					return syscall.ENOSPC
				}
				return 0
			})
			lost := openWrite(t, in(fx.mnt, "lost"), make([]byte, 8192))
			other := openWrite(t, in(fx.mnt, "other"), []byte("x"))
			for range 3 {
				if err := other.Sync(); !isErrno(err, syscall.ENOSPC) {
					t.Fatalf("fsync of the other file: %v, want ENOSPC", err)
				}
			}
			full.Store(false)
			if err := other.Sync(); !isErrno(err, syscall.ENOSPC) {
				t.Fatalf("fsync once there is room, but nothing was written again: %v, want ENOSPC", err)
			}
			repair(t, fx, lost)
			// The kernel itself may report its own error once more.
			_ = other.Sync()
			if err := other.Sync(); err != nil {
				t.Errorf("fsync after the repair: %v", err)
			}
		})
	}
}

// F3: so does a WRITE that was refused because the journal could not record it.
func TestUnmarkedWriteFailsEveryBarrier(t *testing.T) {
	fx := mounted(t)
	fx.requireWriteback(t)
	lost := openWrite(t, in(fx.mnt, "lost"), []byte("old"))
	other := openWrite(t, in(fx.mnt, "other"), []byte("x"))
	must(t, other.Sync())
	v, err := fx.fs.Cut(context.Background()) // from here on both files need a mark again
	must(t, err)
	must(t, v.Close())
	fx.rec.hook(func(paths []string) error {
		if slices.Contains(paths, "lost") {
			return errors.New("the journal's disk is full")
		}
		return nil
	})
	_, err = lost.WriteAt([]byte("new"), 0)
	must(t, err)
	for i := range 3 {
		if i == 2 {
			fx.rec.hook(nil)
		}
		if err := other.Sync(); !isErrno(err, syscall.EIO) {
			t.Errorf("fsync %d of the other file: %v, want EIO", i, err)
		}
	}
	_, err = lost.WriteAt([]byte("new"), 0)
	must(t, err)
	_ = other.Sync() // the kernel itself may report its own error once more
	if err := other.Sync(); err != nil {
		t.Errorf("fsync after it was written again: %v", err)
	}
}

func isErrno(err error, want syscall.Errno) bool {
	for err != nil {
		if errno, ok := err.(syscall.Errno); ok {
			return errno == want
		}
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return false
		}
		err = u.Unwrap()
	}
	return false
}

// F3: many fsyncs at once, of files that are written all the time, in both ways of
// pushing: none deadlocks, and each finds its own bytes on the backing disk.
func TestManyBarriersAtOnce(t *testing.T) {
	for _, mode := range []pushMode{pushRange, pushFsync} {
		t.Run(mode.String(), func(t *testing.T) {
			fx := mounted(t, func(o *Options) { o.forcePush = mode })
			const writers, rounds = "6", "40"
			if out, err := runChild(t, nil, "syncers", fx.mnt, fx.dir, writers, rounds); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		})
	}
}

// childSyncers writes and syncs files in args[0], as many at once as args[2] says,
// and looks for them in args[1]. It is another process, as every application is: a
// new thread of the daemon's must not find files of the mount among its own.
func childSyncers(args []string) error {
	writers, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	rounds, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	errs := make(chan error, writers)
	for w := range writers {
		go func() { errs <- syncOften(args[0], args[1], w, rounds) }()
	}
	for range writers {
		select {
		case err := <-errs:
			if err != nil {
				return err
			}
		case <-time.After(40 * time.Second):
			return errors.New("deadlock")
		}
	}
	return nil
}

func syncOften(mnt, dir string, w, rounds int) error {
	name := fmt.Sprintf("f%d", w)
	for i := range rounds {
		f, err := os.OpenFile(in(mnt, name), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		text := strings.Repeat(fmt.Sprintf("%d.%d ", w, i), 2000)
		if _, err := f.WriteAt([]byte(text), 0); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		got, err := os.ReadFile(in(dir, name))
		if err != nil {
			return err
		}
		if !strings.HasPrefix(string(got), text) {
			return fmt.Errorf("%s: round %d is not on the backing disk after fsync", name, i)
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// The self-test finds a call that waits on this kernel, and none where WRITEs are
// answered at once although the kernel was told otherwise.
func TestSelfTest(t *testing.T) {
	mode, err := probePush(t.Context(), t.TempDir(), 50*time.Millisecond)
	must(t, err)
	if mode == pushNone {
		t.Error("neither sync_file_range nor fsync waits for a WRITE on this kernel")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if mode, err := probePush(ended, t.TempDir(), time.Second); err == nil || mode != pushNone {
		t.Errorf("a self-test that did not end: %s, %v", mode, err)
	}
}

// A failed range goes when it is written again, piece by piece, and no sooner.
func TestFailuresRemember(t *testing.T) {
	var f failures
	f.add(0, 100, syscall.EIO)
	f.add(200, 300, syscall.ENOSPC)
	f.remove(50, 250)
	want := []failedRange{{0, 50, syscall.EIO}, {250, 300, syscall.ENOSPC}}
	if fmt.Sprint(f.ranges) != fmt.Sprint(want) {
		t.Errorf("ranges %v, want %v", f.ranges, want)
	}
	f.remove(0, maxOffset)
	if len(f.ranges) != 0 {
		t.Errorf("left: %v", f.ranges)
	}
	for i := range int64(10 * maxFailures) {
		f.add(i*10, i*10+1, syscall.EIO)
	}
	if len(f.ranges) > maxFailures {
		t.Errorf("%d ranges", len(f.ranges))
	}
	for i := range int64(10 * maxFailures) {
		covered := false
		for _, r := range f.ranges {
			covered = covered || r.off <= i*10 && i*10+1 <= r.end
		}
		if !covered {
			t.Fatalf("offset %d was forgotten", i*10)
		}
	}
}

// Nothing of the daemon's keeps a mount busy once the application's close(2) has
// returned, however much was pushed.
func TestUnmountAfterCloseIsNotBusy(t *testing.T) {
	fx := mounted(t)
	for i := range 50 {
		f, err := os.Create(in(fx.mnt, fmt.Sprint(i)))
		must(t, err)
		_, err = f.WriteString("x")
		must(t, err)
		d, err := os.Open(fx.mnt)
		must(t, err)
		must(t, d.Sync()) // a barrier, which pushes f through a descriptor
		must(t, d.Close())
		must(t, f.Close())
	}
	eventually(t, "RELEASE came", func() bool { return fx.fs.Info().OpenFiles == 0 })
	if err := unix.Unmount(fx.mnt, 0); err != nil {
		t.Fatalf("unmount: %v", err)
	}
	<-fx.fs.Done()
}

// F3: a barrier also waits for a file that can be reached by no path any more,
// because the mount was detached, and lay on the very directory that it shows.
func TestBarrierOnADetachedMount(t *testing.T) {
	fx := mounted(t, func(o *Options) { o.Mountpoint = o.Dir.Path() })
	fx.requireWriteback(t)
	var answered atomic.Int32
	fx.hookWrites(func(path string, _ *mutation) syscall.Errno {
		if path == "slow" {
			time.Sleep(200 * time.Millisecond)
			answered.Add(1)
		}
		return 0
	})
	slow := openWrite(t, in(fx.dir, "slow"), nil)
	other := openWrite(t, in(fx.dir, "other"), []byte("x"))
	must(t, fx.fs.Unmount(true))
	_, err := slow.WriteString("written where no path leads")
	must(t, err)
	must(t, other.Sync())
	if answered.Load() == 0 {
		t.Error("fsync returned before the other file's WRITE was answered")
	}
	got, err := os.ReadFile(in(fx.dir, "slow")) // the backing file: the mount is out of the way
	must(t, err)
	if string(got) != "written where no path leads" {
		t.Errorf("on the backing disk: %q", got)
	}
	must(t, slow.Close())
	must(t, other.Close())
	select {
	case <-fx.fs.Done():
	case <-time.After(10 * time.Second):
		t.Error("the detached mount does not end with its last file")
	}
}

// childHeld serves args[0] at args[1] and never answers a WRITE to "held".
func childHeld(args []string) error {
	d, err := datadir.Open(args[0])
	if err != nil {
		return err
	}
	f, err := Mount(context.Background(), Options{Dir: d, Mountpoint: args[1], Recorder: &markRecorder{}, FirstCut: 1})
	if err != nil {
		return err
	}
	hook := func(m *mutation) syscall.Errno {
		if paths := f.fsys.paths(m.node); len(paths) == 1 && paths[0] == "held" {
			fmt.Println("holding")
			select {}
		}
		return 0
	}
	f.fsys.onWrite.Store(&hook)
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// childSync writes to "held" and "kept" in args[0] and syncs "kept".
func childSync(args []string) error {
	for _, name := range []string{"held", "kept"} {
		f, err := os.Create(filepath.Join(args[0], name))
		if err != nil {
			return err
		}
		if _, err := f.WriteString(name); err != nil {
			return err
		}
		if name == "kept" {
			return f.Sync()
		}
	}
	return nil
}

// F5: SIGKILL while a push waits for a WRITE that is never answered. The daemon
// and the application that waits end, and a new mount serves within 5 s.
func TestKilledWhileAPushIsHeld(t *testing.T) {
	top := openTempDir(t)
	dir, mnt := filepath.Join(top, "dir"), filepath.Join(top, "mnt")
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.Mkdir(mnt, 0o755))
	daemon := child(t, "held", dir, mnt)
	stdin, err := daemon.StdinPipe()
	must(t, err)
	defer stdin.Close()
	stdout, err := daemon.StdoutPipe()
	must(t, err)
	must(t, daemon.Start())
	lines := bufio.NewScanner(stdout)
	waitLine := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("the daemon said %q (%v), want %q", lines.Text(), lines.Err(), want)
		}
	}
	waitLine("ready")
	app := child(t, "sync", mnt)
	must(t, app.Start())
	waitLine("holding")
	// The barrier's push is waiting by now, or will be in a moment; see it in the kernel.
	eventually(t, "a thread of the daemon waits for its own mount", func() bool { return waitsForWriteback(daemon.Process.Pid) })
	killed := time.Now()
	must(t, daemon.Process.Kill())
	ended := make(chan error, 2)
	go func() { ended <- daemon.Wait() }()
	go func() { ended <- app.Wait() }()
	for range 2 {
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Fatal("a process is still there 5 s after SIGKILL of the daemon")
		}
	}
	must(t, ClearDeadMount(mnt))
	fx := &fixture{dir: dir, mnt: mnt, rec: &markRecorder{}}
	fx.mount(t)
	must(t, os.WriteFile(in(mnt, "kept"), []byte("new"), 0o644))
	if took := time.Since(killed); took > 5*time.Second {
		t.Errorf("a new mount served after %s", took)
	} else {
		t.Logf("a new mount served after %s", took)
	}
}

// waitsForWriteback reports whether a thread of a process is inside sync_file_range.
func waitsForWriteback(pid int) bool {
	stacks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", pid))
	if err != nil {
		return false
	}
	for _, name := range stacks {
		b, _ := os.ReadFile(name)
		if strings.Contains(string(b), "folio_wait") || strings.Contains(string(b), "wait_on_page") {
			return true
		}
		status, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "syscall"))
		if strings.HasPrefix(string(status), fmt.Sprint(unix.SYS_SYNC_FILE_RANGE)+" ") {
			return true
		}
	}
	return false
}
