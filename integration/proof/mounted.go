package proof

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

// copier makes copies of the directory that a ChromaDB works on.
type copier interface {
	path() string // where ChromaDB works
	// await returns at the moment of the next copy. aimed says that it is one of
	// a persist.
	await(random *rand.Rand) (aimed bool)
	// take makes a copy. The window of the copy is the time of this call.
	take() (taken, error)
	// open brings the copy to a new folder, as plain files.
	open(c taken, to string) error
	// close ends it. Where ChromaDB worked there are plain files afterwards, in
	// the folder that it returns.
	close() string
	// holds tells how long the copies waited, and held writers up.
	holds() (waited, held []time.Duration)
}

// taken is a copy that a copier made.
type taken struct {
	id          string
	consistency string // of a snapshot
	number      int    // in the order of taking
}

// mounted takes snapshots of a mount.
type mounted struct {
	t       testing.TB
	variant Variant
	m       *harness.Mount
	o       harness.Options
	count   int
	hits    int64 // size of the log of failpoints at the last snapshot
}

// keep is how many snapshots the store holds: more than wait to be checked.
const keep = "12"

// startMounted mounts a new directory, which begins with the ballast if it is to be
// heavy.
func startMounted(t testing.TB, folder string, v Variant, heavy bool) *mounted {
	bucket := filepath.Join(folder, "bucket")
	s := &mounted{t: t, variant: v, o: harness.Options{
		Dir: filepath.Join(folder, "disk"), Point: filepath.Join(folder, "mount"), Store: harness.FileStore(t, bucket),
		Flags: append([]string{"--interval", "24h", "--keep", keep, "--log-level", "debug", "--log-format", "json"}, v.Flags...),
		Env:   v.Env, Failpoints: v.failpoints(t),
	}}
	if heavy {
		if err := os.MkdirAll(s.o.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
		fixture.copyTo(t, s.o.Dir)
	}
	s.m = harness.Start(t, s.o)
	return s
}

func (s *mounted) path() string { return s.o.Point }

// Most copies are asked for as soon as a persist is seen, some at any moment.
func (s *mounted) await(random *rand.Rand) bool {
	time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond)
	if !s.variant.Aimed || random.IntN(4) == 0 {
		return false
	}
	s.hits = s.hitsSize()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(500 * time.Microsecond) {
		if s.hitsSize() > s.hits {
			time.Sleep(time.Duration(random.IntN(30)) * time.Millisecond)
			return true
		}
	}
	return false
}

func (s *mounted) hitsSize() int64 {
	info, err := os.Stat(s.m.HitsLog())
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return info.Size()
}

func (s *mounted) take() (taken, error) {
	out, err := command(harness.Binary(s.t), "snapshot", "--json", s.o.Point)
	if err != nil {
		return taken{}, fmt.Errorf("%w\nthe daemon says: %s", err, lastLines(s.m.Log()))
	}
	var snap harness.Snapshot
	if err := json.Unmarshal([]byte(out), &snap); err != nil || snap.ID == "" {
		return taken{}, fmt.Errorf("snapshot --json printed %q (%v)", out, err)
	}
	s.count++
	return taken{snap.ID, snap.Consistency, s.count}, nil
}

// Both ways lead to the same files: restore, and a plain copy of the objects.
func (s *mounted) open(c taken, to string) error {
	if c.number%2 == 0 {
		_, err := command(harness.Binary(s.t), "restore", "--log-level", "warn", "--store", s.o.Store.URL, "--at", c.id, to)
		return err
	}
	return s.plain(c, to)
}

func (s *mounted) plain(c taken, to string) error {
	_, err := command("cp", "-r", s.o.Store.Snapshot(c.id), to)
	return err
}

func (s *mounted) close() string {
	s.m.Unmount()
	return s.o.Dir
}

func (s *mounted) holds() (waited, held []time.Duration) {
	lines := bufio.NewScanner(strings.NewReader(s.m.Log()))
	for lines.Scan() {
		var entry struct {
			Message string        `json:"msg"`
			Waited  time.Duration `json:"waited"`
			Held    time.Duration `json:"held"`
		}
		// Not every line is JSON: the race detector's are not.
		if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Message == "cut" {
			waited, held = append(waited, entry.Waited), append(held, entry.Held)
		}
	}
	return waited, held
}

// command runs a command to its end and returns what it printed to stdout.
func command(name string, args ...string) (string, error) {
	return commandIn("", nil, name, args...)
}

func commandIn(dir string, env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(harness.Environ(), env...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s%s", filepath.Base(name), strings.Join(args, " "), err, &stderr, &stdout)
	}
	return stdout.String(), nil
}

func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}
