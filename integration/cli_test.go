package integration

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/integration/harness"
)

var (
	flagInHelp   = regexp.MustCompile(`(?m)^\s+(?:-\w, )?--([a-z0-9-]+)`)
	flagInReadme = regexp.MustCompile("^\\| `--([a-z0-9-]+)")
)

// subcommands lists what "chromafs help" names.
func subcommands(t *testing.T) []string {
	t.Helper()
	var names []string
	for line := range strings.SplitSeq(harness.Must(t, 0, nil, "help").Stdout, "\n") {
		usage, ok := strings.CutPrefix(line, "  chromafs ")
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(usage, " [")
		names = append(names, name)
	}
	if !slices.Contains(names, "mount") || !slices.Contains(names, "history list") {
		t.Fatalf("help names only %v", names)
	}
	return names
}

// The README's table of flags is the one that the binary has: no flag is missing,
// none is promised.
func TestReadmeNamesEveryFlag(t *testing.T) {
	t.Parallel()
	readme := readFile(t, filepath.Join("..", "README.md"))
	has := map[string]bool{}
	for _, name := range subcommands(t) {
		help := harness.Must(t, 0, nil, append(strings.Fields(name), "--help")...).Stdout
		for _, match := range flagInHelp.FindAllStringSubmatch(help, -1) {
			has[match[1]] = true
		}
		if !strings.Contains(readme, "chromafs "+name) {
			t.Errorf("README.md does not show chromafs %s", name)
		}
	}
	documented := map[string]bool{}
	for line := range strings.SplitSeq(readme, "\n") {
		if match := flagInReadme.FindStringSubmatch(line); match != nil {
			documented[match[1]] = true
		}
	}
	if want, got := slices.Sorted(maps.Keys(has)), slices.Sorted(maps.Keys(documented)); !slices.Equal(want, got) {
		t.Errorf("flags of the binary:\n%v\nflags of README.md:\n%v", want, got)
	}
}

// The exit codes are a closed list that scripts rely on; 3 to 6 have tests where
// they arise.
func TestWrongUsage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, args := range map[string][]string{
		"no command":           {},
		"unknown command":      {"backup"},
		"unknown flag":         {"mount", "--fast", dir, dir},
		"missing arguments":    {"mount", "--store", "file://" + dir},
		"no store":             {"mount", filepath.Join(dir, "a"), filepath.Join(dir, "b")},
		"unknown scheme":       {"mount", "--store", "ftp://host/dir", filepath.Join(dir, "a"), filepath.Join(dir, "b")},
		"no bucket":            {"history", "list", "--store", "s3://"},
		"interval is no time":  {"mount", "--store", "file://" + dir, "--interval", "soon", dir, dir},
		"keep nothing":         {"mount", "--store", "file://" + dir, "--keep", "0", dir, dir},
		"half a group":         {"history"},
		"unknown log format":   {"mount", "--store", "file://" + dir, "--log-format", "xml", dir, dir},
		"too many arguments":   {"status", dir, dir},
		"flag of another verb": {"status", "--keep", "3", dir},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := harness.Must(t, 2, nil, args...)
			if r.Stderr == "" {
				t.Error("nothing was said")
			}
		})
	}
}

// Flags come from the environment too; the command line wins. Logs can be JSON.
func TestConfigurationFromTheEnvironment(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	w.seed()
	o := w.options("--log-format", "json")
	o.Env = []string{"CHROMAFS_STORE=" + w.store.URL, "CHROMAFS_LOG_FORMAT=text", "CHROMAFS_KEEP=2"}
	o.Store = nil
	m := harness.Start(t, o)
	for _, content := range []string{"1", "2", "3"} {
		writeFile(t, filepath.Join(w.point, "counter"), content)
		m.Snapshot()
	}
	m.Unmount()
	if n := len(w.store.Head().History); n != 2 {
		t.Errorf("CHROMAFS_KEEP=2 kept %d", n)
	}
	for line := range strings.SplitSeq(strings.TrimSpace(m.Log()), "\n") {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Errorf("not a JSON record: %q", line)
		}
	}
	for _, field := range []string{w.store.Newest(), `"files"`, `"removed"`} {
		if !strings.Contains(m.Log(), field) {
			t.Errorf("the log has no %s: %s", field, m.Log())
		}
	}
}

// An offline snapshot needs no mount; restore and sync refuse under one.
func TestCommandsOnADirectory(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	w.seed()
	harness.Must(t, 0, w.store, "sync", w.dir)
	first := w.store.Newest()
	if s := w.publish(); s.ID != first {
		t.Errorf("sync published %s, yet %s came after it", first, s.ID)
	}
	m := w.mount()
	for _, command := range []string{"restore", "sync"} {
		r := harness.Chromafs(t, w.store, command, w.dir)
		if r.Code == 0 {
			t.Errorf("%s of a mounted directory exits with 0", command)
		}
		harness.Explain(t, r, w.point)
	}
	m.Unmount()
	w.lose()
	harness.Must(t, 0, w.store, "restore", "--skip-backup", w.dir)
	harness.Verify(t, w.dir, seedDocuments())
}
