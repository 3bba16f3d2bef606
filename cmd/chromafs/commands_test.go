package main

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// result is how a command ended that ran in this process.
type result struct {
	code           int
	stdout, stderr string
}

// execIn runs a command line with an environment of its own.
func execIn(t *testing.T, environ map[string]string, stdin string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	e := &env{
		stdin: strings.NewReader(stdin), stdout: &stdout, stderr: &stderr,
		getenv: func(name string) string { return environ[name] },
		now:    time.Now, log: slog.New(slog.DiscardHandler),
	}
	code := execute(t.Context(), e, args)
	return result{code, stdout.String(), stderr.String()}
}

func execCLI(t *testing.T, args ...string) result { return execIn(t, nil, "", args...) }

func flagsOf(c command) *pflag.FlagSet {
	flags := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	c.setup(flags)
	return flags
}

func TestEveryCommandExplainsItself(t *testing.T) {
	overview := execCLI(t, "help")
	if overview.code != 0 {
		t.Fatalf("help: %+v", overview)
	}
	seen := map[string]bool{}
	for _, c := range commands() {
		if seen[c.name] {
			t.Errorf("%s is listed twice", c.name)
		}
		seen[c.name] = true
		if c.short == "" || strings.HasSuffix(c.short, ".") || c.short != strings.ToLower(c.short[:1])+c.short[1:] {
			t.Errorf("%s: short help %q", c.name, c.short)
		}
		if !strings.Contains(overview.stdout, "  chromafs "+c.name+" [flags]") {
			t.Errorf("help does not show %s", c.name)
		}
		words := strings.Fields(c.name)
		own := execCLI(t, append(slices.Clone(words), "--help")...)
		if own.code != 0 || own.stderr != "" || !strings.Contains(own.stdout, "chromafs "+c.name+" [flags]") {
			t.Errorf("%s --help: %+v", c.name, own)
		}
		if other := execCLI(t, append([]string{"help"}, words...)...); other != own {
			t.Errorf("help %s and %s --help differ:\n%+v\n%+v", c.name, c.name, other, own)
		}
		flagsOf(c).VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || !strings.Contains(own.stdout, "--"+f.Name) {
				t.Errorf("%s: --%s is not explained", c.name, f.Name)
			}
		})
	}
}

// sample is a value for a flag that is not its default, in the way its type
// prints it.
func sample(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "bool":
		return "true"
	case "int":
		return "7"
	case "duration":
		return "7m0s"
	default:
		return "seven"
	}
}

func TestEveryFlagHasAnEnvironmentVariable(t *testing.T) {
	known := map[string]string{"s3-endpoint": "CHROMAFS_S3_ENDPOINT", "store": "CHROMAFS_STORE", "keep-local-backups": "CHROMAFS_KEEP_LOCAL_BACKUPS"}
	for flag, want := range known {
		if got := variable(flag); got != want {
			t.Errorf("--%s is %s, want %s", flag, got, want)
		}
	}
	for _, c := range commands() {
		environ := map[string]string{}
		flagsOf(c).VisitAll(func(f *pflag.Flag) { environ[variable(f.Name)] = sample(f) })
		getenv := func(name string) string { return environ[name] }

		flags := flagsOf(c)
		if err := fromEnvironment(flags, getenv); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		flags.VisitAll(func(f *pflag.Flag) {
			if got := f.Value.String(); got != sample(f) {
				t.Errorf("%s: --%s is %q from the environment, want %q", c.name, f.Name, got, sample(f))
			}
		})

		// The command line wins.
		flags = flagsOf(c)
		var args []string
		want := map[string]string{}
		flags.VisitAll(func(f *pflag.Flag) {
			want[f.Name] = f.DefValue
			args = append(args, "--"+f.Name+"="+f.DefValue)
		})
		if err := flags.Parse(args); err != nil {
			t.Fatal(err)
		}
		if err := fromEnvironment(flags, getenv); err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		flags.VisitAll(func(f *pflag.Flag) { got[f.Name] = f.Value.String() })
		if !maps.Equal(got, want) {
			t.Errorf("%s: the environment beat the command line: %v, want %v", c.name, got, want)
		}
	}
}

