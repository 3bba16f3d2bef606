// Package atomicfile replaces a small file so that, whatever happens, a reader
// finds the old content or the new one: a temporary file is written and synced,
// renamed over the name, and the folder is synced (rename(2), fsync(2)).
package atomicfile

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Write replaces name in the folder dir by data. On an error the old file is
// still there, the temporary one is not.
func Write(dir *os.File, name string, data []byte, perm uint32) (err error) {
	var tail [6]byte
	rand.Read(tail[:])
	tmp := "." + name + "." + hex.EncodeToString(tail[:])
	fd, err := unix.Openat(int(dir.Fd()), tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, perm)
	if err != nil {
		return &os.PathError{Op: "create", Path: tmp, Err: err}
	}
	defer func() {
		if err != nil {
			unix.Unlinkat(int(dir.Fd()), tmp, 0)
		}
	}()
	f := os.NewFile(uintptr(fd), tmp)
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := unix.Renameat(int(dir.Fd()), tmp, int(dir.Fd()), name); err != nil {
		return &os.PathError{Op: "rename", Path: name, Err: err}
	}
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync the folder of %s: %w", name, err)
	}
	return nil
}
