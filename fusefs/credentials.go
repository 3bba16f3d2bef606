package fusefs

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// credentials says as whom the daemon acts.
type credentials struct {
	uid, gid uint32
	// impersonate: the daemon is root, and new objects are made with the file
	// system ids of the caller, so that owner, group, set-gid folders and quotas
	// come out as if the caller had made them on the backing directory.
	impersonate bool
	caps        [2]unix.CapUserData // of the daemon's threads
	umask       uint32              // the process's, which the kernel applies to our calls too
}

func daemonCredentials() (credentials, error) {
	c := credentials{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	c.impersonate = c.uid == 0
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&hdr, &c.caps[0]); err != nil {
		return c, fmt.Errorf("read the capabilities of this process: %w", err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return c, fmt.Errorf("read the umask of this process: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32)
			if err != nil {
				return c, fmt.Errorf("read the umask of this process: %w", err)
			}
			c.umask = uint32(mask)
		}
	}
	return c, nil
}

// as runs a system call that makes a new object, as the caller of a request. Only
// the ids change, which Linux keeps per thread; the capabilities stay, because
// the kernel has checked permissions already, and with the caller's supplementary
// groups, which are not known here.
func (c *credentials) as(caller fuse.Caller, call func() syscall.Errno) syscall.Errno {
	if !c.impersonate || caller.Uid == c.uid && caller.Gid == c.gid {
		return call()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Turning back cannot fail: a thread may always take its effective ids, and
	// capabilities that it is permitted.
	defer c.turn(c.uid, c.gid)
	if !c.turn(caller.Uid, caller.Gid) {
		return syscall.EPERM // root of a user namespace that does not know the caller
	}
	return call()
}

// turn sets the file system ids of this thread and its capabilities back to the
// daemon's. It reports whether all of it took effect.
func (c *credentials) turn(uid, gid uint32) bool {
	const query = -1 // changes nothing, and returns the id
	unix.SetfsgidRetGid(int(gid))
	unix.SetfsuidRetUid(int(uid))
	nowGid, err1 := unix.SetfsgidRetGid(query)
	nowUid, err2 := unix.SetfsuidRetUid(query)
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	caps := c.caps
	err3 := unix.Capset(&hdr, &caps[0])
	return err1 == nil && err2 == nil && err3 == nil && uint32(nowGid) == gid && uint32(nowUid) == uid
}