// A misspelt variable is named, one that another command knows is not.
func TestUnknownVariablesAreNamed(t *testing.T) {
	got := strangers([]string{"HOME=/root", "CHROMAFS_STORE=x", "CHROMAFS_INTERVALL=5s", "CHROMAFS_SETTLE=1s", readyVariable + "=3",
		"CHROMAFS_TEST_CLOCK=x", "CHROMAFS_FAILPOINTS_LOG=x"})
	if !slices.Equal(got, []string{"CHROMAFS_INTERVALL"}) {
		t.Errorf("named are %v", got)
	}
}

// The flags of DESIGN §9, no more and no less, on the commands they belong to.
func TestFlagsOfEachCommand(t *testing.T) {
	store := []string{"store", "s3-endpoint", "s3-region"}
	write := []string{"sse", "single-writer"}
	logging := []string{"log-format", "log-level"}
	local := []string{"no-local-backup", "keep-local-backups"}
	want := map[string][]string{
		"mount": slices.Concat(store, write, logging, local, []string{"interval", "settle", "keep", "verify", "max-file-size", "prefer-local", "offline",
			"store-timeout", "stop-timeout", "flush-timeout", "handoff-timeout", "quiesce-timeout", "scratch-limit", "allow-other", "daemon"}),
		"snapshot":       slices.Concat(store, write, logging, []string{"json", "keep", "verify", "max-file-size"}),
		"restore":        slices.Concat(store, logging, local, []string{"at", "skip-backup"}),
		"sync":           slices.Concat(store, write, logging, local, []string{"keep", "verify", "max-file-size", "prefer-local"}),
		"history list":   slices.Concat(store, logging, []string{"json"}),
		"history clear":  slices.Concat(store, write, logging, []string{"yes"}),
		"history prune":  slices.Concat(store, logging, []string{"branches", "yes"}),
		"history verify": slices.Concat(store, logging, []string{"all"}),
		"history adopt":  slices.Concat(store, write, logging),
		"doctor":         slices.Concat(store, write, logging, []string{"json"}),
		"status":         slices.Concat(logging, []string{"json", "check"}),
		"unmount":        logging,
		"version":        nil,
	}
	for _, c := range commands() {
		var got []string
		flagsOf(c).VisitAll(func(f *pflag.Flag) { got = append(got, f.Name) })
		slices.Sort(got)
		slices.Sort(want[c.name])
		if !slices.Equal(got, want[c.name]) {
			t.Errorf("%s has the flags\n%q, want\n%q", c.name, got, want[c.name])
		}
	}
}

