package main

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore/retry"
	"github.com/chromafs/chromafs/internal/testutil/fakes3"
)

var notImplemented = fakes3.Refusal{Status: http.StatusNotImplemented, Code: "NotImplemented"}

// ready asks whether a store will do, as a command with this DIR/.chromafs does.
func ready(t *testing.T, server *fakes3.Server, state *os.File, change ...func(*storeOptions)) (*knowledge, error) {
	t.Helper()
	server.Setenv(t)
	o := storeOptions{url: "s3://" + fakes3.Bucket + "/chromadb", endpoint: server.URL, sse: "none"}
	for _, c := range change {
		c(&o)
	}
	_, k, err := o.openToWrite(&env{now: time.Now, log: slog.New(slog.DiscardHandler)}, state, retry.Policy{})
	if err != nil {
		t.Fatal(err)
	}
	return k, k.ready(t.Context())
}

func single(o *storeOptions) { o.singleWriter = true }

// A store is tried at its first use and not again; another one is.
func TestCapabilitiesAreRemembered(t *testing.T) {
	server := fakes3.New(t, fakes3.Options{PartCopy: notImplemented})
	state := openFolder(t, t.TempDir())
	for i, expect := range []struct {
		change func(*storeOptions)
		tried  bool
	}{
		{func(*storeOptions) {}, true},
		{func(*storeOptions) {}, false},
		{single, false}, // it does conditional writes
		{func(o *storeOptions) { o.url += "/other" }, true},
		{func(o *storeOptions) { o.url += "/other" }, false},
		{func(o *storeOptions) { o.endpoint += "/" }, true}, // it may be another server
		{func(*storeOptions) {}, true},
	} {
		k, err := ready(t, server, state, expect.change)
		if err != nil {
			t.Fatal(err)
		}
		if l, known := k.adapted.Lacks(); !known || l.PartCopy == "" || l.Conditions() != "" || l.Copy != "" {
			t.Errorf("%d: known %t, %+v", i, known, l)
		}
		if n := len(server.Requests()); (n > 0) != expect.tried {
			t.Errorf("%d: %d requests", i, n)
		}
		if err := k.ready(t.Context()); err != nil || len(server.Requests()) > 0 {
			t.Errorf("%d: asked again: %v", i, err)
		}
	}
	for _, garbage := range []string{"", "{", `{"format":2}`} {
		writeFile(t, filepath.Join(state.Name(), rememberedName), garbage)
		if _, err := ready(t, server, state); err != nil || len(server.Requests()) == 0 {
			t.Errorf("%q was believed: %v", garbage, err)
		}
	}
	if keys := server.Keys(); len(keys) > 0 {
		t.Errorf("left in the store: %q", keys)
	}
}

