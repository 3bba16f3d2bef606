package fusefs

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// world is one of the two directories that a model test does everything to.
type world struct {
	root  string
	files [4]int // open descriptors; -1: none
}

func newWorld(root string) *world { return &world{root: root, files: [4]int{-1, -1, -1, -1}} }

func (w *world) close() {
	for i, fd := range w.files {
		if fd >= 0 {
			unix.Close(fd)
			w.files[i] = -1
		}
	}
}

func (w *world) path(p string) string { return filepath.Join(w.root, p) }

// step is one operation with its arguments fixed; it says what it saw.
type step struct {
	name string
	run  func(w *world) string
}

func errText(err error) string {
	if errno, ok := err.(unix.Errno); ok {
		return unix.ErrnoName(errno)
	}
	return fmt.Sprint(err)
}

// model makes random steps on a small set of names, so that they collide.
type model struct{ rnd *rand.Rand }

func (m model) path() string {
	names := []string{"a", "b", "c", "d", "e/a", "e/b", "e/f", "e/f/a", "e/f/b", "g", "g/a", "g/h", "g/h/a", "no/such", strings.Repeat("n", 255), strings.Repeat("n", 256)}
	return names[m.rnd.IntN(len(names))]
}

func (m model) data() []byte {
	size := []int{1, 3, 100, 4095, 4096, 4097, 8192, 70_000, 300_000}[m.rnd.IntN(9)]
	return bytes.Repeat([]byte{byte('A' + m.rnd.IntN(26))}, size)
}

func (m model) off() int64 {
	return []int64{0, 1, 100, 4096, 5000, 8192, 65_536, 100_000, 1 << 20}[m.rnd.IntN(9)]
}

// step picks the next operation.
func (m model) step() step {
	groups := []func() step{m.namespace, m.namespace, m.descriptor, m.descriptor, m.descriptor, m.attributes, m.look}
	return groups[m.rnd.IntN(len(groups))]()
}

