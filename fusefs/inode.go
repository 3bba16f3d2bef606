package fusefs

import (
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// inodeKey tells backing files apart. While an inode is known its descriptor keeps
// the backing inode from being freed, so its number cannot come to mean another
// file and neither a generation nor a birth time is needed (the birth time would
// even mislead: on overlayfs it changes when a file is copied up).
type inodeKey struct{ dev, ino uint64 }

func keyOf(st *unix.Stat_t) inodeKey { return inodeKey{dev: uint64(st.Dev), ino: st.Ino} }

// link is one name of an inode.
type link struct {
	dir  *inode
	name string
}

// inode is a backing file, folder or other object that the kernel, a handle or
// one of the package's trackers knows. It lives while refs or children hold it;
// then its descriptor is closed. All holders of an *inode hold a reference.
type inode struct {
	fsys *fsys
	id   uint64 // the FUSE node id; never reused
	key  inodeKey
	kind uint32 // S_IFMT bits
	fd   int    // O_PATH; valid while the inode lives

	// markedCut is the number of the last cut during which all names of the inode
	// were marked: the quick way past the journal for the second and later writes.
	markedCut atomic.Uint64

	// What barriers need to know: mutations grows with each mutation, applied or
	// not; synced holds what it was when a sync began that succeeded.
	mutations     atomic.Uint64    // from 1: what happened before is not on disk for sure
	synced        [2]atomic.Uint64 // by syncKind
	syncedByOwner atomic.Bool      // whoever writes it syncs it before it matters (busy.go)

	// Guarded by fsys.mu.
	refs     uint64            // kernel lookups, handles and other holders
	names    map[link]struct{} // known names: all of them where the link count is 1
	children map[string]*inode // folders only: the known entries
	changes  uint64            // folders only: namespace changes made through us
	handles  map[*handle]struct{}
	writable int // of handles, those open for writing
}

// isDir, isFile report the inode's type.
func (n *inode) isDir() bool  { return n.kind == unix.S_IFDIR }
func (n *inode) isFile() bool { return n.kind == unix.S_IFREG }

// isRoot reports whether n is the root of the mount.
func (n *inode) isRoot() bool { return n == n.fsys.rootNode }

// stat returns the backing file's attributes.
func (n *inode) stat(st *unix.Stat_t) syscall.Errno {
	return errnoOf(unix.Fstatat(n.fd, "", st, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW))
}

// open opens the backing file anew. It is the very file even if it was renamed or
// unlinked meanwhile.
func (n *inode) open(flags int) (fd int, errno syscall.Errno) {
	if n.isDir() {
		// Needs no /proc, and a directory cannot be a magic link's trouble.
		return openat(n.fd, ".", flags, 0)
	}
	return openat(unix.AT_FDCWD, procPath(n.fd), flags, 0)
}

// procPath names a descriptor of this thread for calls that take a path. It is
// thread-self and not self, because the threads that push have a descriptor
// table of their own.
func procPath(fd int) string { return "/proc/thread-self/fd/" + strconv.Itoa(fd) }

// openat is openat(2), close-on-exec, again after EINTR.
func openat(dirfd int, name string, flags int, mode uint32) (int, syscall.Errno) {
	for {
		fd, err := unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, mode)
		if err == unix.EINTR {
			continue
		}
		return fd, errnoOf(err)
	}
}
