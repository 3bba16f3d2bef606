package fusefs

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Two users of the tests, who are not root.
func alice() *syscall.Credential { return &syscall.Credential{Uid: 65534, Gid: 65534} }
func bob() *syscall.Credential {
	return &syscall.Credential{Uid: 1000, Gid: 1000, Groups: []uint32{4242}}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to act as two users: run scripts/test as root")
	}
}

// expect runs operations as a user and compares what each returned.
func expect(t *testing.T, who *syscall.Credential, steps ...string) {
	t.Helper()
	var ops, want []string
	for i := 0; i < len(steps); i += 2 {
		ops = append(ops, steps[i])
		want = append(want, steps[i+1])
	}
	out, err := runChild(t, who, "ops", ops...)
	must(t, err)
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d results for %d operations:\n%s", len(lines), len(want), out)
	}
	for i := range want {
		if got := lines[i][strings.Index(lines[i], ": ")+2:]; got != want[i] {
			t.Errorf("%s: got %q, want %q", ops[i], got, want[i])
		}
	}
}

// owner is what lstat of a backing file says about owner and mode.
func owner(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return fmt.Sprintf("%d:%d %o", st.Uid, st.Gid, st.Mode)
}

// F1: what a user creates is the user's, and the kernel keeps others out.
func TestTwoUsers(t *testing.T) {
	needRoot(t)
	fx := mounted(t, func(o *Options) { o.AllowOther = true })
	must(t, unix.Chmod(fx.mnt, 0o1777))
	m := fx.mnt
	expect(t, alice(),
		op("umask", "027"), "ok",
		op("create", "0666", in(m, "file")), "ok",
		op("mkdir", "0777", in(m, "folder")), "ok",
		op("symlink", "file", in(m, "link")), "ok",
		op("mkfifo", "0666", in(m, "fifo")), "ok",
		op("tmpfile", m, in(m, "tmp")), "ok",
		op("create", "0600", in(m, "folder", "inner")), "ok",
		op("create", "0000", in(m, "none")), "ok",
		op("chmod", "0200", in(m, "none")), "ok",
		op("write", "hello", in(m, "none")), "ok",
		op("append", " you", in(m, "none")), "ok",
		op("read", in(m, "none")), "EACCES",
		op("chmod", "0400", in(m, "none")), "ok",
		op("read", in(m, "none")), "ok hello you",
		op("write", "x", in(m, "none")), "EACCES",
		op("chmod", "0000", in(m, "none")), "ok",
		op("read", in(m, "none")), "EACCES",
	)
	for name, want := range map[string]string{
		"file": "65534:65534 100640", "folder": "65534:65534 40750", "fifo": "65534:65534 10640",
		"tmp": "65534:65534 100640", "folder/inner": "65534:65534 100600", "none": "65534:65534 100000",
		"link": "65534:65534 120777",
	} {
		if got := owner(t, in(fx.dir, name)); got != want {
			t.Errorf("%s belongs to %s, want %s", name, got, want)
		}
	}
	expect(t, bob(),
		op("read", in(m, "file")), "EACCES",
		op("ls", in(m, "folder")), "EACCES",
		op("unlink", in(m, "file")), "EPERM", // the root is sticky
		op("rename", in(m, "file"), in(m, "mine")), "EPERM",
		op("chmod", "0777", in(m, "file")), "EPERM",
		op("utimens", in(m, "file")), "EPERM",
		op("truncate", in(m, "file")), "EACCES",
	)
}

