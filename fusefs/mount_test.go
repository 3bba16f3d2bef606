package fusefs

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/mountinfo"
)

// serveChild runs a daemon in another process until stop is called, or the test
// ends.
func serveChild(t *testing.T, cred *syscall.Credential, dir, mnt string) (stop func()) {
	t.Helper()
	_, stop = startChild(t, cred, dir, mnt)
	return stop
}

func startChild(t *testing.T, cred *syscall.Credential, dir, mnt string) (cmd *exec.Cmd, stop func()) {
	t.Helper()
	cmd = child(t, "serve", dir, mnt)
	if cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	waited := false
	stop = func() {
		if waited {
			return
		}
		waited = true
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the daemon: %v", err)
		}
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if line != "ready\n" {
		stdin.Close()
		t.Fatalf("the daemon did not start (%v): %v", err, cmd.Wait())
	}
	t.Cleanup(stop)
	return cmd, stop
}

// The mount shows DIR on top of DIR itself: everything goes through descriptors
// opened before.
func TestMountOnTopOfItself(t *testing.T) {
	dir := openTempDir(t)
	must(t, os.WriteFile(in(dir, "before"), []byte("x"), 0o644))
	fx := &fixture{dir: dir, mnt: dir, rec: &markRecorder{}}
	fx.mount(t)
	if m, ok := mountAt(dir); !ok || m.Type != mountinfo.Type || !strings.HasPrefix(m.Source, mountinfo.SourcePrefix) {
		t.Fatalf("mounted there: %+v", m)
	}
	must(t, os.WriteFile(in(dir, "after"), []byte("y"), 0o644))
	must(t, os.Rename(in(dir, "before"), in(dir, "moved")))
	if _, err := os.Lstat(in(dir, datadir.StateName)); !os.IsNotExist(err) {
		t.Errorf("the hidden folder is visible: %v", err)
	}
	fx.unmount(t)
	for name, want := range map[string]string{"moved": "x", "after": "y"} {
		if b, err := os.ReadFile(in(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s below the mount: %q, %v", name, b, err)
		}
	}
}

func TestMountInsideItselfIsRefused(t *testing.T) {
	dir := openTempDir(t)
	must(t, os.MkdirAll(in(dir, "a", "b"), 0o755))
	must(t, os.WriteFile(in(dir, "file"), nil, 0o644))
	d, err := datadir.Open(dir)
	must(t, err)
	defer d.Close()
	for point, want := range map[string]error{
		in(dir, "a", "b"): ErrInsideItself, in(dir, "file"): ErrNotDirectory, in(dir, "none"): syscall.ENOENT,
	} {
		_, err := Mount(context.Background(), Options{Dir: d, Mountpoint: point, Recorder: &markRecorder{}})
		if !errors.Is(err, want) || exitcode.Hint(err) == "" {
			t.Errorf("mount at %s: %v (hint %q), want %v", point, err, exitcode.Hint(err), want)
		}
	}
}

// The hidden folder cannot be reached, made, replaced or listed.
func TestHiddenFolder(t *testing.T) {
	fx := mounted(t)
	hidden := in(fx.mnt, datadir.StateName)
	must(t, os.WriteFile(in(fx.mnt, "f"), []byte("x"), 0o644))
	must(t, os.Mkdir(in(fx.mnt, "d"), 0o755))
	before := snapshot(t, in(fx.dir, datadir.StateName))
	for _, c := range []struct {
		name string
		err  error
		want syscall.Errno
	}{
		{"stat", unix.Lstat(hidden, &unix.Stat_t{}), unix.ENOENT},
		{"stat inside", unix.Lstat(in(hidden, "scratch"), &unix.Stat_t{}), unix.ENOENT},
		{"through a folder", unix.Lstat(in(fx.mnt, "d", "..", datadir.StateName), &unix.Stat_t{}), unix.ENOENT},
		{"unlink", unix.Unlink(hidden), unix.ENOENT},
		{"rmdir", unix.Rmdir(hidden), unix.ENOENT},
		{"rename it", unix.Rename(hidden, in(fx.mnt, "x")), unix.ENOENT},
		{"create", os.WriteFile(hidden, nil, 0o644), unix.EPERM},
		{"mkdir", unix.Mkdir(hidden, 0o755), unix.EPERM},
		{"mkfifo", unix.Mkfifo(hidden, 0o644), unix.EPERM},
		{"symlink", unix.Symlink("f", hidden), unix.EPERM},
		{"link", unix.Link(in(fx.mnt, "f"), hidden), unix.EPERM},
		{"rename to it", unix.Rename(in(fx.mnt, "d"), hidden), unix.EPERM},
		{"exchange with it", unix.Renameat2(unix.AT_FDCWD, in(fx.mnt, "d"), unix.AT_FDCWD, hidden, unix.RENAME_EXCHANGE), unix.ENOENT},
		{"tmpfile", childTmpfile(fx.mnt, hidden), unix.EPERM},
		{"the name deeper down is free", unix.Mkdir(in(fx.mnt, "d", datadir.StateName), 0o755), 0},
	} {
		if got := errnoIn(c.err); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	entries, err := os.ReadDir(fx.mnt)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, []string{"d", "f"}) {
		t.Errorf("listed: %q", names)
	}
	sameTree(t, "the hidden folder changed", snapshot(t, in(fx.dir, datadir.StateName)), before)
	if marks := fx.rec.take(); slices.Contains(marks, datadir.StateName) {
		t.Errorf("marked: %q", marks)
	}
}

func errnoIn(err error) syscall.Errno {
	var errno syscall.Errno
	errors.As(err, &errno)
	return errno
}

// F5: what a killed daemon leaves is cleared, and another one takes over.
func TestDeadMountIsCleared(t *testing.T) {
	top := openTempDir(t)
	fx := &fixture{dir: in(top, "dir"), mnt: in(top, "mnt"), rec: &markRecorder{}}
	must(t, os.Mkdir(fx.dir, 0o755))
	must(t, os.Mkdir(fx.mnt, 0o755))
	for range 2 { // one over the other
		cmd := child(t, "serve", fx.dir, fx.mnt)
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		must(t, err)
		defer stdin.Close()
		stdout, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
			t.Fatalf("the daemon did not start: %v", err)
		}
		must(t, os.WriteFile(in(fx.mnt, "f"), []byte("x"), 0o644))
		must(t, cmd.Process.Kill())
		go io.Copy(io.Discard, stdout)
		cmd.Wait()
		eventually(t, "the mount is dead", func() bool { return isDead(fx.mnt) })
		if _, err := Mount(context.Background(), fx.options(t)); errnoIn(err) != unix.ENOTCONN || exitcode.Hint(err) == "" {
			t.Errorf("mount over a dead mount: %v", err)
		}
		must(t, ClearDeadMount(fx.mnt))
		if m, ok := mountAt(fx.mnt); ok {
			t.Fatalf("still mounted: %+v", m)
		}
	}
	must(t, ClearDeadMount(fx.mnt)) // nothing there: nothing to do
	fx.mount(t)
	if b, err := os.ReadFile(in(fx.mnt, "f")); err != nil || string(b) != "x" {
		t.Errorf("f holds %q, %v", b, err)
	}
	must(t, ClearDeadMount(fx.mnt)) // alive: left alone
	if _, err := os.Stat(in(fx.mnt, "f")); err != nil {
		t.Error("a live mount was cleared")
	}
}

