package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var branchID = regexp.MustCompile(`\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{4}-branch-[0-9a-zA-Z]+`)

// branches returns what history list --json says, branches and snapshots apart.
func (s *scene) listed() (branches, snapshots []listedJSON) {
	s.t.Helper()
	var all []listedJSON
	if err := json.Unmarshal([]byte(s.must(0, "history", "list", "--json").stdout), &all); err != nil {
		s.t.Fatal(err)
	}
	for _, one := range all {
		switch {
		case one.Error != "":
			s.t.Errorf("%+v", one)
		case one.Branch:
			branches = append(branches, one)
		default:
			snapshots = append(snapshots, one)
		}
	}
	if n := len(snapshots); n > 0 && all[len(all)-1] != snapshots[n-1] {
		s.t.Errorf("the newest snapshot is not the last: %+v", all)
	}
	return branches, snapshots
}

// folder returns what a branch holds as plain files, but for its manifest.
func (s *scene) folder(id string) map[string]string {
	s.t.Helper()
	files := content(s.t, filepath.Join(s.store, "history", id))
	delete(files, "manifest.json")
	return files
}

// W1, W2: a mount that another one has left behind goes on serving, stores what it
// holds as branches, says so, and exits with 4; that can be restored, byte for byte,
// and is published then.
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
	fill(t, s.point)
	r := s.must(4, "snapshot", s.point)
	id := branchID.FindString(r.stderr)
	if id == "" || !strings.Contains(r.stderr, "another writer") || !strings.Contains(r.stderr, "chromafs restore --at "+id) {
		t.Fatal(r.stderr)
	}
	same(t, "the branch", s.folder(id), content(t, s.point))
	if st := s.status(s.point); !st.Fenced || !st.Dirty || st.Branch == nil || st.Branch.ID != id || st.LastError != "" {
		t.Errorf("status: %+v", st)
	}
	if r := s.must(1, "status", "--check", s.point); !strings.Contains(r.stdout, id) || !strings.Contains(r.stderr, "another writer") {
		t.Errorf("status: %s%s", r.stdout, r.stderr)
	}
	writeFile(t, filepath.Join(other.point, "winner"), "theirs")
	other.must(0, "snapshot", other.point)

	writeFile(t, filepath.Join(s.point, "late"), "mine, and late")
	mine := content(t, s.point)
	r = s.must(4, "unmount", s.point)
	last := branchID.FindString(r.stderr)
	if last == "" || last == id || !strings.Contains(r.stderr, "chromafs restore --at "+last+" "+s.dir) {
		t.Errorf("unmount: %s", r.stderr)
	}
	if code := first.wait(); code != 4 || !strings.Contains(first.stderr.String(), last) {
		t.Errorf("exit code %d: %s", code, first.stderr)
	}
	second.signal(unix.SIGTERM)
	if code := second.wait(); code != 0 {
		t.Errorf("the winner: exit code %d: %s", code, second.stderr)
	}
	if branches, snapshots := s.listed(); len(branches) != 2 || branches[0].ID != id || branches[1].ID != last || branches[0].Writer == "" || len(snapshots) != 3 {
		t.Errorf("branches %+v, snapshots %+v", branches, snapshots)
	}
	if r := s.must(0, "history", "list"); !strings.Contains(r.stdout, "\nBranches") || !strings.Contains(r.stdout, last) {
		t.Error(r.stdout)
	}
	s.must(0, "history", "verify", last)

	// The next mount serves what was published; the branch is there already.
	s.must(0, "mount", s.dir, s.point, "--", "true")
	same(t, "the published one is served", content(t, s.dir), map[string]string{"shared": "y", "winner": "theirs"})
	kept, err := filepath.Glob(filepath.Join(s.dir, ".chromafs", "backups", "*", "late"))
	if err != nil || len(kept) != 1 {
		t.Errorf("what was not published is kept at %q (%v)", kept, err)
	}
	if branches, _ := s.listed(); len(branches) != 2 {
		t.Errorf("branches %+v", branches)
	}

	// The way back.
	s.must(0, "restore", "--at", last, s.dir)
	same(t, "the branch is restored", content(t, s.dir), mine)
	s.must(0, "mount", s.dir, s.point, "--", "true")
	_, snapshots := s.listed()
	same(t, "the branch is published", s.folder(snapshots[len(snapshots)-1].ID), mine)
}

// A mount that was left behind and has nothing that was not published ends with 0.
func TestLeftBehindWithNothingNew(t *testing.T) {
	t.Parallel()
	s, other := newScene(t), newScene(t)
	other.store = s.store
	d := s.start(s.answers(s.point), s.dir, s.point)
	writeFile(t, filepath.Join(s.point, "shared"), "x")
	s.must(0, "snapshot", s.point)
	other.must(0, "mount", other.dir, other.point, "--", "true")
	s.must(4, "snapshot", s.point)
	writeFile(t, filepath.Join(s.point, "shared"), "x")
	d.signal(unix.SIGTERM)
	if code := d.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, d.stderr)
	}
	if branches, _ := s.listed(); len(branches) > 0 {
		t.Errorf("branches %+v", branches)
	}
}

