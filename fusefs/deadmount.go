package fusefs

import (
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ClearDeadMount takes away FUSE mounts at mountpoint whose daemon is gone, which
// answer ENOTCONN to everything. Anything else there is left alone.
func ClearDeadMount(mountpoint string) error {
	abs, err := filepath.Abs(mountpoint)
	if err != nil {
		return &MountError{Mountpoint: mountpoint, Unmounting: true, Err: err}
	}
	// A daemon that was killed in a row left one mount each.
	const most = 64
	for range most {
		if !isDead(abs) {
			return nil
		}
		if m, ok := mountAt(abs); !ok || !strings.HasPrefix(m.Type, "fuse") {
			return &MountError{Mountpoint: abs, Unmounting: true, Err: fmt.Errorf("%w, and it is no FUSE mount", unix.ENOTCONN)}
		}
		if err := unmount(abs, true); err != nil {
			return err
		}
	}
	return &MountError{Mountpoint: abs, Unmounting: true, Err: fmt.Errorf("more than %d dead mounts: %w", most, unix.ENOTCONN)}
}

// isDead reports whether a FUSE mount without a daemon is at a path. It asks with
// statfs(2), which always reaches the daemon: stat(2) of a dead mount's root may
// well succeed, from the kernel's cache.
func isDead(path string) bool {
	var st unix.Statfs_t
	return again(func() error { return unix.Statfs(path, &st) }) == unix.ENOTCONN
}
