// Package mountinfo answers from the kernel's list of mounts on which mount an
// open descriptor lies and whether that is a chromafs mount.
//
// The model: a chromafs mount is one of type "fuse.chromafs" whose source is
// "chromafs:" and the key of the DIR it serves. Nothing here asks the mounted file
// system itself, so an answer comes even where its daemon is dead or stopped.
package mountinfo

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What a chromafs mount looks like in the kernel's list.
const (
	Type         = "fuse.chromafs"
	SourcePrefix = "chromafs:"
)

// Mount is one line of /proc/self/mountinfo.
type Mount struct {
	ID         int
	Mountpoint string // as this process sees it
	Type       string
	Source     string
}

// Key returns the key of the DIR that a chromafs mount serves; ok is false for
// any other mount.
func (m Mount) Key() (key string, ok bool) {
	if m.Type != Type {
		return "", false
	}
	return strings.CutPrefix(m.Source, SourcePrefix)
}

// List returns the mounts of this process, in the order they were made.
func List() ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Parse(f)
}

// Parse reads the format of /proc/self/mountinfo, proc(5).
func Parse(r io.Reader) ([]Mount, error) {
	var mounts []Mount
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m, err := parseLine(lines.Text())
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, m)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	return mounts, nil
}

// parseLine reads "ID parent major:minor root mountpoint options [tags…] - type source super".
func parseLine(line string) (Mount, error) {
	front, back, ok := strings.Cut(line, " - ")
	before, after := strings.Split(front, " "), strings.Split(back, " ")
	if !ok || len(before) < 6 || len(after) < 2 {
		return Mount{}, fmt.Errorf("mountinfo: not a mount: %q", line)
	}
	id, err := strconv.Atoi(before[0])
	if err != nil {
		return Mount{}, fmt.Errorf("mountinfo: not a mount: %q", line)
	}
	return Mount{ID: id, Mountpoint: unescape(before[4]), Type: after[0], Source: unescape(after[1])}, nil
}

// unescape undoes the kernel's \040 for a space and the like.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Of returns the mount on which the file named path lies, following symbolic
// links. It asks the kernel's name lookup only, so it works on a dead mount's
// mountpoint too.
func Of(path string) (Mount, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return Mount{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return OfDescriptor(fd)
}

// OfDescriptor returns the mount on which an open file lies.
func OfDescriptor(fd int) (Mount, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return Mount{}, err
	}
	id, err := mountID(string(info))
	if err != nil {
		return Mount{}, err
	}
	mounts, err := List()
	if err != nil {
		return Mount{}, err
	}
	for _, m := range mounts {
		if m.ID == id {
			return m, nil
		}
	}
	return Mount{}, fmt.Errorf("mountinfo: mount %d of an open file is not listed: %w", id, os.ErrNotExist)
}

func mountID(fdinfo string) (int, error) {
	for line := range strings.Lines(fdinfo) {
		if rest, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(rest))
		}
	}
	return 0, fmt.Errorf("fdinfo names no mount: %q", fdinfo)
}
