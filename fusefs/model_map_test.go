package fusefs

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mapper is another process that maps files and stores to them: the daemon's own
// must not wait for itself in a page fault.
type mapper struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startMapper(t testing.TB) *mapper {
	t.Helper()
	m := &mapper{t: t, cmd: child(t, "map")}
	m.cmd.Stderr = os.Stderr
	var err error
	m.in, err = m.cmd.StdinPipe()
	must(t, err)
	out, err := m.cmd.StdoutPipe()
	must(t, err)
	m.out = bufio.NewScanner(out)
	must(t, m.cmd.Start())
	t.Cleanup(func() {
		m.in.Close()
		if err := m.cmd.Wait(); err != nil {
			t.Errorf("the process that maps files: %v", err)
		}
	})
	return m
}

// ask has something done and returns what it saw.
func (m *mapper) ask(words ...string) string {
	if _, err := fmt.Fprintln(m.in, strings.Join(words, " ")); err != nil {
		m.t.Fatalf("the process that maps files: %v", err)
	}
	if !m.out.Scan() {
		m.t.Fatalf("the process that maps files ended: %v", m.out.Err())
	}
	return m.out.Text()
}

// mapping is a shared map of a file that has no other descriptor but for stat.
type mapping struct {
	data []byte
	fd   int // O_PATH
}

func (p *mapping) end() error {
	unix.Close(p.fd)
	return unix.Munmap(p.data)
}

// childMap carries out lines of its standard input: map, store, msync, unmap,
// forget. The second word of each says for which world.
func childMap([]string) error {
	maps := map[string]map[string]*mapping{}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		a := strings.Fields(lines.Text())
		if maps[a[1]] == nil {
			maps[a[1]] = map[string]*mapping{}
		}
		mine := maps[a[1]]
		answer := "ok"
		switch a[0] {
		case "map":
			answer = openMapping(mine, a[2], a[3])
		case "forget":
			for key, p := range mine {
				delete(mine, key)
				answer = errText(p.end())
			}
		default:
			p := mine[a[2]]
			if p == nil {
				answer = "none"
				break
			}
			switch a[0] {
			case "store":
				answer = p.store(a[3:])
			case "msync":
				answer = errText(unix.Msync(p.data, unix.MS_SYNC))
			case "unmap":
				delete(mine, a[2])
				answer = errText(p.end())
			}
		}
		fmt.Println(answer)
	}
	return lines.Err()
}

func openMapping(mine map[string]*mapping, slot, path string) string {
	if p := mine[slot]; p != nil {
		delete(mine, slot)
		if err := p.end(); err != nil {
			return errText(err)
		}
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return errText(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "not a file" // or see what mmap says of a FIFO
	}
	data, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return errText(err)
	}
	path = fmt.Sprintf("/proc/self/fd/%d", fd)
	see, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return errText(err)
	}
	mine[slot] = &mapping{data, see}
	return fmt.Sprint("ok ", st.Size)
}

// store writes to the map (offset, how many, of which byte), as far as the file goes.
func (p *mapping) store(a []string) string {
	off, err := strconv.ParseInt(a[0], 0, 64)
	if err != nil {
		return err.Error()
	}
	length, err := strconv.ParseInt(a[1], 0, 64)
	if err != nil {
		return err.Error()
	}
	var st unix.Stat_t
	if err := unix.Fstat(p.fd, &st); err != nil {
		return errText(err)
	}
	end := min(off+length, st.Size, int64(len(p.data)))
	if off >= end {
		return "beyond the end"
	}
	for i := off; i < end; i++ {
		p.data[i] = a[2][0]
	}
	return fmt.Sprint("ok ", end-off)
}
