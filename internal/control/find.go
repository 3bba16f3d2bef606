package control

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/mountinfo"
)

// Target is what a path given on the command line turned out to mean.
type Target struct {
	Path       string
	Key        string
	Mountpoint string // of the chromafs mount that serves it; "" where there is none in sight
	OnMount    bool   // the path lies on that mount, so DIR itself is not reachable by it
}

// Find returns what a path means: the mount it lies on, or DIR and, if there is
// one, its mount.
func Find(path string) (Target, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return Target{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	m, err := mountinfo.OfDescriptor(fd)
	if err != nil {
		return Target{}, fmt.Errorf("find the mount of %s: %w", path, err)
	}
	if key, ok := m.Key(); ok {
		return Target{Path: path, Key: key, Mountpoint: m.Mountpoint, OnMount: true}, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Target{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	t := Target{Path: path, Key: fmt.Sprintf("%d-%d", st.Dev, st.Ino)}
	mounts, err := mountinfo.List()
	if err != nil {
		return Target{}, fmt.Errorf("find the mount of %s: %w", path, err)
	}
	for _, m := range mounts {
		if key, ok := m.Key(); ok && key == t.Key {
			t.Mountpoint = m.Mountpoint
		}
	}
	return t, nil
}

// systemFolder is where root's mounts have their sockets.
const systemFolder = "/run/chromafs"

// OwnFolders says where a user's own mounts may have their sockets: the first of
// these in which one can be made. The last is for machines without the others.
func OwnFolders(uid int, getenv func(string) string) []string {
	fallback := "/tmp/chromafs-" + strconv.Itoa(uid)
	if uid == 0 {
		return []string{systemFolder, fallback}
	}
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return []string{filepath.Join(dir, "chromafs"), fallback}
	}
	return []string{fallback}
}

// Folders says where to look for a mount's socket: among this user's own mounts
// first, then root's. Root also looks among those of others.
func Folders(uid int, getenv func(string) string) []string {
	if uid != 0 {
		return append(OwnFolders(uid, getenv), systemFolder)
	}
	folders := OwnFolders(uid, getenv)
	for _, pattern := range []string{"/run/user/*/chromafs", "/tmp/chromafs-*"} {
		more, err := filepath.Glob(pattern)
		if err != nil {
			panic(err) // the pattern is a constant
		}
		folders = append(folders, more...)
	}
	return folders
}

// folder is an open folder of sockets. Sockets in it are addressed through its
// descriptor, because the address of a socket has at most 107 bytes.
type folder struct {
	file *os.File
	path string
}

func openFolder(path string) (*folder, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &folder{file: os.NewFile(uintptr(fd), path), path: path}, nil
}

func (f *folder) address(key string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s.sock", f.file.Fd(), key)
}

// private fails unless nobody but this user can have put anything here.
func (f *folder) private() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.file.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: f.path, Err: err}
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s: does not belong to this user alone (owner %d, mode %#o)", f.path, st.Uid, st.Mode&0o7777)
	}
	return nil
}

// trusted fails with fs.ErrNotExist where somebody else may have put a socket:
// below /tmp anybody can make a folder. Root may ask everybody's mounts.
func (f *folder) trusted() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.file.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: f.path, Err: err}
	}
	if euid := os.Geteuid(); euid != 0 && int(st.Uid) != euid && st.Uid != 0 {
		return fmt.Errorf("%s belongs to user %d: %w", f.path, st.Uid, os.ErrNotExist)
	}
	return nil
}