// F1: set-gid folders pass their group on, a supplementary group opens what it
// should, and a write by another user clears the set-id bits.
func TestGroupsAndSetID(t *testing.T) {
	needRoot(t)
	fx := mounted(t, func(o *Options) { o.AllowOther = true })
	m := fx.mnt
	must(t, os.Mkdir(in(m, "shared"), 0o777))
	must(t, os.Chown(in(m, "shared"), 0, 4242))
	must(t, unix.Chmod(in(m, "shared"), 0o2770))
	expect(t, alice(), op("create", "0644", in(m, "shared", "no")), "EACCES")
	expect(t, bob(),
		op("umask", "0"), "ok",
		op("create", "0664", in(m, "shared", "file")), "ok",
		op("mkdir", "0775", in(m, "shared", "sub")), "ok",
		op("create", "2775", in(m, "shared", "setgid")), "ok",
	)
	for name, want := range map[string]string{
		"file": "1000:4242 100664", "sub": "1000:4242 42775", "setgid": "1000:4242 102775",
	} {
		if got := owner(t, in(fx.dir, "shared", name)); got != want {
			t.Errorf("%s belongs to %s, want %s", name, got, want)
		}
	}

	must(t, os.WriteFile(in(m, "program"), []byte("#!"), 0o777))
	must(t, os.Chown(in(m, "program"), 1000, 1000))
	must(t, unix.Chmod(in(m, "program"), 0o6777))
	expect(t, alice(), op("write", "evil", in(m, "program")), "ok")
	for _, d := range []string{m, fx.dir} {
		if got := owner(t, in(d, "program")); got != "1000:1000 100777" {
			t.Errorf("after a write by another user: %s has %s", in(d, "program"), got)
		}
	}
}

// Without AllowOther only the daemon's user may use the mount.
func TestOthersAreKeptOut(t *testing.T) {
	needRoot(t)
	fx := mounted(t)
	must(t, os.Chmod(fx.mnt, 0o777))
	expect(t, alice(), op("ls", fx.mnt), "EACCES")
}

// openDevice lets everybody use /dev/fuse, as every distribution does; containers
// often keep it for root.
func openDevice(t *testing.T) {
	t.Helper()
	const device = "/dev/fuse"
	var st unix.Stat_t
	must(t, unix.Stat(device, &st))
	if st.Mode&0o666 == 0o666 {
		return
	}
	must(t, unix.Chmod(device, 0o666))
	t.Cleanup(func() { must(t, unix.Chmod(device, st.Mode&0o777)) })
}

// The daemon of an ordinary user mounts through fusermount3 and serves its user.
func TestOrdinaryUser(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Fatal("needs fusermount3: scripts/test installs it")
	}
	openDevice(t)
	top := openTempDir(t)
	dir, mnt := in(top, "dir"), in(top, "mnt")
	for _, d := range []string{dir, mnt} {
		must(t, os.Mkdir(d, 0o755))
		must(t, os.Chown(d, 1000, 1000))
	}
	stop := serveChild(t, bob(), dir, mnt)
	expect(t, bob(),
		op("umask", "022"), "ok",
		op("create", "0666", in(mnt, "f")), "ok",
		op("write", "hello", in(mnt, "f")), "ok",
		op("read", in(mnt, "f")), "ok hello",
		op("create", "0200", in(mnt, "w")), "ok",
		op("write", "only", in(mnt, "w")), "ok",
		op("append", " written", in(mnt, "w")), "ok",
		op("chmod", "0400", in(mnt, "w")), "ok",
		op("read", in(mnt, "w")), "ok only written",
		op("mkdir", "0777", in(mnt, "d")), "ok",
		op("rename", in(mnt, "f"), in(mnt, "d", "g")), "ok",
		op("touch", in(mnt, "d", "g")), "ok",
		op("truncate", in(mnt, "d", "g")), "ok",
		op("mmap", "X", in(mnt, "d", "g")), "ok",
		op("read", in(mnt, "d", "g")), "ok X",
		op("ls", mnt), "ok",
	)
	expect(t, alice(), op("ls", mnt), "EACCES")
	stop()
	if got := owner(t, in(dir, "d", "g")); got != "1000:1000 100644" {
		t.Errorf("d/g belongs to %s", got)
	}
	b, err := os.ReadFile(in(dir, "w"))
	if err != nil || string(b) != "only written" {
		t.Errorf("w holds %q (%v)", b, err)
	}
}
