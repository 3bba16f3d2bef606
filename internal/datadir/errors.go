package datadir

import (
	"errors"
	"fmt"
	"strings"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// ErrLocked is what errors.Is finds in a *LockedError.
var ErrLocked = errors.New("in use by another chromafs")

// LockedError says that another process holds DIR.
type LockedError struct {
	Path string // DIR
	PID  int    // of the holder; 0 where it has not said yet
	Info string // what the holder does, mostly its mountpoint
}

// Error implements error.
func (e *LockedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "lock %s: %v", e.Path, ErrLocked)
	if e.PID != 0 {
		fmt.Fprintf(&b, " (pid %d", e.PID)
		if e.Info != "" {
			fmt.Fprintf(&b, ", %s", e.Info)
		}
		b.WriteString(")")
	}
	return b.String()
}

// Is reports whether target is ErrLocked.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// Hint returns the next step.
func (e *LockedError) Hint() string {
	return "one process at a time serves a DIR; stop it with: chromafs unmount " + e.Path
}

// IsMountError says that DIR lies on a chromafs mount, so serving it would be
// serving what chromafs itself serves.
type IsMountError struct {
	Path       string // DIR
	Mountpoint string // of the chromafs mount it lies on
	Key        string // of the directory which that mount serves
}

// Error implements error.
func (e *IsMountError) Error() string {
	return fmt.Sprintf("open %s: it lies on the chromafs mount %s (serving %s)", e.Path, e.Mountpoint, e.Key)
}

// Hint returns the next step.
func (e *IsMountError) Hint() string {
	return fmt.Sprintf("name the plain directory instead, or unmount first: chromafs unmount %s (a dead mount: fusermount3 -uz %s)",
		e.Mountpoint, e.Mountpoint)
}

// ExitCode returns exitcode.Usage.
func (e *IsMountError) ExitCode() int { return exitcode.Usage }
