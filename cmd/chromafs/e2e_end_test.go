package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDaemon(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	// The output is a pipe: a daemon that kept it open would keep must waiting.
	s.must(0, "mount", "--daemon", s.dir, s.point)
	writeFile(t, filepath.Join(s.point, "file"), "x")
	pid := s.status(s.point).PID
	s.must(0, "unmount", s.dir)
	eventually(t, "the daemon is gone", func() bool { return unix.Kill(pid, 0) != nil })
	log := readFile(t, filepath.Join(s.dir, ".chromafs", logName))
	for _, words := range []string{"serving", "snapshot published", "ending"} {
		if !strings.Contains(log, words) {
			t.Errorf("the log does not say %q:\n%s", words, log)
		}
	}
	// What goes wrong before the mount answers comes back to the caller.
	if r := s.must(3, "mount", "--daemon", "--store", "file:///no/such/parent/bucket", "--store-timeout", "100ms", s.dir+"2", s.point); !strings.Contains(r.stderr, "bucket") {
		t.Error(r.stderr)
	}
	// With a command it returns once that runs.
	s.must(0, "mount", "--daemon", s.dir, s.point, "--", "sh", "-c", "echo y > "+s.point+"/by-command")
	eventually(t, "the command's end is the mount's", func() bool {
		st := s.try("status", "--json", s.dir)
		return st.code == 0 && strings.Contains(st.stdout, `"mounted": false`)
	})
	same(t, "DIR", content(t, s.dir), map[string]string{"file": "x", "by-command": "y\n"})
}

// A mount that ends at the last step of its start leaves no COMMAND behind on a
// mountpoint that nobody serves.
func TestStarterThatIsGone(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	note := filepath.Join(t.TempDir(), "pid")
	cmd := s.command("mount", "--daemon", s.dir, s.point, "--", "sh", "-c", "echo $$ > "+note+"; exec sleep 60")
	cmd.Env, cmd.ExtraFiles = append(cmd.Env, readyVariable+"=3"), []*os.File{w}
	if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("ended with %v, want exit code 1", err)
	}
	for range 100 { // it may have been stopped before it wrote anything
		text, _ := os.ReadFile(note)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && unix.Kill(pid, 0) == nil {
			t.Fatalf("the command is left behind: %v", unix.Kill(pid, unix.SIGKILL))
		}
		time.Sleep(10 * time.Millisecond)
	}
	if mountedAt(t, s.point) {
		t.Error("the mount is left behind")
	}
}

// Whoever unmounts, what was written is stored.
func TestUnmountedFromOutside(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	d := s.start(s.answers(s.point), s.dir, s.point)
	writeFile(t, filepath.Join(s.point, "file"), "x")
	if err := unix.Unmount(s.point, 0); err != nil {
		t.Fatal(err)
	}
	if code := d.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, d.stderr)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	s.must(0, "restore", s.dir)
	same(t, "restored", content(t, s.dir), map[string]string{"file": "x"})
}

// A mount in use is detached, and what was written to it until then is stored.
func TestUnmountWhileInUse(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	d := s.start(s.answers(s.point), s.dir, s.point)
	f, err := os.Create(filepath.Join(s.point, "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("written, not closed"); err != nil {
		t.Fatal(err)
	}
	s.must(0, "unmount", s.point)
	if code := d.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, d.stderr)
	}
	if mountedAt(t, s.point) {
		t.Error("the mount is still there")
	}
	s.must(0, "mount", s.dir, s.point, "--", "true")
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	s.must(0, "restore", s.dir)
	same(t, "restored", content(t, s.dir), map[string]string{"open": "written, not closed"})
}

