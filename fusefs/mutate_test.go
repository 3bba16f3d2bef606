package fusefs

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// mutationCase is one operation that changes the backing directory.
type mutationCase struct {
	name  string
	setup func(mnt string) error
	op    func(t *testing.T, mnt string) error
	want  []string // paths that must be marked first
}

func writeFile(p, data string) error { return os.WriteFile(p, []byte(data), 0o644) }

// onFile runs f on a descriptor, and syncs and closes it: a cached write reaches
// the daemon only then.
func onFile(p string, flags int, f func(fd int) error) error {
	fd, err := unix.Open(p, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(f(fd), unix.Fsync(fd), unix.Close(fd))
}

func mutationCases() []mutationCase {
	files := func(mnt string) error {
		return errors.Join(writeFile(in(mnt, "f"), "some content"), writeFile(in(mnt, "g"), "other"), os.Mkdir(in(mnt, "d"), 0o755),
			writeFile(in(mnt, "d", "x"), "x"), os.Mkdir(in(mnt, "empty"), 0o755))
	}
	linked := func(mnt string) error {
		return errors.Join(files(mnt), os.Link(in(mnt, "f"), in(mnt, "d", "f2")))
	}
	write := func(flags int, data string) func(*testing.T, string) error {
		return func(_ *testing.T, mnt string) error {
			return onFile(in(mnt, "f"), flags, func(fd int) error {
				_, err := unix.Write(fd, []byte(data))
				return err
			})
		}
	}
	on := func(flags int, f func(fd int) error) func(*testing.T, string) error {
		return func(_ *testing.T, mnt string) error { return onFile(in(mnt, "f"), flags, f) }
	}
	at := func(f func(mnt string) error) func(*testing.T, string) error {
		return func(_ *testing.T, mnt string) error { return f(mnt) }
	}
	return []mutationCase{
		{"write", files, write(unix.O_WRONLY, "data"), []string{"f"}},
		{"append", files, write(unix.O_WRONLY|unix.O_APPEND, "more"), []string{"f"}},
		{"O_DIRECT write", files, write(unix.O_WRONLY|unix.O_DIRECT, strings.Repeat("d", 4096)), []string{"f"}},
		{"open with O_TRUNC", files, write(unix.O_WRONLY|unix.O_TRUNC, ""), []string{"f"}},
		{"truncate", files, at(func(mnt string) error { return unix.Truncate(in(mnt, "f"), 3) }), []string{"f"}},
		{"ftruncate", files, on(unix.O_RDWR, func(fd int) error { return unix.Ftruncate(fd, 100) }), []string{"f"}},
		{"fallocate", files, on(unix.O_RDWR, func(fd int) error { return unix.Fallocate(fd, 0, 0, 8192) }), []string{"f"}},
		{"punch a hole", files, on(unix.O_RDWR, func(fd int) error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 5)
		}), []string{"f"}},
		{"copy_file_range", files, func(_ *testing.T, mnt string) error {
			return onFile(in(mnt, "g"), unix.O_RDONLY, func(from int) error {
				return onFile(in(mnt, "f"), unix.O_RDWR, func(to int) error {
					_, err := unix.CopyFileRange(from, nil, to, nil, 5, 0)
					return err
				})
			})
		}, []string{"f"}},
		{"mmap write", files, func(t *testing.T, mnt string) error {
			out, err := runChild(t, nil, "ops", op("mmap", "mapped", in(mnt, "f")))
			if err == nil && out != "mmap: ok\n" {
				err = errors.New(out)
			}
			return err
		}, []string{"f"}},
		{"write to one of two links", linked, write(unix.O_WRONLY, "data"), []string{"d/f2", "f"}},
		{"chmod", files, at(func(mnt string) error { return unix.Chmod(in(mnt, "f"), 0o600) }), []string{"f"}},
		{"chmod of a folder", files, at(func(mnt string) error { return unix.Chmod(in(mnt, "d"), 0o700) }), []string{"d"}},
		{"chmod of the root", files, at(func(mnt string) error { return unix.Chmod(mnt, 0o700) }), []string{"."}},
		{"chown", files, at(func(mnt string) error { return unix.Lchown(in(mnt, "f"), 5, 5) }), []string{"f"}},
		{"utimens", files, at(func(mnt string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, in(mnt, "f"), []unix.Timespec{{Sec: 1}, {Sec: 1}}, 0)
		}), []string{"f"}},
		{"create", files, at(func(mnt string) error { return writeFile(in(mnt, "d", "new"), "") }), []string{"d/new"}},
		{"tmpfile and link", files, at(func(mnt string) error { return childTmpfile(in(mnt, "d"), in(mnt, "d", "tmp")) }), []string{"d/tmp"}},
		{"mkdir", files, at(func(mnt string) error { return unix.Mkdir(in(mnt, "d", "new"), 0o755) }), []string{"d/new"}},
		{"symlink", files, at(func(mnt string) error { return unix.Symlink("f", in(mnt, "s")) }), []string{"s"}},
		{"mkfifo", files, at(func(mnt string) error { return unix.Mkfifo(in(mnt, "p"), 0o644) }), []string{"p"}},
		{"link", files, at(func(mnt string) error { return unix.Link(in(mnt, "f"), in(mnt, "d", "l")) }), []string{"d/l", "f"}},
		{"unlink", files, at(func(mnt string) error { return unix.Unlink(in(mnt, "d", "x")) }), []string{"d/x"}},
		{"unlink one of two links", linked, at(func(mnt string) error { return unix.Unlink(in(mnt, "f")) }), []string{"d/f2", "f"}},
		{"rmdir", files, at(func(mnt string) error { return unix.Rmdir(in(mnt, "empty")) }), []string{"empty"}},
		{"rename", files, at(func(mnt string) error { return unix.Rename(in(mnt, "f"), in(mnt, "d", "y")) }), []string{"d/y", "f"}},
		{"rename over", files, at(func(mnt string) error { return unix.Rename(in(mnt, "f"), in(mnt, "g")) }), []string{"f", "g"}},
		{"rename over a link", linked, at(func(mnt string) error { return unix.Rename(in(mnt, "g"), in(mnt, "f")) }), []string{"d/f2", "f", "g"}},
		{"rename of a folder", files, at(func(mnt string) error { return unix.Rename(in(mnt, "d"), in(mnt, "e")) }), []string{"d", "e"}},
		{"exchange", files, at(func(mnt string) error {
			return unix.Renameat2(unix.AT_FDCWD, in(mnt, "f"), unix.AT_FDCWD, in(mnt, "d"), unix.RENAME_EXCHANGE)
		}), []string{"d", "f"}},
	}
}

