package fusefs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	resolveCached  = 0x20 // RESOLVE_CACHED of openat2(2): no lookup is sent, else EAGAIN
	fuseHandleType = 0x81 // FILEID_INO64_GEN, the kind of file handle that FUSE makes
	openTries      = 3    // a file may be renamed between finding its path and opening it
)

// open opens a descriptor of the mount for n, on the worker's thread.
//
// By its path it must find every name in the kernel's cache: the folder of a name
// that is not there may be locked by a request that waits for this very push. What
// is not cached is opened by its file handle, which needs no name (but
// CAP_DAC_READ_SEARCH).
func (w *pushWorker) open(n *inode) (int, error) {
	point := w.p.s.opts.Mountpoint
	root, err := unix.Open(point, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", point, err)
	}
	defer unix.Close(root)
	err = unix.ENOENT
	for range openTries {
		paths := w.p.s.paths(n)
		if len(paths) == 0 {
			break
		}
		fd, perr := w.openPath(root, paths[0], n)
		if perr == nil {
			return fd, nil
		}
		if err = perr; !errors.Is(err, errMoved) {
			break
		}
	}
	if fd, herr := w.openHandle(point, n); herr == nil {
		return fd, nil
	}
	return -1, err
}

var errMoved = errors.New("another file has this name now")

func (w *pushWorker) openPath(root int, path string, n *inode) (int, error) {
	var fd int
	var err error
	for _, flags := range []uint64{unix.O_RDONLY, unix.O_WRONLY} {
		how := unix.OpenHow{
			Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV | resolveCached,
		}
		fd, err = unix.Openat2(root, path, &how)
		if err != unix.EACCES {
			break
		}
	}
	if err != nil {
		return -1, err
	}
	return w.check(fd, n)
}

// attach remembers which mount is ours. Later another one may lie at its path: the
// backing directory itself, or its next mount, with the same files.
func (p *pusher) attach() error {
	var st unix.Statx_t
	point := p.s.opts.Mountpoint
	if err := unix.Statx(unix.AT_FDCWD, point, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st); err != nil {
		return &os.PathError{Op: "stat", Path: point, Err: err}
	}
	p.device.Store(unix.Mkdev(st.Dev_major, st.Dev_minor))
	return nil
}

// check makes sure that fd is n on our mount: the attributes that the kernel has
// cached tell.
func (w *pushWorker) check(fd int, n *inode) (int, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st)
	if err == nil && (st.Ino != n.key.ino || unix.Mkdev(st.Dev_major, st.Dev_minor) != w.p.device.Load()) {
		err = errMoved
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// openHandle opens n by its node id. The call wants a real descriptor of the
// mount, which O_PATH is not.
func (w *pushWorker) openHandle(point string, n *inode) (int, error) {
	mount, err := unix.Open(point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(mount)
	id := make([]byte, 12)
	binary.NativeEndian.PutUint32(id, uint32(n.id>>32))
	binary.NativeEndian.PutUint32(id[4:], uint32(n.id))
	fd, err := unix.OpenByHandleAt(mount, unix.NewFileHandle(fuseHandleType, id), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	return w.check(fd, n)
}