// Where the store is away at the end, the exit code says that something is left,
// and the next mount stores it.
func TestTheStoreIsAwayAtTheEnd(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	d := s.start(s.answers(s.point), "--flush-timeout", "1s", s.dir, s.point)
	writeFile(t, filepath.Join(s.point, "first"), "1")
	s.must(0, "snapshot", s.point)
	if err := os.Rename(s.store, s.store+".away"); err != nil {
		t.Fatal(err)
	}
	// A file in its place: the store can neither be read nor be begun anew.
	writeFile(t, s.store, "not a folder")
	writeFile(t, filepath.Join(s.point, "second"), "2")
	r := s.must(3, "unmount", s.point)
	if !strings.Contains(r.stderr, "next mount") {
		t.Errorf("the message has no way out: %s", r.stderr)
	}
	if code := d.wait(); code != 3 {
		t.Errorf("exit code %d: %s", code, d.stderr)
	}
	if mountedAt(t, s.point) {
		t.Error("the mount is still there")
	}
	if err := os.Remove(s.store); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.store+".away", s.store); err != nil {
		t.Fatal(err)
	}
	s.must(0, "mount", s.dir, s.point, "--", "true")
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	s.must(0, "restore", s.dir)
	same(t, "restored", content(t, s.dir), map[string]string{"first": "1", "second": "2"})
}

// DESIGN §3: SQLite on DIR is kept out while the mount is elsewhere; on the mount
// it works.
func TestDatabasesOfDirAreLocked(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fill(t, s.dir)
	d := s.start(s.answers(s.point), s.dir, s.point)
	for _, name := range []string{"chroma.sqlite3", "created later"} {
		sql := "create table if not exists t(x); insert into t values(4)"
		if r := run(t, "sqlite3", filepath.Join(s.point, name), sql); r.code != 0 {
			t.Errorf("%s on the mount: %+v", name, r)
		}
		eventually(t, name+" is locked in DIR", func() bool {
			r := run(t, "sqlite3", filepath.Join(s.dir, name), "select * from t")
			return r.code != 0 && strings.Contains(r.stderr, "locked")
		})
		if r := run(t, "sqlite3", filepath.Join(s.point, name), sql); r.code != 0 {
			t.Errorf("%s on the mount, locked in DIR: %+v", name, r)
		}
	}
	s.must(0, "snapshot", s.dir)
	d.signal(unix.SIGTERM)
	if code := d.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, d.stderr)
	}
	if r := run(t, "sqlite3", filepath.Join(s.dir, "chroma.sqlite3"), "select count(*) from t"); r.stdout != "5\n" {
		t.Errorf("after the end: %+v", r)
	}
}