// F2, J1: every operation that changes something is marked while the backing
// directory is still as it was; and where it cannot be marked, it is not done.
func TestEveryMutationIsMarkedFirst(t *testing.T) {
	for _, c := range mutationCases() {
		t.Run(c.name, func(t *testing.T) {
			fx := mounted(t)
			must(t, c.setup(fx.mnt))
			before := snapshot(t, fx.dir)
			fx.newCut()
			fx.rec.take()

			refused := errors.New("the disk of the journal broke")
			fx.rec.hook(func([]string) error { return refused })
			if err := c.op(t, fx.mnt); err == nil || !strings.Contains(err.Error(), syscall.EIO.Error()) && !strings.Contains(err.Error(), "EIO") {
				t.Errorf("without its mark: %v, want EIO", err)
			}
			sameTree(t, "the mutation was applied without its mark", snapshot(t, fx.dir), before)

			fx.rec.hook(func(paths []string) error {
				if now := snapshot(t, fx.dir); !maps.Equal(now, before) {
					return fmt.Errorf("marked %q only after the change", paths)
				}
				fx.rec.onMark = nil // further requests of the operation need no new marks
				return nil
			})
			must(t, c.op(t, fx.mnt))
			if got := fx.rec.take(); !slices.Equal(got, c.want) {
				t.Errorf("marked %q, want %q", got, c.want)
			}
			if maps.Equal(snapshot(t, fx.dir), before) {
				t.Error("the operation changed nothing: the case proves nothing")
			}
		})
	}
}

// newCut does to marks what a cut does.
func (fx *fixture) newCut() { fx.fs.fsys.cutNumber.Add(1) }

// J2: a write after a cut is marked again, with the cut's number; one before it is
// not.
func TestMarksAreRenewedAtACut(t *testing.T) {
	fx := mounted(t)
	p := in(fx.mnt, "f")
	put := func() {
		must(t, onFile(p, unix.O_CREAT|unix.O_WRONLY, func(fd int) error { _, err := unix.Write(fd, []byte("x")); return err }))
	}
	put()
	put()
	if got := fx.rec.all(); !slices.Equal(got, []string{"f"}) {
		t.Fatalf("marked %q before the cut, want f once", got)
	}
	fx.newCut()
	put()
	put()
	if got := fx.rec.all(); !slices.Equal(got, []string{"f", "f"}) || fx.rec.cutOf("f") != 2 {
		t.Fatalf("marked %q with cut %d, want f again with 2", got, fx.rec.cutOf("f"))
	}
}

// J2: a cut between the mark and the write makes the mark worthless; it is made
// again, with the new number, and the write still happens once.
func TestCutBetweenMarkAndWrite(t *testing.T) {
	fx := mounted(t)
	fx.rec.hook(func([]string) error {
		fx.rec.onMark = nil
		fx.newCut()
		return nil
	})
	must(t, os.Mkdir(in(fx.mnt, "d"), 0o755))
	if got := fx.rec.cutOf("d"); got != 2 {
		t.Errorf("marked with cut %d, want 2", got)
	}
}