func (fx *fixture) options(t *testing.T) Options {
	t.Helper()
	d, err := datadir.Open(fx.dir)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return Options{Dir: d, Mountpoint: fx.mnt, Recorder: fx.rec}
}

// A mount in use stays, and says so; lazily it goes, and serves who still uses it.
func TestUnmountBusy(t *testing.T) {
	fx := mounted(t)
	f, err := os.Create(in(fx.mnt, "f"))
	must(t, err)
	defer f.Close()
	err = fx.fs.Unmount(false)
	if !errors.Is(err, syscall.EBUSY) || exitcode.Hint(err) == "" {
		t.Fatalf("unmount of a busy mount: %v", err)
	}
	must(t, fx.fs.Unmount(true))
	if _, ok := mountAt(fx.mnt); ok {
		t.Error("still in the list of mounts")
	}
	if _, err := f.WriteString("late"); err != nil {
		t.Errorf("write to a file of a detached mount: %v", err)
	}
	must(t, f.Sync())
	select {
	case <-fx.fs.Done():
		t.Error("done while a file is open")
	default:
	}
	must(t, f.Close())
	select {
	case <-fx.fs.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the detached mount does not end after its last file was closed")
	}
	if b, err := os.ReadFile(in(fx.dir, "f")); err != nil || string(b) != "late" {
		t.Errorf("f holds %q, %v", b, err)
	}
}