func TestOfflineCommands(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	if r := s.must(2, "snapshot", s.dir); !strings.Contains(r.stderr, s.dir) {
		t.Error(r.stderr)
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.must(1, "snapshot", s.dir)
	if names, err := os.ReadDir(s.dir); err != nil || len(names) != 0 {
		t.Errorf("a refused snapshot made %v (%v)", names, err)
	}
	s.must(1, "restore", s.dir) // there is nothing yet
	fill(t, s.dir)
	want := content(t, s.dir)
	s.must(0, "snapshot", s.dir)
	first := s.status(s.dir)
	if first.Mounted || first.Dirty || first.Last == nil || first.Sequence != 1 {
		t.Errorf("status after it: %+v", first)
	}
	writeFile(t, filepath.Join(s.dir, "note"), "changed")
	s.must(0, "sync", s.dir)

	r := s.must(0, "restore", "--at", first.Last.ID, s.dir)
	same(t, "restored", content(t, s.dir), want)
	if !strings.Contains(r.stdout, "backups") {
		t.Errorf("the message does not say where the old copy is: %s", r.stdout)
	}
	if st := s.status(s.dir); !st.Dirty || st.Sequence != 2 {
		t.Errorf("an older snapshot is not waiting to be published: %+v", st)
	}
	s.must(0, "sync", s.dir)

}

// A transaction under way keeps an offline snapshot from being taken.
func TestOfflineSnapshotWaitsForSQLite(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fill(t, s.dir)
	app := exec.CommandContext(t.Context(), "sqlite3", filepath.Join(s.dir, "chroma.sqlite3"))
	in, err := app.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := app.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("begin exclusive; select 'begun';\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if r := s.must(1, "snapshot", s.dir); !strings.Contains(r.stderr, "locked") {
		t.Error(r.stderr)
	}
	in.Close()
	if err := app.Wait(); err != nil {
		t.Fatal(err)
	}
	s.must(0, "snapshot", s.dir)
}

func TestHistoryCommands(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"1", "2", "3"} {
		writeFile(t, filepath.Join(s.dir, "note"), text)
		s.must(0, "snapshot", s.dir)
	}
	var listed []listedJSON
	if err := json.Unmarshal([]byte(s.must(0, "history", "list", "--json").stdout), &listed); err != nil || len(listed) != 3 {
		t.Fatalf("history: %+v, %v", listed, err)
	}
	if r := s.must(2, "history", "clear"); !strings.Contains(r.stderr, "--yes") {
		t.Error(r.stderr)
	}
	s.must(0, "history", "clear", "--yes")
	s.must(0, "history", "prune")
	if r := s.must(0, "history", "list"); strings.Count(r.stdout, "\n") != 2 || !strings.Contains(r.stdout, listed[2].ID) {
		t.Errorf("after clear: %s", r.stdout)
	}

	// manifest.json is lost: the message names the command that helps.
	if err := os.Remove(filepath.Join(s.store, "manifest.json")); err != nil {
		t.Fatal(err)
	}
	r := s.must(5, "mount", s.dir, s.point)
	_, command, ok := strings.Cut(r.stderr, "chromafs history adopt ")
	if !ok {
		t.Fatalf("no way out is named: %s", r.stderr)
	}
	s.must(0, append([]string{"history", "adopt"}, strings.Fields(command)...)...)
	s.must(0, "history", "verify", listed[2].ID)
}

func TestDamagedJournalSaysTheWayOut(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fill(t, s.dir)
	s.must(0, "snapshot", s.dir)
	file := filepath.Join(s.dir, ".chromafs", "journal.db")
	writeFile(t, file, strings.Repeat("damage ", 5000))
	for _, args := range [][]string{{"mount", s.dir, s.point}, {"status", s.dir}, {"snapshot", s.dir}} {
		if r := s.must(5, args...); !strings.Contains(r.stderr, "journal.db") || !strings.Contains(r.stderr, "mount again") {
			t.Errorf("%q: %s", args, r.stderr)
		}
	}
	if err := os.Rename(file, file+".bad"); err != nil {
		t.Fatal(err)
	}
	want := content(t, s.dir)
	s.must(0, "mount", s.dir, s.point, "--", "true")
	same(t, "with a new journal", content(t, s.dir), want)
}

func TestJSONLogHoldsNothingElse(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	good := s.must(0, "mount", "--log-format", "json", s.dir, s.point, "--", "sh", "-c", "echo x > "+s.point+"/x")
	bad := s.must(3, "mount", "--log-format", "json", "--store", "file:///no/such/parent/bucket", "--store-timeout", "10ms", s.dir+"2", s.point)
	for _, text := range []string{good.stderr, bad.stderr} {
		var last map[string]any
		for line := range strings.Lines(text) {
			last = nil
			if err := json.Unmarshal([]byte(line), &last); err != nil {
				t.Errorf("no JSON: %q", line)
			}
		}
		if text == bad.stderr && (last["level"] != "ERROR" || last[keyExitCode] != 3.0) {
			t.Errorf("the error is logged as %v", last)
		}
	}
}

