package fusefs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// step is one operation of a model test in words, so that a sequence can be cut
// down, printed, and kept in testdata: its name, then its arguments. "n*255" in a
// path stands for so many n.
type step []string

func (s step) String() string { return strings.Join(s, " ") }

func newStep(words ...any) step { return strings.Fields(fmt.Sprintln(words...)) }

func (s step) num(i int) int64 {
	n, err := strconv.ParseInt(s[i], 0, 64)
	if err != nil {
		panic(fmt.Sprintf("%q: %v", s, err))
	}
	return n
}

// data is what word i (how many) and word i+1 (of which byte) say.
func (s step) data(i int) []byte { return bytes.Repeat([]byte(s[i+1]), int(s.num(i))) }

// readSteps reads steps, one a line; # begins a comment.
func readSteps(text string) (steps []step) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		if words := strings.Fields(line); len(words) > 0 {
			steps = append(steps, words)
		}
	}
	return steps
}

// world is one of the two directories that a model test does everything to.
type world struct {
	root   string
	files  [4]int // open descriptors; -1: none
	mapper *mapper
	plain  bool
}

func newWorld(root string, m *mapper) *world {
	return &world{root: root, files: [4]int{-1, -1, -1, -1}, mapper: m}
}

func (w *world) close() {
	for i := range w.files {
		w.closeFile(i)
	}
	if w.mapper != nil {
		w.mapper.ask("forget", w.root)
	}
}

func (w *world) closeFile(i int) error {
	fd := w.files[i]
	w.files[i] = -1
	return unix.Close(fd)
}

func (w *world) path(p string) string { return filepath.Join(w.root, longName(p)) }

func longName(p string) string {
	if n, ok := strings.CutPrefix(p, "n*"); ok {
		if count, err := strconv.Atoi(n); err == nil {
			return strings.Repeat("n", count)
		}
	}
	return p
}

func errText(err error) string {
	if errno, ok := err.(unix.Errno); ok {
		return unix.ErrnoName(errno)
	}
	return fmt.Sprint(err)
}

// run does the step and says what it saw.
func (s step) run(w *world) string {
	do, ok := stepKinds[s[0]]
	if !ok {
		panic(fmt.Sprintf("no such step: %q", s))
	}
	return do(w, s)
}

// stepKinds are the operations that a model test compares.
var stepKinds = map[string]func(w *world, s step) string{
	"mkdir":   func(w *world, s step) string { return errText(unix.Mkdir(w.path(s[1]), uint32(s.num(2)))) },
	"rmdir":   func(w *world, s step) string { return errText(unix.Rmdir(w.path(s[1]))) },
	"unlink":  func(w *world, s step) string { return errText(unix.Unlink(w.path(s[1]))) },
	"link":    func(w *world, s step) string { return errText(unix.Link(w.path(s[1]), w.path(s[2]))) },
	"symlink": func(w *world, s step) string { return errText(unix.Symlink(longName(s[1]), w.path(s[2]))) },
	"mkfifo":  func(w *world, s step) string { return errText(unix.Mkfifo(w.path(s[1]), uint32(s.num(2)))) },
	"mknod": func(w *world, s step) string {
		return errText(unix.Mknod(w.path(s[1]), unix.S_IFREG|uint32(s.num(2)), 0))
	},
	"rename": func(w *world, s step) string {
		return errText(unix.Renameat2(unix.AT_FDCWD, w.path(s[1]), unix.AT_FDCWD, w.path(s[2]), uint(s.num(3))))
	},
	"open":      stepOpen,
	"close":     func(w *world, s step) string { return errText(w.closeFile(int(s.num(1)))) },
	"write":     func(w *world, s step) string { return count(unix.Write(w.files[s.num(1)], s.data(2))) },
	"pwrite":    func(w *world, s step) string { return count(unix.Pwrite(w.files[s.num(1)], s.data(2), s.num(4))) },
	"pread":     stepPread,
	"ftruncate": func(w *world, s step) string { return errText(unix.Ftruncate(w.files[s.num(1)], s.num(2))) },
	"fallocate": func(w *world, s step) string {
		return errText(unix.Fallocate(w.files[s.num(1)], uint32(s.num(2)), s.num(3), s.num(4)))
	},
	"lseek": stepSeek,
	"copy": func(w *world, s step) string {
		from, to := s.num(2), s.num(4)
		return count(unix.CopyFileRange(w.files[s.num(1)], &from, w.files[s.num(3)], &to, 50_000, 0))
	},
	"fsync":    func(w *world, s step) string { return errText(unix.Fsync(w.files[s.num(1)])) },
	"chmod":    func(w *world, s step) string { return errText(unix.Chmod(w.path(s[1]), uint32(s.num(2)))) },
	"lchown":   func(w *world, s step) string { return errText(unix.Lchown(w.path(s[1]), int(s.num(2)), 5)) },
	"truncate": stepTruncate,
	"utimens": func(w *world, s step) string {
		times := []unix.Timespec{{Sec: 1_000_000_000, Nsec: 7}, {Sec: 1_100_000_000 + s.num(2), Nsec: 123_456_789}}
		return errText(unix.UtimesNanoAt(unix.AT_FDCWD, w.path(s[1]), times, unix.AT_SYMLINK_NOFOLLOW))
	},
	"mtime": func(w *world, s step) string {
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: 1_200_000_000 + s.num(2)}}
		return errText(unix.UtimesNanoAt(unix.AT_FDCWD, w.path(s[1]), times, 0))
	},
	"readdir": stepReaddir,
	"readlink": func(w *world, s step) string {
		buf := make([]byte, 4096)
		n, err := unix.Readlink(w.path(s[1]), buf)
		return fmt.Sprint(string(buf[:max(n, 0)]), errText(err))
	},
	"access": func(w *world, s step) string { return errText(unix.Access(w.path(s[1]), unix.R_OK)) },
	"stat":   func(w *world, s step) string { return describe(w.path(s[1])) },
	"map":    func(w *world, s step) string { return w.mapper.ask("map", w.root, s[1], w.path(s[2])) },
	"store":  stepStore,
	"msync":  func(w *world, s step) string { return w.mapper.ask("msync", w.root, s[1]) },
	"unmap":  func(w *world, s step) string { return w.mapper.ask("unmap", w.root, s[1]) },
}