func (m model) namespace() step {
	p, q := m.path(), m.path()
	flags := []uint{0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[m.rnd.IntN(5)]
	mode := []uint32{0o644, 0o755, 0o600, 0o000, 0o4755, 0o2755}[m.rnd.IntN(6)]
	switch m.rnd.IntN(9) {
	case 0:
		return step{"mkdir " + p, func(w *world) string { return errText(unix.Mkdir(w.path(p), mode|0o700)) }}
	case 1:
		return step{"rmdir " + p, func(w *world) string { return errText(unix.Rmdir(w.path(p))) }}
	case 2:
		return step{"unlink " + p, func(w *world) string { return errText(unix.Unlink(w.path(p))) }}
	case 3:
		return step{"link " + p + " " + q, func(w *world) string { return errText(unix.Link(w.path(p), w.path(q))) }}
	case 4:
		return step{"symlink " + q + " at " + p, func(w *world) string { return errText(unix.Symlink(q, w.path(p))) }}
	case 5:
		return step{"mkfifo " + p, func(w *world) string { return errText(unix.Mkfifo(w.path(p), mode)) }}
	case 6:
		return step{"mknod " + p, func(w *world) string { return errText(unix.Mknod(w.path(p), unix.S_IFREG|mode, 0)) }}
	default:
		return step{fmt.Sprintf("rename %s %s flags %d", p, q, flags), func(w *world) string {
			return errText(unix.Renameat2(unix.AT_FDCWD, w.path(p), unix.AT_FDCWD, w.path(q), flags))
		}}
	}
}

func (m model) descriptor() step {
	i, j, p, data, off, off2 := m.rnd.IntN(4), m.rnd.IntN(4), m.path(), m.data(), m.off(), m.off()
	switch m.rnd.IntN(12) {
	case 0, 1, 2:
		flags := []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_APPEND, unix.O_RDWR | unix.O_TRUNC, unix.O_RDONLY | unix.O_TRUNC, unix.O_RDWR | unix.O_EXCL}[m.rnd.IntN(7)] |
			[]int{0, unix.O_CREAT, unix.O_CREAT, unix.O_NOFOLLOW}[m.rnd.IntN(4)] | unix.O_NONBLOCK | unix.O_CLOEXEC
		mode := []uint32{0o644, 0o600, 0o200, 0o000, 0o6755}[m.rnd.IntN(5)]
		return step{fmt.Sprintf("open %d = %s flags %#x", i, p, flags), func(w *world) string {
			if w.files[i] >= 0 {
				unix.Close(w.files[i])
				w.files[i] = -1
			}
			fd, err := unix.Open(w.path(p), flags, mode)
			if err == nil {
				w.files[i] = fd
			}
			return errText(err)
		}}
	case 3:
		return step{fmt.Sprintf("write %d %d bytes", i, len(data)), func(w *world) string {
			n, err := unix.Write(w.files[i], data)
			return fmt.Sprint(n, errText(err))
		}}
	case 4, 5:
		return step{fmt.Sprintf("pwrite %d %d bytes at %d", i, len(data), off), func(w *world) string {
			n, err := unix.Pwrite(w.files[i], data, off)
			return fmt.Sprint(n, errText(err))
		}}
	case 6:
		return step{fmt.Sprintf("pread %d at %d", i, off), func(w *world) string {
			buf := make([]byte, 100_000)
			n, err := unix.Pread(w.files[i], buf, off)
			return fmt.Sprint(n, errText(err), digest(buf[:max(n, 0)]))
		}}
	case 7:
		return step{fmt.Sprintf("ftruncate %d %d", i, off), func(w *world) string { return errText(unix.Ftruncate(w.files[i], off)) }}
	case 8:
		mode := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE}[m.rnd.IntN(4)]
		return step{fmt.Sprintf("fallocate %d mode %d at %d+%d", i, mode, off, off2), func(w *world) string {
			return errText(unix.Fallocate(w.files[i], mode, off, off2))
		}}
	case 9:
		whence := []int{unix.SEEK_DATA, unix.SEEK_HOLE, unix.SEEK_END, unix.SEEK_SET}[m.rnd.IntN(4)]
		return step{fmt.Sprintf("lseek %d %d whence %d", i, off, whence), func(w *world) string {
			var st unix.Stat_t
			if unix.Fstat(w.files[i], &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				return "a folder" // offsets there mean nothing that could be compared
			}
			if whence == unix.SEEK_DATA || whence == unix.SEEK_HOLE {
				return seekClaim(w.files[i], off, whence)
			}
			at, err := unix.Seek(w.files[i], off, whence)
			return fmt.Sprint(at, errText(err))
		}}
	case 10:
		return step{fmt.Sprintf("copy %d at %d to %d at %d", i, off, j, off2), func(w *world) string {
			from, to := off, off2
			n, err := unix.CopyFileRange(w.files[i], &from, w.files[j], &to, 50_000, 0)
			return fmt.Sprint(n, errText(err))
		}}
	default:
		return step{fmt.Sprintf("fsync %d", i), func(w *world) string { return errText(unix.Fsync(w.files[i])) }}
	}
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

func (m model) attributes() step {
	p, off := m.path(), m.off()
	mode := []uint32{0o644, 0o000, 0o4755, 0o2711, 0o1777}[m.rnd.IntN(5)]
	id := []int{-1, 0, 1000, 65534}[m.rnd.IntN(4)]
	switch m.rnd.IntN(5) {
	case 0:
		return step{fmt.Sprintf("chmod %s %o", p, mode), func(w *world) string { return errText(unix.Chmod(w.path(p), mode)) }}
	case 1:
		return step{fmt.Sprintf("lchown %s %d", p, id), func(w *world) string { return errText(unix.Lchown(w.path(p), id, 5)) }}
	case 2:
		return step{fmt.Sprintf("truncate %s %d", p, off), func(w *world) string {
			var st unix.Stat_t
			if unix.Stat(w.path(p), &st) == nil && st.Size == off {
				return "the same size" // whether that changes the mtime is the kernel's (docs/semantics.md)
			}
			return errText(unix.Truncate(w.path(p), off))
		}}
	case 3:
		times := []unix.Timespec{{Sec: 1_000_000_000, Nsec: 7}, {Sec: 1_100_000_000 + off, Nsec: 123_456_789}}
		return step{"utimens " + p, func(w *world) string {
			return errText(unix.UtimesNanoAt(unix.AT_FDCWD, w.path(p), times, unix.AT_SYMLINK_NOFOLLOW))
		}}
	default:
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: 1_200_000_000 + off}}
		return step{"utimens mtime only " + p, func(w *world) string {
			return errText(unix.UtimesNanoAt(unix.AT_FDCWD, w.path(p), times, 0))
		}}
	}
}