// W1: a mount that another one has left behind publishes nothing, goes on serving,
// says so, and exits with 4; what it holds is kept (W2).
func TestLeftBehindByAnotherWriter(t *testing.T) {
	t.Parallel()
	s, other := newScene(t), newScene(t)
	other.store = s.store
	first := s.start(s.answers(s.point), s.dir, s.point)
	writeFile(t, filepath.Join(s.point, "shared"), "x")
	s.must(0, "snapshot", s.point)
	// An offline command that publishes nothing leaves the writer alone.
	other.must(0, "restore", other.dir)
	other.must(0, "sync", other.dir)
	writeFile(t, filepath.Join(s.point, "shared"), "y")
	s.must(0, "snapshot", s.point)

	second := other.start(other.answers(other.point), "--handoff-timeout", "0s", other.dir, other.point)
	writeFile(t, filepath.Join(s.point, "lost writer"), "mine")
	if r := s.must(4, "snapshot", s.point); !strings.Contains(r.stderr, "another writer") {
		t.Error(r.stderr)
	}
	if st := s.status(s.point); !st.Fenced || !st.Dirty {
		t.Errorf("status: %+v", st)
	}
	s.must(1, "status", "--check", s.point)
	writeFile(t, filepath.Join(other.point, "winner"), "theirs")
	other.must(0, "snapshot", other.point)
	s.must(4, "unmount", s.point)
	if code := first.wait(); code != 4 {
		t.Errorf("exit code %d: %s", code, first.stderr)
	}
	second.signal(unix.SIGTERM)
	if code := second.wait(); code != 0 {
		t.Errorf("the winner: exit code %d: %s", code, second.stderr)
	}
	s.must(4, "mount", "--no-local-backup", s.dir, s.point)
	s.must(0, "mount", s.dir, s.point, "--", "true")
	same(t, "the published one is served", content(t, s.dir), map[string]string{"shared": "y", "winner": "theirs"})
	kept, err := filepath.Glob(filepath.Join(s.dir, ".chromafs", "backups", "*", "lost writer"))
	if err != nil || len(kept) != 1 {
		t.Errorf("what was not stored is kept at %q (%v)", kept, err)
	}
}

// W1: a mount that cannot come about, as in a container without /dev/fuse, does not
// take the store from the one that serves it.
func TestMountThatCannotBeFencesNobody(t *testing.T) {
	t.Parallel()
	s, other := newScene(t), newScene(t)
	other.store = s.store
	first := s.start(s.answers(s.point), s.dir, s.point)
	writeFile(t, filepath.Join(s.point, "f"), "x")
	s.must(0, "snapshot", s.point)

	refused := other.command("mount", other.dir, other.point)
	refused.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	refused.Args = append([]string{"sh", "-c", `mount --bind /dev/null /dev/fuse && exec "$0" "$@"`, refused.Path}, refused.Args[1:]...)
	refused.Path = "/bin/sh"
	out, err := refused.CombinedOutput()
	if err == nil || refused.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "/dev/fuse") {
		t.Errorf("mounting without /dev/fuse: %v: %s", err, out)
	}
	writeFile(t, filepath.Join(s.point, "f"), "y")
	s.must(0, "snapshot", s.point)
	first.signal(unix.SIGTERM)
	if code := first.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, first.stderr)
	}
}

// nohup(1) is a usual way to keep a program when its terminal goes: a mount under it
// goes on at SIGHUP, and ends at SIGTERM as ever.
func TestMountUnderNohup(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	program := s.program
	s.program = filepath.Join(t.TempDir(), "nohup")
	script := "#!/bin/sh\ntrap '' HUP\nexec " + program + " \"$@\"\n"
	if err := os.WriteFile(s.program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	d := s.start(s.answers(s.point), s.dir, s.point)
	d.signal(unix.SIGHUP)
	s.must(0, "snapshot", s.point)
	if !mountedAt(t, s.point) {
		t.Error("SIGHUP ended it")
	}
	d.signal(unix.SIGTERM)
	if code := d.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, d.stderr)
	}
}

// The reader of the log may go first ("… | tee log" and Ctrl-C); the final
// snapshot is taken all the same.
func TestNobodyReadsTheLog(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := s.command("mount", s.dir, s.point)
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	eventually(t, "the mount is ready", s.answers(s.point))
	r.Close()
	writeFile(t, filepath.Join(s.point, "file"), "x")
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if st := s.status(s.dir); st.Dirty || st.Last == nil {
		t.Errorf("not everything was stored: %+v", st)
	}
}