func TestWrongUsage(t *testing.T) {
	dir := t.TempDir()
	full := t.TempDir()
	file := "file://" + filepath.Join(t.TempDir(), "bucket")
	writeFile(t, filepath.Join(full, "something"), "x")
	for name, tc := range map[string]struct {
		args    []string
		environ map[string]string
		says    string
	}{
		"no command":             {nil, nil, "no command"},
		"unknown command":        {[]string{"backup"}, nil, "backup"},
		"half a command":         {[]string{"history"}, nil, "list, clear, prune, verify, adopt"},
		"unknown half":           {[]string{"history", "lose"}, nil, "list"},
		"unknown flag":           {[]string{"status", "--fast", dir}, nil, "--fast"},
		"flag of another":        {[]string{"status", "--keep=3", dir}, nil, "--keep"},
		"too few":                {[]string{"status"}, nil, "0 arguments, want 1"},
		"too many":               {[]string{"history", "verify", "a", "b"}, nil, "2 arguments, want 0 to 1"},
		"one path":               {[]string{"mount", dir}, nil, "DIR and MOUNTPOINT"},
		"command without --":     {[]string{"mount", dir, dir, "chroma"}, nil, "3 arguments"},
		"no command after --":    {[]string{"mount", dir, dir, "--"}, nil, "COMMAND"},
		"no store":               {[]string{"mount", dir, dir}, nil, "no store"},
		"no store for history":   {[]string{"history", "list"}, nil, "no store"},
		"no store offline":       {[]string{"snapshot", dir}, nil, "no store"},
		"unknown scheme":         {[]string{"history", "list", "--store", "ftp://x/y"}, nil, "--store"},
		"no time":                {[]string{"mount", "--store", file, "--interval", "soon", dir, dir}, nil, "--interval"},
		"no interval":            {[]string{"mount", "--store", file, "--interval", "0", dir, dir}, nil, "--interval"},
		"negative":               {[]string{"mount", "--store", file, "--stop-timeout", "-1s", dir, dir}, nil, "--stop-timeout"},
		"keep none":              {[]string{"mount", "--store", file, "--keep", "0", dir, dir}, nil, "--keep"},
		"keep no backups":        {[]string{"sync", "--store", file, "--keep-local-backups", "0", dir}, nil, "--no-local-backup"},
		"log format":             {[]string{"status", "--log-format", "xml", dir}, nil, "xml"},
		"log level":              {[]string{"status", "--log-level", "loud", dir}, nil, "loud"},
		"no time in environment": {[]string{"mount", dir, dir}, map[string]string{"CHROMAFS_SETTLE": "x"}, "CHROMAFS_SETTLE"},
		"inside itself":          {[]string{"mount", "--store", file, dir, filepath.Join(dir, "sub")}, nil, "inside"},
		"store inside":           {[]string{"mount", "--store", "file://" + dir + "/bucket", dir, dir}, nil, "--store"},
		"would hide files":       {[]string{"mount", "--store", file, dir, full}, nil, "not empty"},
		"no such directory":      {[]string{"status", filepath.Join(dir, "missing")}, nil, "missing"},
		"no id":                  {[]string{"history", "adopt", "--store", file, "latest"}, nil, "latest"},
	} {
		t.Run(name, func(t *testing.T) {
			r := execIn(t, tc.environ, "", tc.args...)
			if r.code != exitcode.Usage || r.stdout != "" || !strings.Contains(r.stderr, tc.says) {
				t.Errorf("got %+v, want code %d and %q", r, exitcode.Usage, tc.says)
			}
			if lines := strings.Count(r.stderr, "\n"); name != "no command" && lines != 2 {
				t.Errorf("%d lines instead of an error and a hint:\n%s", lines, r.stderr)
			}
		})
	}
}

func TestReport(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want string
		code int
	}{
		"fine":   {nil, "", 0},
		"silent": {&silentError{130}, "", 130},
		"hint":   {exitcode.New(exitcode.Store, context.DeadlineExceeded, "check the address"), "chromafs: context deadline exceeded\n  check the address\n", 3},
		"lines":  {&plainError{"a\nb"}, "chromafs: a; b\n", 1},
	} {
		var out bytes.Buffer
		report(&env{stderr: &out}, tc.err)
		if out.String() != tc.want || codeOf(tc.err) != tc.code {
			t.Errorf("%s: %q, code %d", name, out.String(), codeOf(tc.err))
		}
	}
}

type plainError struct{ text string }

func (e *plainError) Error() string { return e.text }

func TestHumanValues(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 1500 * time.Millisecond: "2s", 90 * time.Second: "1m 30s",
		time.Hour: "1h 0m", 26*time.Hour + time.Minute: "1d 2h",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%v) is %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 1 << 40: "1.0 TiB", 1<<63 - 1: "8.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) is %q, want %q", n, got, want)
		}
	}
	if count(1, "file") != "1 file" || count(0, "file") != "0 files" || count(2, "branch") != "2 branches" {
		t.Error("count")
	}
}
