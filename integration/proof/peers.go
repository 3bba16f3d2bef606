package proof

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Peers are other ways to copy the directory of a ChromaDB that runs: what they
// are called, and how the copy is made.
func Peers() []string { return []string{"cp", "restic", "rclone", "sqlite"} }

// bare copies a plain directory, with no mount, by one of Peers.
type bare struct {
	tool   string
	folder string
	count  int
}

func startBare(t testing.TB, folder, tool string) *bare {
	t.Helper()
	b := &bare{tool: tool, folder: folder}
	if !slices.Contains(Peers(), tool) {
		t.Fatalf("no such way to copy: %q; there are %v", tool, Peers())
	}
	if err := os.MkdirAll(b.path(), 0o755); err != nil {
		t.Fatal(err)
	}
	fixture.copyTo(t, b.path())
	if tool == "restic" {
		if _, err := b.restic("init"); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (b *bare) path() string { return filepath.Join(b.folder, "disk") }

func (b *bare) await(random *rand.Rand) bool {
	time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond)
	return false
}

// A tool that fails may have copied something: what it has copied is looked at.
func (b *bare) take() (taken, error) {
	b.count++
	c := taken{number: b.count}
	to := b.copied(c)
	switch b.tool {
	case "cp":
		_, _ = command("cp", "-a", b.path(), to)
	case "rclone":
		_, _ = command("rclone", "sync", "--config", "/dev/null", b.path(), to)
	case "sqlite":
		b.sqliteBackup(to)
	case "restic":
		out, err := b.restic("backup", "--json", ".")
		for line := range strings.Lines(out) {
			var said struct {
				ID string `json:"snapshot_id"`
			}
			if json.Unmarshal([]byte(line), &said) == nil && said.ID != "" {
				c.id = said.ID
			}
		}
		if c.id == "" {
			return c, fmt.Errorf("restic named no snapshot: %s: %w", out, err)
		}
	}
	return c, nil
}

// copied is where a copy is kept until it is looked at.
func (b *bare) copied(c taken) string { return filepath.Join(b.folder, fmt.Sprint("copy-", c.number)) }

// sqliteBackup is the advice that is usually given: the database by SQLite's own
// means, then everything else.
func (b *bare) sqliteBackup(to string) {
	if os.Mkdir(to, 0o755) != nil {
		return
	}
	_, err := command("sqlite3", "-cmd", ".timeout 10000", filepath.Join(b.path(), "chroma.sqlite3"),
		".backup '"+filepath.Join(to, "chroma.sqlite3")+"'")
	if err != nil {
		return
	}
	segments, _ := filepath.Glob(filepath.Join(b.path(), "*-*-*-*-*"))
	for _, s := range segments {
		_, _ = command("cp", "-a", s, to)
	}
}

func (b *bare) restic(args ...string) (string, error) {
	return commandIn(b.path(), []string{"RESTIC_PASSWORD=proof", "RESTIC_CACHE_DIR=" + filepath.Join(b.folder, "cache")},
		"restic", append([]string{"--repo", filepath.Join(b.folder, "repository")}, args...)...)
}

func (b *bare) open(c taken, to string) error {
	if b.tool == "restic" {
		_, err := b.restic("restore", c.id, "--target", to)
		return err
	}
	err := os.Rename(b.copied(c), to)
	if errors.Is(err, os.ErrNotExist) {
		return nil // there is no copy
	}
	return err
}

func (b *bare) close() string { return b.path() }

func (b *bare) holds() (waited, held []time.Duration) { return nil, nil }