func (m model) look() step {
	p := m.path()
	switch m.rnd.IntN(4) {
	case 0:
		return step{"readdir " + p, func(w *world) string {
			entries, err := os.ReadDir(w.path(p))
			var names []string
			for _, e := range entries {
				names = append(names, e.Name()+" "+e.Type().String())
			}
			return fmt.Sprint(names, err != nil)
		}}
	case 1:
		return step{"readlink " + p, func(w *world) string {
			buf := make([]byte, 4096)
			n, err := unix.Readlink(w.path(p), buf)
			return fmt.Sprint(string(buf[:max(n, 0)]), errText(err))
		}}
	case 2:
		return step{"access " + p, func(w *world) string { return errText(unix.Access(w.path(p), unix.R_OK)) }}
	default:
		return step{"stat " + p, func(w *world) string { return describe(w.path(p)) }}
	}
}

func digest(b []byte) string {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return fmt.Sprintf("%x", h)
}

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
	if st.Mtim.Sec < 1_500_000_000 && st.Mode&unix.S_IFMT != unix.S_IFIFO {
		text += fmt.Sprintf(" mtime %d.%d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	return text
}

// snapshot describes a whole directory, with content.
func snapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if rel == ".chromafs" {
			return fs.SkipDir
		}
		text := describe(p)
		if e.Type().IsRegular() {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += " content " + digest(b)
		}
		if e.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			text += " -> " + target
		}
		all[rel] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func sameTree(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	paths := map[string]bool{}
	for p := range got {
		paths[p] = true
	}
	for p := range want {
		paths[p] = true
	}
	for p := range paths {
		if got[p] != want[p] {
			t.Errorf("%s: %.40s:\n got  %q\n want %q", what, p, got[p], want[p])
		}
	}
}

// F1: random operations do the same on the mount as on a plain directory, and the
// backing directory holds the same at the end.
func TestModel(t *testing.T) {
	steps := 3000
	if testing.Short() {
		steps = 500
	}
	for range 4 {
		seed := uint64(time.Now().UnixNano())
		if s, err := strconv.ParseUint(os.Getenv("CHROMAFS_MODEL_SEED"), 10, 64); err == nil {
			seed = s // of a run that failed
		}
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { runModel(t, seed, steps) })
	}
}

// historyShown is how many steps before a difference are printed.
const historyShown = 25

func runModel(t *testing.T, seed uint64, steps int) {
	fx := mounted(t)
	plain := t.TempDir()
	must(t, os.Chmod(plain, 0o755))
	m := model{rand.New(rand.NewPCG(seed, 1))}
	mnt, ref := newWorld(fx.mnt), newWorld(plain)
	defer mnt.close()
	defer ref.close()
	var history []string
	for i := range steps {
		st := m.step()
		got, want := st.run(mnt), st.run(ref)
		history = append(history, fmt.Sprintf("%.200s: %.80s", st.name, want))
		if got != want {
			t.Fatalf("step %d: %.300s:\n got  %.300s\n want %.300s\nbefore it:\n  %s", i, st.name, got, want,
				strings.Join(history[max(0, len(history)-historyShown):], "\n  "))
		}
	}
	sameTree(t, "mount", snapshot(t, fx.mnt), snapshot(t, plain))
	mnt.close()
	ref.close()
	fx.unmount(t)
	backing, want := snapshot(t, fx.dir), snapshot(t, plain)
	delete(backing, ".") // its link count knows of the hidden folder
	delete(want, ".")
	sameTree(t, "backing directory", backing, want)
	if got := fx.rec.take(); len(got) == 0 || slices.Contains(got, ".chromafs") {
		t.Errorf("marks: %v", got)
	}
}
