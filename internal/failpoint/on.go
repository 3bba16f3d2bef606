//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Enabled reports whether this build has failpoints.
const Enabled = true

type point struct {
	mu          sync.Mutex
	pass, limit int // hits to let pass; actions left (-1: no limit)
	action, arg string
	offNoted    sync.Once
}

var points = sync.OnceValue(func() map[string]*point {
	m, err := parse(os.Getenv("CHROMAFS_FAILPOINTS"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "chromafs:", err)
		os.Exit(2)
	}
	return m
})

var (
	suffixes    = regexp.MustCompile(`[*+]\d+$`)
	knownAction = regexp.MustCompile(`^(kill|error:E\w+|sleep:\S+|hold:/.+|off)$`)
)

func parse(spec string) (map[string]*point, error) {
	m := map[string]*point{}
	for term := range strings.SplitSeq(spec, ";") {
		if term == "" {
			continue
		}
		name, action, ok := strings.Cut(term, "=")
		if !ok {
			return nil, fmt.Errorf("CHROMAFS_FAILPOINTS: %q is not NAME=ACTION", term)
		}
		p := &point{limit: -1}
		for suffix := suffixes.FindString(action); suffix != ""; suffix = suffixes.FindString(action) {
			action = strings.TrimSuffix(action, suffix)
			n, err := strconv.Atoi(suffix[1:])
			if err != nil {
				return nil, fmt.Errorf("CHROMAFS_FAILPOINTS: %q: %w", term, err)
			}
			if suffix[0] == '*' {
				p.limit = n
			} else {
				p.pass = n
			}
		}
		if !knownAction.MatchString(action) {
			return nil, fmt.Errorf("CHROMAFS_FAILPOINTS: %q: no such action", term)
		}
		p.action, p.arg, _ = strings.Cut(action, ":")
		m[name] = p
	}
	return m, nil
}

// Hit carries out what the environment says for the point name. Only the action
// "error" returns an error.
func Hit(name string) error {
	p := points()[name]
	if p == nil || !p.take() {
		return nil
	}
	note(name)
	switch p.action {
	case "kill":
		syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		select {}
	case "error":
		return errno(p.arg)
	case "sleep":
		d, err := time.ParseDuration(p.arg)
		if err != nil {
			panic(fmt.Sprintf("CHROMAFS_FAILPOINTS: %s: %v", name, err))
		}
		time.Sleep(d)
	case "hold":
		for {
			if _, err := os.Stat(p.arg); err == nil {
				return nil
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// Off reports whether the environment switches the mechanism name off. The log
// tells of the first time.
func Off(name string) bool {
	p := points()[name]
	if p == nil || p.action != "off" {
		return false
	}
	p.offNoted.Do(func() { note(name) })
	return true
}

func (p *point) take() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pass > 0 {
		p.pass--
		return false
	}
	if p.limit == 0 {
		return false
	}
	if p.limit > 0 {
		p.limit--
	}
	return true
}

func note(name string) {
	file := os.Getenv("CHROMAFS_FAILPOINTS_LOG")
	if file == "" {
		return
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(f, "failpoint", name)
	f.Close()
}

func errno(name string) error {
	for n := syscall.Errno(1); n < 200; n++ {
		if unix.ErrnoName(n) == name {
			return n
		}
	}
	panic("CHROMAFS_FAILPOINTS: no such errno: " + name)
}
