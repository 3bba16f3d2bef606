package fusefs

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
)

// childServe mounts args[0] at args[1], says "ready", and unmounts when its
// standard input ends.
func childServe(args []string) error {
	d, err := datadir.Open(args[0])
	if err != nil {
		return err
	}
	defer d.Close()
	f, err := Mount(context.Background(), Options{
		Dir: d, Mountpoint: args[1], Recorder: &markRecorder{}, FirstCut: 1,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	if err := f.Unmount(false); err != nil {
		return err
	}
	<-f.Done()
	return nil
}

// childOps does what its arguments say, one operation each, until one fails:
// "create:0644:/path", "stat:/path" … It prints what each returned.
func childOps(args []string) error {
	for _, arg := range args {
		f := strings.Split(arg, ":")
		out, err := childOp(f[0], f[1:])
		if err != nil {
			fmt.Printf("%s: %s\n", f[0], errText(err))
			continue
		}
		fmt.Printf("%s: ok%s\n", f[0], out)
	}
	return nil
}

func octal(s string) uint32 {
	v, err := strconv.ParseUint(s, 8, 32)
	if err != nil {
		panic(err)
	}
	return uint32(v)
}

func childOp(op string, a []string) (string, error) {
	switch op {
	case "umask":
		unix.Umask(int(octal(a[0])))
		return "", nil
	case "create":
		fd, err := unix.Open(a[1], unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, octal(a[0]))
		if err == nil {
			err = unix.Close(fd)
		}
		return "", err
	case "mkdir":
		return "", unix.Mkdir(a[1], octal(a[0]))
	case "symlink":
		return "", unix.Symlink(a[0], a[1])
	case "mkfifo":
		return "", unix.Mkfifo(a[1], octal(a[0]))
	case "chmod":
		return "", unix.Chmod(a[1], octal(a[0]))
	case "unlink":
		return "", unix.Unlink(a[0])
	case "rename":
		return "", unix.Rename(a[0], a[1])
	case "truncate":
		return "", unix.Truncate(a[0], 1)
	case "utimens":
		return "", unix.UtimesNanoAt(unix.AT_FDCWD, a[0], []unix.Timespec{{Sec: 5}, {Sec: 6}}, 0)
	case "touch":
		now := unix.Timespec{Nsec: unix.UTIME_NOW}
		return "", unix.UtimesNanoAt(unix.AT_FDCWD, a[0], []unix.Timespec{now, now}, 0)
	case "ls":
		_, err := os.ReadDir(a[0])
		if pe, ok := err.(*os.PathError); ok {
			err = pe.Err
		}
		return "", err
	case "stat":
		return " " + describe(a[0]), nil
	case "tmpfile":
		return "", childTmpfile(a[0], a[1])
	case "read":
		return childRead(a[0])
	case "write", "append":
		flags := unix.O_WRONLY
		if op == "append" {
			flags |= unix.O_APPEND
		}
		return "", childWrite(a[1], flags, a[0])
	case "mmap":
		return "", childMmap(a[1], a[0])
	case "lock", "flock", "ofd":
		return childLock(op, a[0])
	}
	return "", fmt.Errorf("no such operation: %s", op)
}

func childTmpfile(dir, name string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("tmpfile")); err != nil {
		return err
	}
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
}

func childRead(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 1000)
	n, err := unix.Read(fd, buf)
	return " " + string(buf[:max(n, 0)]), err
}

func childWrite(path string, flags int, data string) error {
	fd, err := unix.Open(path, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(data)); err != nil {
		return err
	}
	return unix.Fsync(fd)
}

func childMmap(path, data string) error {
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	m, err := unix.Mmap(fd, 0, len(data), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m, data)
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	return unix.Munmap(m)
}

// childLock tries for a write lock without waiting, and holds it until standard
// input ends.
func childLock(op, path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	switch op {
	case "flock":
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	case "ofd":
		err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock)
	default:
		err = unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &lock)
	}
	if err != nil {
		return "", err
	}
	fmt.Println("locked")
	_, err = bufio.NewReader(os.Stdin).ReadString(0)
	if err == io.EOF {
		err = nil
	}
	return "", err
}

// op writes an operation for childOps.
func op(parts ...string) string { return strings.Join(parts, ":") }

func in(dir string, names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
