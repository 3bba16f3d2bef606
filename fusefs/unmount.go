package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/mountinfo"
)

// MountError says that something could not be mounted or unmounted.
type MountError struct {
	Mountpoint string
	Unmounting bool
	Err        error
}

// Error implements error.
func (e *MountError) Error() string {
	verb := "mount at"
	if e.Unmounting {
		verb = "unmount"
	}
	return fmt.Sprintf("%s %s: %v", verb, e.Mountpoint, e.Err)
}

// Unwrap returns the cause.
func (e *MountError) Unwrap() error { return e.Err }

// Hint returns what a person can do next.
func (e *MountError) Hint() string {
	switch {
	case errors.Is(e.Err, syscall.EBUSY):
		return "some process has a file or its working directory there: end it (fuser -vm shows it) and try again"
	case errors.Is(e.Err, syscall.ENOTCONN):
		return "a mount of a process that died is in the way: fusermount3 -u " + e.Mountpoint
	case errors.Is(e.Err, ErrInsideItself):
		return "mount outside of the directory, or on top of it"
	case errors.Is(e.Err, ErrNotDirectory), errors.Is(e.Err, syscall.ENOENT):
		return "create the folder first: mkdir -p " + e.Mountpoint
	case e.Unmounting:
		return ""
	}
	return "check that /dev/fuse exists (in a container: --device /dev/fuse --cap-add SYS_ADMIN) and, for an ordinary user, " +
		"that fusermount3 is installed (Debian: apt install fuse3) and, with --allow-other, that /etc/fuse.conf has user_allow_other"
}

// Where a program let go of a file by its last memory map, and not by close(2), the
// kernel tells of it later, and until then a descriptor of ours keeps the mount busy.
const (
	releaseGrace = 500 * time.Millisecond // how long an unmount waits for that
	releasePause = 2 * time.Millisecond
)

// Unmount takes the mount away, and returns when it is gone. A mount in use stays,
// and the error is EBUSY; lazy takes the name away at once and returns while the
// processes that use it still do.
func (f *FS) Unmount(lazy bool) error {
	select {
	case <-f.done:
		return nil // somebody else did
	default:
	}
	held := f.fsys.push.holds() // before the try that it may have been in the way of
	err := unmount(f.mountpoint, lazy)
	for until := time.Now().Add(releaseGrace); errors.Is(err, syscall.EBUSY) && held && time.Now().Before(until); {
		held = f.fsys.push.holds()
		if err := pause(context.Background(), releasePause); err != nil {
			return err
		}
		err = unmount(f.mountpoint, lazy)
	}
	if err != nil {
		return err
	}
	if !lazy {
		<-f.done
	}
	return nil
}

func unmount(mountpoint string, lazy bool) error {
	err := unmountOnce(mountpoint, lazy)
	if err != nil {
		return &MountError{Mountpoint: mountpoint, Unmounting: true, Err: err}
	}
	return nil
}

func unmountOnce(mountpoint string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(mountpoint, flags)
	if err != unix.EPERM || os.Geteuid() == 0 {
		return err
	}
	return fusermount(mountpoint, lazy)
}

// fusermount unmounts as an ordinary user.
func fusermount(mountpoint string, lazy bool) error {
	program, err := exec.LookPath("fusermount3")
	if err != nil {
		return err
	}
	args := []string{"-u", "-q"}
	if lazy {
		args = append(args, "-z")
	}
	out, err := exec.Command(program, append(args, "--", mountpoint)...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && !lazy {
		// It has one exit code for everything. A mount of ours that is still there
		// was in use.
		if m, listed := mountAt(mountpoint); listed && m.Type == mountinfo.Type {
			return syscall.EBUSY
		}
	}
	if err != nil {
		return fmt.Errorf("fusermount3: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// mountAt returns the topmost mount at a mountpoint, from the kernel's list: the
// mounted file system itself is not asked.
func mountAt(mountpoint string) (found mountinfo.Mount, ok bool) {
	mounts, err := mountinfo.List()
	if err != nil {
		return found, false
	}
	for _, m := range mounts {
		if m.Mountpoint == mountpoint {
			found, ok = m, true
		}
	}
	return found, ok
}