// F2 with names that the kernel never looked up: all of a file's links are marked.
func TestLinksNeverLookedUpAreMarked(t *testing.T) {
	fx := mounted(t)
	must(t, os.MkdirAll(in(fx.mnt, "a", "b"), 0o755))
	must(t, writeFile(in(fx.mnt, "a", "b", "one"), "x"))
	must(t, os.Link(in(fx.mnt, "a", "b", "one"), in(fx.mnt, "two")))
	fx.unmount(t)
	fx.mount(t)
	fx.rec.take()
	must(t, onFile(in(fx.mnt, "two"), unix.O_WRONLY, func(fd int) error { _, err := unix.Write(fd, []byte("y")); return err }))
	if got := fx.rec.take(); !slices.Equal(got, []string{"a/b/one", "two"}) {
		t.Errorf("marked %q", got)
	}
}

// A change of names leaves what other names show as it was: those that were never
// looked up are not searched for in the whole tree.
func TestNamesAloneNeedNoWalk(t *testing.T) {
	fx := mounted(t)
	must(t, os.Mkdir(in(fx.mnt, "a"), 0o755))
	for _, name := range []string{"gone", "moved", "replaced"} {
		must(t, writeFile(in(fx.mnt, name), name))
		must(t, os.Link(in(fx.mnt, name), in(fx.mnt, "a", name)))
	}
	fx.unmount(t)
	fx.mount(t)
	fx.rec.take()
	must(t, os.Remove(in(fx.mnt, "gone")))
	must(t, os.Rename(in(fx.mnt, "moved"), in(fx.mnt, "replaced")))
	if got := fx.rec.take(); !slices.Equal(got, []string{"gone", "moved", "replaced"}) {
		t.Errorf("marked %q", got)
	}
	// A write through a name that was moved is found by the other one still.
	must(t, onFile(in(fx.mnt, "replaced"), unix.O_WRONLY, func(fd int) error { _, err := unix.Write(fd, []byte("y")); return err }))
	if got := fx.rec.take(); !slices.Equal(got, []string{"a/moved"}) {
		t.Errorf("marked %q for the write, want the name that was never looked up", got)
	}
}

// Paths follow renames of folders above an open file.
func TestMarksFollowRenames(t *testing.T) {
	fx := mounted(t)
	must(t, os.MkdirAll(in(fx.mnt, "a", "b"), 0o755))
	fd, err := unix.Open(in(fx.mnt, "a", "b", "f"), unix.O_CREAT|unix.O_RDWR, 0o644)
	must(t, err)
	defer unix.Close(fd)
	must(t, os.Rename(in(fx.mnt, "a"), in(fx.mnt, "z")))
	fx.newCut()
	fx.rec.take()
	_, err = unix.Write(fd, []byte("x"))
	must(t, err)
	must(t, unix.Fsync(fd))
	if got := fx.rec.take(); !slices.Equal(got, []string{"z/b/f"}) {
		t.Errorf("marked %q, want z/b/f", got)
	}
	// Without a name there is nothing to mark, and writing goes on.
	must(t, os.Remove(in(fx.mnt, "z", "b", "f")))
	fx.newCut()
	fx.rec.take()
	_, err = unix.Write(fd, []byte("y"))
	must(t, err)
	must(t, unix.Fsync(fd))
	if got := fx.rec.take(); len(got) != 0 {
		t.Errorf("marked %q for a file without a name", got)
	}
}

func TestMarkSet(t *testing.T) {
	var k markSet
	if got := k.missing(1, []string{"a"}); !slices.Equal(got, []string{"a"}) {
		t.Errorf("of an empty set: %q", got)
	}
	k.add(1, []string{"a", "d/e"})
	if got := k.missing(1, []string{"a", "a/b", "ab", "d", "d/e/f", "d/ef"}); !slices.Equal(got, []string{"ab", "d", "d/ef"}) {
		t.Errorf("missing: %q", got)
	}
	k.add(2, []string{"x"})
	if got := k.missing(2, []string{"a", "x"}); !slices.Equal(got, []string{"a"}) {
		t.Errorf("after a cut: %q", got)
	}
	k.add(1, []string{"a"}) // late, of the cut before
	if got := k.missing(2, []string{"a"}); !slices.Equal(got, []string{"a"}) {
		t.Errorf("a late mark of the cut before counts: %q", got)
	}
	k.add(2, []string{"."})
	if got := k.missing(2, []string{"q/r"}); len(got) != 0 {
		t.Errorf("everything is marked, but missing: %q", got)
	}
}
