package fusefs

import (
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// inodeOf returns the inode that the mount knows by a path.
func (fx *fixture) inodeOf(t *testing.T, path string) *inode {
	t.Helper()
	s := fx.fs.fsys
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, n := range s.nodes {
		for _, p := range s.pathsLocked(n) {
			if p == path {
				return n
			}
		}
	}
	t.Fatalf("%s is not known", path)
	return nil
}

// F3: an fsync leaves out what is on disk, and only that. Whatever changes a file or
// a folder makes the next one sync it again.
func TestWhatIsOnDiskIsNotSyncedAgain(t *testing.T) {
	for name, change := range map[string]func(fx *fixture, f *os.File) error{
		"write":    func(_ *fixture, f *os.File) error { _, err := f.WriteAt([]byte("new"), 0); return err },
		"truncate": func(_ *fixture, f *os.File) error { return f.Truncate(1) },
		"chmod":    func(_ *fixture, f *os.File) error { return f.Chmod(0o600) },
		"times": func(fx *fixture, _ *os.File) error {
			return os.Chtimes(in(fx.mnt, "d/f"), time.Time{}, time.Unix(1, 0))
		},
		"link":   func(fx *fixture, _ *os.File) error { return os.Link(in(fx.mnt, "d/f"), in(fx.mnt, "d/l")) },
		"rename": func(fx *fixture, _ *os.File) error { return os.Rename(in(fx.mnt, "d/f"), in(fx.mnt, "d/g")) },
		"create": func(fx *fixture, _ *os.File) error { return os.WriteFile(in(fx.mnt, "d/n"), nil, 0o644) },
		"mkdir":  func(fx *fixture, _ *os.File) error { return os.Mkdir(in(fx.mnt, "d/n"), 0o755) },
		"unlink": func(fx *fixture, _ *os.File) error { return os.Remove(in(fx.mnt, "d/other")) },
	} {
		t.Run(name, func(t *testing.T) {
			fx := mounted(t)
			must(t, os.Mkdir(in(fx.mnt, "d"), 0o755))
			must(t, os.WriteFile(in(fx.mnt, "d/other"), nil, 0o644))
			f := openWrite(t, in(fx.mnt, "d/f"), []byte("old"))
			d, err := os.Open(in(fx.mnt, "d"))
			must(t, err)
			defer d.Close()
			file, folder := fx.inodeOf(t, "d/f"), fx.inodeOf(t, "d")
			if file.onDisk(syncData) || folder.onDisk(syncAll) {
				t.Error("on disk before anything was synced")
			}
			must(t, f.Sync())
			must(t, d.Sync())
			if !file.onDisk(syncAll) || !file.onDisk(syncData) || !folder.onDisk(syncAll) {
				t.Error("not on disk after fsync of both")
			}
			changed := map[string]*inode{"write": file, "truncate": file, "chmod": file, "times": file}[name]
			if changed == nil {
				changed = folder
			}
			before := changed.mutations.Load()
			must(t, change(fx, f))
			if name != "write" && changed.onDisk(syncAll) { // a write is still the kernel's
				t.Error("on disk before fsync")
			}
			must(t, f.Sync()) // of another file, where a folder changed
			if changed.mutations.Load() == before || !changed.onDisk(syncAll) {
				t.Error("not synced by the fsync")
			}
		})
	}
}

// F3: a change that comes while the file is being synced is not taken for synced.
func TestChangeDuringASyncIsSyncedLater(t *testing.T) {
	fx := mounted(t)
	f := openWrite(t, in(fx.mnt, "f"), []byte("old"))
	must(t, f.Sync())
	n := fx.inodeOf(t, "f")
	seen := n.mutations.Load()
	n.mutations.Add(1) // as a WRITE during the sync does
	n.synced[syncAll].Store(seen)
	if n.onDisk(syncAll) || n.onDisk(syncData) {
		t.Error("counts as on disk")
	}
}

// A rollback journal that SQLite syncs is left out of others' barriers; one that it
// never synced (synchronous=OFF), or that has become another file, is not.
func TestSyncedJournalIsLeftOutOfBarriers(t *testing.T) {
	fx := mounted(t)
	fx.requireWriteback(t)
	var journalWrites atomic.Int32
	fx.hookWrites(func(path string, _ *mutation) syscall.Errno {
		if path == "x.db-journal" || path == "y" {
			journalWrites.Add(1)
		}
		return 0
	})
	other := openWrite(t, in(fx.mnt, "other"), []byte("x"))
	journal := openWrite(t, in(fx.mnt, "x.db-journal"), []byte("never synced"))
	barrier := func(what string, want int32) {
		t.Helper()
		journalWrites.Store(0)
		_, err := journal.WriteAt([]byte("more"), 0)
		must(t, err)
		must(t, other.Sync())
		if got := journalWrites.Load(); got != want {
			t.Errorf("%s: %d WRITEs, want %d", what, got, want)
		}
	}
	barrier("before its own fsync", 1)
	must(t, journal.Sync())
	barrier("after its own fsync", 0)
	cutOnce(t, fx, func(*View) {})
	if got := journalWrites.Load(); got != 1 {
		t.Errorf("a cut: %d WRITEs, want 1", got)
	}
	must(t, os.Rename(in(fx.mnt, "x.db-journal"), in(fx.mnt, "y")))
	barrier("after it was renamed", 1)
}