func count(n int, err error) string { return fmt.Sprint(n, errText(err)) }

func stepOpen(w *world, s step) string {
	i := s.num(1)
	if w.files[i] >= 0 {
		w.closeFile(int(i))
	}
	fd, err := unix.Open(w.path(s[2]), int(s.num(3))|unix.O_NONBLOCK|unix.O_CLOEXEC, uint32(s.num(4)))
	if err == nil {
		w.files[i] = fd
	}
	return errText(err)
}

func stepPread(w *world, s step) string {
	buf := make([]byte, 100_000)
	n, err := unix.Pread(w.files[s.num(1)], buf, s.num(2))
	return fmt.Sprint(n, errText(err), digest(buf[:max(n, 0)]))
}

func stepTruncate(w *world, s step) string {
	var st unix.Stat_t
	if unix.Stat(w.path(s[1]), &st) == nil && st.Size == s.num(2) {
		return "the same size" // whether that changes the mtime is the kernel's (docs/semantics.md)
	}
	return errText(unix.Truncate(w.path(s[1]), s.num(2)))
}

// stepStore writes to a map. When that sets the mtime is the file system's affair:
// at the first store after the page was written back. The mount does that when times
// are set, so the plain directory does it after each store: then both agree on whether
// the mtime is one that was set.
func stepStore(w *world, s step) string {
	said := w.mapper.ask("store", w.root, s[1], s[2], s[3], s[4])
	if w.plain {
		w.mapper.ask("msync", w.root, s[1])
	}
	return said
}

func stepReaddir(w *world, s step) string {
	entries, err := os.ReadDir(w.path(s[1]))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name()+" "+e.Type().String())
	}
	slices.Sort(names)
	return fmt.Sprint(names, err != nil)
}

func stepSeek(w *world, s step) string {
	fd, off, whence := w.files[s.num(1)], s.num(2), int(s.num(3))
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return "a folder" // offsets there mean nothing that could be compared
	}
	if whence == unix.SEEK_DATA || whence == unix.SEEK_HOLE {
		return seekClaim(fd, off, whence)
	}
	at, err := unix.Seek(fd, off, whence)
	return fmt.Sprint(at, errText(err))
}

// seekClaim says whether what lseek(2) claims of data and holes is true. How fine
// a file system looks is its own affair, and changes as it writes pages back; that
// what it skips as a hole, or calls one, holds nothing but zeros is not.
func seekClaim(fd int, off int64, whence int) string {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errText(err)
	}
	at, err := unix.Seek(fd, off, whence)
	noData := err == unix.ENXIO && whence == unix.SEEK_DATA && off < st.Size
	switch {
	case noData:
		at = st.Size
	case err != nil:
		return errText(err)
	case at < off || at > st.Size:
		return fmt.Sprintf("%d of %d", at, st.Size)
	}
	from, to := off, at // skipped
	if whence == unix.SEEK_HOLE {
		from, to = at, min(at+1, st.Size)
	}
	skipped := make([]byte, to-from)
	n, err := unix.Pread(fd, skipped, from)
	if err == unix.EBADF {
		return "open for writing only"
	}
	if err != nil || n != len(skipped) || len(bytes.Trim(skipped, "\x00")) > 0 {
		return fmt.Sprintf("%d: not a hole: %d bytes read from %d, %v", at, n, from, err)
	}
	return "true"
}

func digest(b []byte) string { return fmt.Sprintf("%.8x", sha256.Sum256(b)) }

// describe is what lstat says, as far as two directories can agree about it.
func describe(p string) string {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return errText(err)
	}
	text := fmt.Sprintf("mode %o nlink %d owner %d:%d", st.Mode, st.Nlink, st.Uid, st.Gid)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		text += fmt.Sprintf(" size %d", st.Size)
	}
	// Times set by utimens; a FIFO's change in the kernel with what goes through it.
	if st.Mtim.Sec < stepTimesEnd && st.Mode&unix.S_IFMT != unix.S_IFIFO {
		text += fmt.Sprintf(" mtime %d.%d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	return text
}

// stepTimesEnd is later than all times that steps set, and in the past.
const stepTimesEnd = 1_500_000_000