// Nothing may pass the daemon by: as root, on kernels that have passthrough, every
// write reaches the daemon, and the kernel is never offered a descriptor.
func TestNeverPassthrough(t *testing.T) {
	fx := mounted(t)
	if fx.fs.fsys.mountOptions().DisabledCapabilities&(1<<37) == 0 {
		t.Error("passthrough is not refused when the mount is made")
	}
	var h any = &handle{}
	if _, ok := h.(interface{ PassthroughFd() (int, bool) }); ok {
		t.Error("handles offer a descriptor for passthrough")
	}
	must(t, os.WriteFile(in(fx.mnt, "f"), []byte("seen"), 0o644))
	fx.newCut()
	fx.rec.take()
	must(t, onFile(in(fx.mnt, "f"), unix.O_WRONLY, func(fd int) error { _, err := unix.Write(fd, []byte("again")); return err }))
	if got := fx.rec.take(); !slices.Equal(got, []string{"f"}) {
		t.Errorf("marked %q after a write", got)
	}
}

// Info and LastMutation tell what the mount is doing.
func TestInfo(t *testing.T) {
	now := time.Unix(1_700_000_000, 5)
	fx := mounted(t, func(o *Options) { o.Now = func() time.Time { return now } })
	if got := fx.fs.LastMutation(); !got.IsZero() {
		t.Errorf("before any change: %v", got)
	}
	f, err := os.Create(in(fx.mnt, "f"))
	must(t, err)
	defer f.Close()
	info := fx.fs.Info()
	if info.Mountpoint != fx.mnt || info.OpenForWrite != 1 || info.OpenFiles < 1 || info.Inodes < 2 || info.Cut != 1 || !info.LastMutation.Equal(now) {
		t.Errorf("info: %+v", info)
	}
}

// Inodes and descriptors are given back when the kernel forgets.
func TestForgetGivesDescriptorsBack(t *testing.T) {
	fx := mounted(t)
	must(t, os.MkdirAll(in(fx.mnt, "a", "b"), 0o755))
	for _, name := range []string{"1", "2", "3"} {
		must(t, os.WriteFile(in(fx.mnt, "a", "b", name), []byte(name), 0o644))
	}
	must(t, os.RemoveAll(in(fx.mnt, "a")))
	// What changed is held until it was synced.
	must(t, onFile(fx.mnt, unix.O_RDONLY|unix.O_DIRECTORY, func(int) error { return nil }))
	eventually(t, "all inodes but the root are forgotten", func() bool {
		s := fx.fs.fsys
		s.mu.RLock()
		defer s.mu.RUnlock()
		return len(s.nodes) == 1 && len(s.inodes) == 1 && len(s.rootNode.children) == 0 && len(s.files) == 0 && len(s.folders) == 0
	})
}

// F5: once a program has unmapped a file that it had closed before, nothing of ours
// makes an unmount fail.
func TestUnmountAfterTheLastMap(t *testing.T) {
	for range 10 {
		fx := mounted(t)
		fx.requireWriteback(t)
		a := openWrite(t, in(fx.mnt, "f"), make([]byte, 8192))
		b, err := os.OpenFile(a.Name(), os.O_RDWR, 0)
		must(t, err)
		m, err := unix.Mmap(int(a.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		g := openWrite(t, in(fx.mnt, "g"), []byte("x"))
		must(t, g.Sync()) // opens a descriptor of f to push through
		must(t, g.Close())
		m[0] = 1
		must(t, a.Close())
		must(t, b.Close())
		must(t, unix.Munmap(m))
		if err := fx.fs.Unmount(false); err != nil {
			t.Fatal(err)
		}
	}
}
