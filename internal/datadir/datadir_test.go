package datadir

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/exitcode"
)

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestOpenMakesTheHiddenFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "dir")
	d := open(t, path)
	for _, name := range []string{"", "scratch", "backups"} {
		st, err := os.Stat(filepath.Join(path, StateName, name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != os.ModeDir|0o700 {
			t.Errorf("%s/%s has mode %v", StateName, name, st.Mode())
		}
	}
	again := open(t, path)
	if again.Key() != d.Key() || !strings.Contains(d.Key(), "-") {
		t.Errorf("keys %q and %q of one directory", d.Key(), again.Key())
	}
	if open(t, t.TempDir()).Key() == d.Key() {
		t.Error("two directories have one key")
	}
}

func TestDescriptorsOutliveThePath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir")
	d := open(t, path)
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(path, "decoy"), 0o755); err != nil {
		t.Fatal(err)
	}
	if empty, err := d.Empty(); err != nil || !empty {
		t.Errorf("Empty looked at the path, not at the descriptor: %v, %v", empty, err)
	}
	if err := d.Lock("x"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(path+".moved", StateName, lockName)); err != nil {
		t.Error(err)
	}
}

func TestOpenRefusesAHiddenFolderThatIsALink(t *testing.T) {
	path, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(path, StateName)); err != nil {
		t.Fatal(err)
	}
	if d, err := Open(path); err == nil {
		d.Close()
		t.Fatal("opened through a symbolic link")
	}
	if names, _ := os.ReadDir(elsewhere); len(names) != 0 {
		t.Errorf("wrote outside of DIR: %v", names)
	}
}

func TestOpenReadOnlyMakesNothing(t *testing.T) {
	path := t.TempDir()
	d, err := OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.State() != nil {
		t.Error("a hidden folder out of nothing")
	}
	if holder, err := d.Holder(); holder != nil || err != nil {
		t.Errorf("holder %v, %v", holder, err)
	}
	if names, err := os.ReadDir(path); err != nil || len(names) != 0 {
		t.Errorf("made %v (%v)", names, err)
	}
	if _, err := OpenReadOnly(filepath.Join(path, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing DIR: %v", err)
	}
	open(t, path)
	d, err = OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.State() == nil || d.Scratch() == nil || d.Backups() == nil {
		t.Error("the hidden folder was not opened")
	}
}

func TestEmpty(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	check := func(want bool, what string) {
		t.Helper()
		for range 2 { // reading must not use up the descriptor
			if got, err := d.Empty(); err != nil || got != want {
				t.Errorf("%s: %v, %v", what, got, err)
			}
		}
	}
	check(true, "a new DIR")
	lost := filepath.Join(path, "lost+found")
	if err := os.Mkdir(lost, 0o700); err != nil {
		t.Fatal(err)
	}
	check(os.Getuid() == 0, "lost+found")
	if err := os.Chmod(lost, 0o755); err != nil {
		t.Fatal(err)
	}
	check(false, "a lost+found that mkfs did not make")
	os.Remove(lost)
	if err := os.Symlink("nowhere", filepath.Join(path, "link")); err != nil {
		t.Fatal(err)
	}
	check(false, "a dangling link")
}

func TestFree(t *testing.T) {
	d := open(t, t.TempDir())
	free, err := d.Free()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.Path(), &st); err != nil {
		t.Fatal(err)
	}
	if all := st.Blocks * uint64(st.Frsize); free == 0 || free > all {
		t.Errorf("%d bytes free of %d", free, all)
	}
}

// TestLockHelper is not a test: it is the other process of TestLock.
func TestLockHelper(t *testing.T) {
	path := os.Getenv("DATADIR_TEST_LOCK")
	if path == "" {
		return
	}
	d := open(t, path)
	if err := d.Lock("/mnt/with space"); err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString("locked\n")
	bufio.NewReader(os.Stdin).ReadString('\n')
}

// F5: the lock of a killed holder is free at once.
func TestLockNamesItsHolderAndDiesWithIt(t *testing.T) {
	path := t.TempDir()
	holder := exec.Command(os.Args[0], "-test.run=^TestLockHelper$")
	holder.Env = append(os.Environ(), "DATADIR_TEST_LOCK="+path)
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "locked\n" {
		t.Fatalf("the holder said %q, %v", line, err)
	}
	d := open(t, path)
	err = d.Lock("second")
	var locked *LockedError
	if !errors.As(err, &locked) || !errors.Is(err, ErrLocked) {
		t.Fatalf("a second lock: %v", err)
	}
	if locked.PID != holder.Process.Pid || locked.Info != "/mnt/with space" {
		t.Errorf("holder %d is named as %+v", holder.Process.Pid, locked)
	}
	if exitcode.Hint(err) == "" || !strings.Contains(err.Error(), "/mnt/with space") {
		t.Errorf("message %q, hint %q", err, exitcode.Hint(err))
	}
	if h, err := d.Holder(); err != nil || h == nil || h.PID != holder.Process.Pid {
		t.Errorf("Holder: %v, %v", h, err)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	holder.Wait()
	if err := d.Lock("second"); err != nil {
		t.Fatalf("after the holder was killed: %v", err)
	}
	if err := d.Lock("again"); err == nil {
		t.Error("locked twice")
	}
	if err := d.Unlock(); err != nil {
		t.Fatal(err)
	}
	if h, err := d.Holder(); h != nil || err != nil {
		t.Errorf("after Unlock: %v, %v", h, err)
	}
}

func TestLockClearsScratchButUnfinishedRestores(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	scratch := filepath.Join(path, StateName, ScratchName)
	for _, dir := range []string{"cut-1/deep/er", "restore-1/kept"} {
		if err := os.MkdirAll(filepath.Join(scratch, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(scratch, "cut-1/deep/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(scratch, "block"), []byte("x"), 0o000); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(scratch, "cut-1/deep"), 0o000); err != nil {
		t.Fatal(err)
	}
	if err := d.Lock("x"); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(scratch)
	if err != nil || len(names) != 1 || names[0].Name() != "restore-1" {
		t.Errorf("scratch holds %v (%v)", names, err)
	}
	if _, err := os.Stat(filepath.Join(scratch, "restore-1/kept")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("clearing scratch followed a link: %v", err)
	}
}