func openFolder(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// Without conditional writes nothing is written, unless the flag says so; and that they
// are lacking is not believed for ever.
func TestNoConditionalWrites(t *testing.T) {
	for _, conditions := range []fakes3.Conditions{fakes3.Refused, fakes3.Ignored, fakes3.Unquoted} {
		server := fakes3.New(t, fakes3.Options{Conditions: conditions})
		state := openFolder(t, t.TempDir())
		for range 2 {
			k, err := ready(t, server, state)
			if exitcode.Of(err) != exitcode.Store || !strings.Contains(err.Error(), "conditional writes") || !strings.Contains(exitcode.Hint(err), "--single-writer") {
				t.Errorf("conditions %d: %v (next: %s)", conditions, err, exitcode.Hint(err))
			}
			if _, known := k.adapted.Lacks(); known || len(server.Requests()) == 0 {
				t.Errorf("conditions %d: a refusal was remembered", conditions)
			}
		}
		if _, err := ready(t, server, state, single); err != nil || len(server.Requests()) > 0 {
			t.Errorf("conditions %d: with --single-writer: %v", conditions, err)
		}
	}
}

// Encryption that was asked for and is not done is refused; and it is tried again with
// another flag.
func TestEncryptionThatIsIgnored(t *testing.T) {
	encrypted := func(o *storeOptions) { o.sse = "s3" }
	server := fakes3.New(t, fakes3.Options{IgnoreSSE: true})
	state := openFolder(t, t.TempDir())
	for range 2 {
		if _, err := ready(t, server, state, encrypted); exitcode.Of(err) != exitcode.Store || !strings.Contains(err.Error(), "--sse s3") {
			t.Errorf("%v", err)
		}
		if len(server.Requests()) == 0 {
			t.Error("a refusal was remembered")
		}
	}
	if _, err := ready(t, server, state); err != nil || len(server.Requests()) == 0 {
		t.Errorf("without --sse: %v", err)
	}
	heeds := fakes3.New(t, fakes3.Options{})
	if k, err := ready(t, heeds, state, encrypted); err != nil || len(heeds.Requests()) == 0 {
		t.Errorf("%v", err)
	} else if l, _ := k.adapted.Lacks(); l.Encrypt != "" {
		t.Errorf("%+v", l)
	}
}

// A probe that gets no answer says nothing, and nothing is remembered of it.
func TestProbeOfAStoreThatIsDown(t *testing.T) {
	server := fakes3.New(t, fakes3.Options{})
	state := openFolder(t, t.TempDir())
	server.Server.Close()
	if _, err := ready(t, server, state); exitcode.Of(err) != exitcode.Store {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(state.Name(), rememberedName)); !os.IsNotExist(err) {
		t.Errorf("something is remembered: %v", err)
	}
}

// The built program on a store without conditional writes: refused without the flag;
// with it a disk is lost and comes back, said loudly, and the memory of DIR is used.
func TestSingleWriter(t *testing.T) {
	t.Parallel()
	server := fakes3.New(t, fakes3.Options{Conditions: fakes3.Ignored, BulkDelete: notImplemented})
	s := newScene(t)
	s.environ = append(server.Environ(), "CHROMAFS_STORE=s3://"+fakes3.Bucket+"/chromadb", "CHROMAFS_S3_ENDPOINT="+server.URL)
	r := s.must(exitcode.Store, "mount", s.dir, s.point)
	if !strings.Contains(r.stderr, "--single-writer") || mountedAt(t, s.point) || len(server.Keys()) > 0 {
		t.Errorf("%s\nin the store: %q", r.stderr, server.Keys())
	}
	d := s.start(s.answers(s.point), "--single-writer", "--sse", "kms:some-key", s.dir, s.point)
	if st := s.status(s.point); !st.SingleWriter || len(st.StoreLacks) != 3 {
		t.Errorf("status %+v", st)
	}
	if out := s.must(0, "status", s.point).stdout; !strings.Contains(out, "SINGLE WRITER") || !strings.Contains(out, "bulk delete") {
		t.Error(out)
	}
	server.Requests()
	fill(t, s.point)
	s.must(0, "snapshot", s.point)
	requests := server.Requests()
	s.must(0, "snapshot", s.point)
	idle := slices.DeleteFunc(server.Requests(), func(r fakes3.Request) bool { return strings.HasSuffix(r.Key, "/lease.json") }) // looked at every 5 s
	if len(idle) != 1 || idle[0].Op != "get" {
		t.Errorf("with nothing changed the store was asked %+v", idle)
	}
	for _, r := range requests {
		if write := r.Op == "put" || r.Op == "copy" || r.Op == "new-upload"; write && (r.SSE != "aws:kms" || r.SSEKey != "some-key") {
			t.Errorf("not encrypted: %+v", r)
		}
		if r.Op == "put" && r.IfMatch != "" {
			t.Errorf("a condition that the store ignores was relied on: %+v", r)
		}
	}
	want := content(t, s.point)
	d.signal(unix.SIGTERM)
	if code := d.wait(); code != 0 || !strings.Contains(d.stderr.String(), "SINGLE WRITER") {
		t.Fatalf("exit code %d: %s", code, d.stderr)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	s.must(0, "sync", "--single-writer", s.dir)
	same(t, "restored", content(t, s.dir), want)
	server.Requests()
	writeFile(t, filepath.Join(s.dir, "offline"), "x")
	s.must(0, "snapshot", "--single-writer", s.dir)
	s.must(0, "history", "clear", "--yes", "--single-writer")
	if out := s.must(exitcode.Store, "doctor").stdout; !strings.Contains(out, "the newest of 1 snapshot") || !strings.Contains(out, "--single-writer") {
		t.Error(out)
	}
	for _, key := range server.Keys() {
		if strings.Contains(key, ".chromafs") {
			t.Errorf("left in the store: %s", key)
		}
	}
}

// doctor asks a store for a diagnosis.
func doctor(t *testing.T, server *fakes3.Server, code int, args ...string) checkup {
	t.Helper()
	server.Setenv(t)
	r := execCLI(t, append([]string{"doctor", "--json", "--s3-endpoint", server.URL}, args...)...)
	if r.code != code {
		t.Errorf("doctor %q: exit code %d, want %d\n%s%s", args, r.code, code, r.stdout, r.stderr)
	}
	var c checkup
	if err := json.Unmarshal([]byte(r.stdout), &c); err != nil {
		t.Fatalf("%v: %s%s", err, r.stdout, r.stderr)
	}
	if c.ExitCode != code {
		t.Errorf("doctor %q says %d in JSON, and ends with %d", args, c.ExitCode, code)
	}
	if keys := server.Keys(); len(keys) > 0 && len(c.Left) == 0 || server.Uploads() > 0 {
		t.Errorf("doctor %q left %q and %d uploads", args, keys, server.Uploads())
	}
	return c
}

// The exit code is that of the worst finding, and each is named.
func TestDoctor(t *testing.T) {
	const store = "s3://" + fakes3.Bucket + "/chromadb"
	denied := fakes3.Refusal{Status: http.StatusForbidden, Code: "AccessDenied"}
	for name, tc := range map[string]struct {
		options fakes3.Options
		args    []string
		code    int
		says    string
	}{
		"fine":               {fakes3.Options{}, nil, 0, ""},
		"no part copy":       {fakes3.Options{PartCopy: notImplemented}, nil, 0, "no part copy"},
		"no bulk delete":     {fakes3.Options{BulkDelete: notImplemented}, nil, 0, "no bulk delete"},
		"no conditions":      {fakes3.Options{Conditions: fakes3.Ignored}, nil, 3, "no conditional replace"},
		"no conditions, one": {fakes3.Options{Conditions: fakes3.Ignored}, []string{"--single-writer"}, 0, "no conditional replace"},
		"no encryption":      {fakes3.Options{IgnoreSSE: true}, []string{"--sse", "kms"}, 3, "no encryption"},
		"encryption":         {fakes3.Options{}, []string{"--sse", "kms"}, 0, ""},
		"no list of uploads": {fakes3.Options{ListUploads: denied}, nil, 1, "no list uploads"},
		"no delete":          {fakes3.Options{Delete: denied, BulkDelete: denied}, nil, 1, "no delete"},
		"a clock":            {fakes3.Options{Clock: -time.Hour}, nil, 1, "1h 0m behind"},
	} {
		t.Run(name, func(t *testing.T) {
			server := fakes3.New(t, tc.options)
			c := doctor(t, server, tc.code, append(tc.args, store)...)
			var all []string
			for _, f := range c.Findings {
				all = append(all, f.What)
			}
			text := strings.Join(all, "\n")
			if !c.Reached || len(c.Capabilities) < 8 || c.LatencyMS <= 0 || c.ClockAheadMS == nil ||
				!strings.Contains(text, tc.says) || tc.says == "" && text != "" {
				t.Errorf("%+v", c)
			}
		})
	}
	server := fakes3.New(t, fakes3.Options{})
	if c := doctor(t, server, 3, "s3://another-bucket"); c.Reached || !strings.Contains(c.Findings[0].What, "NoSuchBucket") && !strings.Contains(c.Findings[0].Next, "bucket") {
		t.Errorf("no such bucket: %+v", c)
	}
	server.Put("chromadb/photos/cat.jpg", []byte("x"))
	if r := execCLI(t, "doctor", "--s3-endpoint", server.URL, "--store", store); r.code != 3 || !strings.Contains(r.stdout, "cat.jpg") || !strings.Contains(r.stdout, "part copy:") {
		t.Errorf("a foreign prefix: %+v", r)
	}
	for _, args := range [][]string{{"doctor"}, {"doctor", store, t.TempDir(), "more"}, {"doctor", "a", "b"}, {"doctor", store, t.TempDir()}, {"doctor", "--sse", "no", store}} {
		if r := execCLI(t, args...); r.code != exitcode.Usage {
			t.Errorf("%q: %+v", args, r)
		}
	}
}

// With a DIR what was found is remembered there.
func TestDoctorRefreshesDir(t *testing.T) {
	const store = "s3://" + fakes3.Bucket + "/chromadb"
	server := fakes3.New(t, fakes3.Options{PartCopy: notImplemented})
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, ".chromafs"), 0o700); err != nil {
		t.Fatal(err)
	}
	state := openFolder(t, filepath.Join(dir, ".chromafs"))
	doctor(t, server, 0, store)
	if _, err := os.Stat(filepath.Join(state.Name(), rememberedName)); !os.IsNotExist(err) {
		t.Errorf("without a DIR: %v", err)
	}
	doctor(t, server, 0, store, dir)
	server.Requests()
	if k, err := ready(t, server, state); err != nil || len(server.Requests()) > 0 {
		t.Errorf("tried again: %v", err)
	} else if l, _ := k.adapted.Lacks(); l.PartCopy == "" {
		t.Errorf("remembered %+v", l)
	}
}
