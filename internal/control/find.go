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

// Folders says where sockets live: the folder of this user's own mounts first.
// Root also looks into those of others.
func Folders(uid int, getenv func(string) string) []string {
	const system = "/run/chromafs"
	if uid != 0 {
		return []string{ownFolder(uid, getenv), system}
	}
	folders := []string{system}
	for _, pattern := range []string{"/run/user/*/chromafs", "/tmp/chromafs-*"} {
		more, err := filepath.Glob(pattern)
		if err != nil {
			panic(err) // the pattern is a constant
		}
		folders = append(folders, more...)
	}
	return folders
}

func ownFolder(uid int, getenv func(string) string) string {
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "chromafs")
	}
	return "/tmp/chromafs-" + strconv.Itoa(uid)
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