// W2: --no-local-backup drops what is local only once it is a branch.
func TestBranchInsteadOfALocalBackup(t *testing.T) {
	t.Parallel()
	for name, command := range map[string][]string{"mount": {"mount", "--no-local-backup", "DIR", "POINT", "--", "true"}, "sync": {"sync", "--no-local-backup", "DIR"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, other := newScene(t), newScene(t)
			other.store = s.store
			s.must(0, "mount", s.dir, s.point, "--", "sh", "-c", "echo 1 >"+filepath.Join(s.point, "shared"))
			other.must(0, "mount", other.dir, other.point, "--", "sh", "-c", "echo 2 >"+filepath.Join(other.point, "shared"))
			fill(t, s.dir)
			mine := content(t, s.dir)
			for i, arg := range command {
				command[i] = strings.NewReplacer("DIR", s.dir, "POINT", s.point).Replace(arg)
			}

			history := filepath.Join(s.store, "history")
			full := s.command(command...) // a store that takes no new folder in history
			full.Args = append([]string{"sh", "-c", `mount --bind -o ro "` + history + `" "` + history + `" && exec "$0" "$@"`, full.Path}, full.Args[1:]...)
			full.Path, full.SysProcAttr = "/bin/sh", &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
			out, err := full.CombinedOutput()
			if err == nil || full.ProcessState.ExitCode() != 4 || !strings.Contains(string(out), "could not be stored as a branch") {
				t.Errorf("without a branch: %v: %s", err, out)
			}
			same(t, "a refusal", content(t, s.dir), mine)

			r := s.must(0, command...)
			branches, _ := s.listed()
			if len(branches) != 1 || !strings.Contains(r.stdout+r.stderr, branches[0].ID) {
				t.Fatalf("branches %+v: %s%s", branches, r.stdout, r.stderr)
			}
			same(t, "the published one", content(t, s.dir), map[string]string{"shared": "2\n"})
			same(t, "the branch", s.folder(branches[0].ID), mine)
			if kept, _ := filepath.Glob(filepath.Join(s.dir, ".chromafs", "backups", "*")); len(kept) > 0 {
				t.Errorf("kept all the same: %q", kept)
			}
		})
	}
}

// DESIGN §8: a mount that began with --offline goes on serving what it has; when the
// store answers and has moved on, what is local becomes a branch.
func TestOfflineMountBecomesABranch(t *testing.T) {
	t.Parallel()
	s, other := newScene(t), newScene(t)
	other.store = s.store
	s.must(0, "mount", s.dir, s.point, "--", "sh", "-c", "echo 1 >"+filepath.Join(s.point, "shared"))
	other.must(0, "mount", other.dir, other.point, "--", "sh", "-c", "echo 2 >"+filepath.Join(other.point, "shared"))
	away := s.store + " is away"
	if err := os.Rename(s.store, away); err != nil {
		t.Fatal(err)
	}
	writeFile(t, s.store, "a file where the store should be")
	d := s.start(s.answers(s.point), "--offline", "--store-timeout", "0s", s.dir, s.point)
	writeFile(t, filepath.Join(s.point, "offline"), "mine")
	if err := os.Remove(s.store); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, s.store); err != nil {
		t.Fatal(err)
	}
	id := branchID.FindString(s.must(4, "snapshot", s.point).stderr)
	same(t, "what is served stays", content(t, s.point), map[string]string{"shared": "1\n", "offline": "mine"})
	same(t, "the branch", s.folder(id), content(t, s.point))
	d.signal(unix.SIGTERM)
	if code := d.wait(); code != 4 {
		t.Errorf("exit code %d: %s", code, d.stderr)
	}
	s.must(0, "mount", s.dir, s.point, "--", "true")
	same(t, "the next mount", content(t, s.dir), map[string]string{"shared": "2\n"})
	if branches, _ := s.listed(); len(branches) != 1 || branches[0].ID != id {
		t.Errorf("branches %+v", branches)
	}
}

// history prune removes branches only when it is asked to, and confirmed.
func TestPruneBranches(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.must(0, "mount", s.dir, s.point, "--", "sh", "-c", "echo 1 >"+filepath.Join(s.point, "shared"))
	if r := s.must(0, "history", "prune", "--branches", "--yes"); !strings.Contains(r.stdout, "No branches") {
		t.Error(r.stdout)
	}
	other := newScene(t)
	other.store = s.store
	other.must(0, "mount", other.dir, other.point, "--", "sh", "-c", "echo 2 >"+filepath.Join(other.point, "shared"))
	writeFile(t, filepath.Join(s.dir, "shared"), "mine")
	s.must(0, "sync", s.dir)
	branches, snapshots := s.listed()
	if len(branches) != 1 {
		t.Fatalf("branches %+v", branches)
	}
	id := branches[0].ID
	if r := s.must(0, "history", "prune"); !strings.Contains(r.stdout, "Left alone, a branch: "+id) {
		t.Error(r.stdout)
	}
	if r := s.must(2, "history", "prune", "--branches"); !strings.Contains(r.stdout, id) || !strings.Contains(r.stderr, "--yes") {
		t.Errorf("unconfirmed: %s%s", r.stdout, r.stderr)
	}
	s.must(0, "history", "verify", id)
	if r := s.must(0, "history", "prune", "--branches", "--yes"); !strings.Contains(r.stdout, id) || !strings.Contains(r.stdout, "Removed 1 branch from") {
		t.Error(r.stdout)
	}
	if b, after := s.listed(); len(b) > 0 || len(after) != len(snapshots) {
		t.Errorf("branches %+v, snapshots %+v", b, after)
	}
	if r := s.must(2, "restore", "--at", id, s.dir); !strings.Contains(r.stderr, "no such snapshot") {
		t.Error(r.stderr)
	}
}
