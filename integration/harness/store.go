package harness

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Store is an object store of its own for one test. Its objects are plain files
// below Folder, for file:// and for versitygw alike, so that a test can look at
// them, and damage them, behind chromafs's back.
type Store struct {
	t        testing.TB
	Folder   string // of the prefix
	URL      string
	Endpoint string // s3 only
	Region   string // s3 only
	Key      string // s3 only
	Secret   string // s3 only
}

// NewFileStore makes a file:// store. Its parent exists, it does not.
func NewFileStore(t testing.TB) *Store {
	return FileStore(t, filepath.Join(t.TempDir(), "bucket"))
}

// FileStore is the file:// store in a folder.
func FileStore(t testing.TB, folder string) *Store {
	return &Store{t: t, Folder: folder, URL: "file://" + folder}
}

// EachStore runs a test on a file:// store and on an S3 server.
func EachStore(t *testing.T, test func(t *testing.T, s *Store)) {
	for name, make := range map[string]func(testing.TB) *Store{"file": NewFileStore, "s3": NewS3Store} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, make(t))
		})
	}
}

func (s *Store) flags() []string {
	if s == nil {
		return nil
	}
	flags := []string{"--store", s.URL}
	if s.Endpoint != "" {
		flags = append(flags, "--s3-endpoint", s.Endpoint, "--s3-region", s.Region)
	}
	return flags
}

func (s *Store) env() []string {
	if s == nil || s.Key == "" {
		return nil
	}
	return []string{"AWS_ACCESS_KEY_ID=" + s.Key, "AWS_SECRET_ACCESS_KEY=" + s.Secret}
}

// Head is the store's manifest.json, as far as tests look at it.
type Head struct {
	Lineage  string   `json:"lineage"`
	Sequence uint64   `json:"sequence"`
	Epoch    uint64   `json:"epoch"`
	History  []string `json:"history"`
}

// Head reads manifest.json.
func (s *Store) Head() Head {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Folder, "manifest.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	var h Head
	if err := json.Unmarshal(b, &h); err != nil {
		s.t.Fatalf("manifest.json: %v: %s", err, b)
	}
	return h
}

// Newest is the id of the newest snapshot.
func (s *Store) Newest() string {
	s.t.Helper()
	h := s.Head().History
	if len(h) == 0 {
		s.t.Fatal("the store has no snapshot")
	}
	return h[len(h)-1]
}

// Snapshot is the folder that holds the files of a snapshot.
func (s *Store) Snapshot(id string) string { return filepath.Join(s.Folder, "history", id) }

// Stored lists the ids that have objects, sorted, branches left out.
func (s *Store) Stored() []string {
	s.t.Helper()
	return s.stored(func(id string) bool { return !isBranch(id) })
}

// Branches lists the branches that have objects, complete or not, sorted.
func (s *Store) Branches() []string {
	s.t.Helper()
	return s.stored(isBranch)
}

func isBranch(id string) bool { return strings.Contains(id, "-branch-") }

func (s *Store) stored(which func(id string) bool) (ids []string) {
	s.t.Helper()
	for _, name := range Entries(s.t, filepath.Join(s.Folder, "history")) {
		if which(name) && holdsFiles(s.t, s.Snapshot(name)) {
			ids = append(ids, name)
		}
	}
	slices.Sort(ids)
	return ids
}

func holdsFiles(t testing.TB, folder string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(folder, func(_ string, d fs.DirEntry, err error) error {
		found = found || err == nil && d.Type().IsRegular()
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return found
}

// CheckWhole fails the test unless the ids that manifest.json lists are those that
// have objects, and each one, and each branch, verifies to the last byte.
func (s *Store) CheckWhole() {
	s.t.Helper()
	listed := slices.Sorted(slices.Values(s.Head().History))
	if stored := s.Stored(); !slices.Equal(listed, stored) {
		s.t.Errorf("manifest.json lists %d snapshots, %d have objects\nlisted: %v\nstored: %v", len(listed), len(stored), listed, stored)
	}
	for _, id := range append(listed, s.Branches()...) {
		Must(s.t, 0, s, "history", "verify", id)
	}
}

// Restored copies a snapshot as plain files, as "aws s3 cp --recursive" would, to
// a new folder. No chromafs takes part.
func (s *Store) Restored(id string) string {
	s.t.Helper()
	to := filepath.Join(s.t.TempDir(), "plain")
	copyFiles(s.t, s.Snapshot(id), to)
	return to
}

// Current copies the objects that follow the newest snapshot, as plain files.
func (s *Store) Current() string {
	s.t.Helper()
	to := filepath.Join(s.t.TempDir(), "plain")
	copyFiles(s.t, s.Folder, to, "history")
	return to
}

// copyFiles copies contents only, leaving out what the server keeps for itself.
func copyFiles(t testing.TB, from, to string, without ...string) {
	t.Helper()
	err := filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		if slices.Contains(without, rel) || strings.HasPrefix(rel, ".") && rel != "." {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), content, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// CheckNoUploads fails the test if the server still holds parts of an upload that is
// none of its objects.
func (s *Store) CheckNoUploads() {
	s.t.Helper()
	for folder := s.Folder; folder != filepath.Dir(folder); folder = filepath.Dir(folder) {
		uploads := filepath.Join(folder, ".sgwtmp", "multipart")
		if !Exists(s.t, uploads) {
			continue
		}
		if holdsFiles(s.t, uploads) {
			s.t.Errorf("unfinished uploads are left in %s", uploads)
		}
	}
}

// CheckTidy fails the test unless the store holds the listed snapshots, current as
// the newest one, and nothing else: no object, no unfinished upload.
func (s *Store) CheckTidy() {
	s.t.Helper()
	want := map[string]bool{"manifest.json": true}
	for _, id := range s.Head().History {
		want[path.Join("history", id, "manifest.json")] = true
		for _, name := range s.files(id) {
			want[path.Join("history", id, name)] = true
			if id == s.Newest() {
				want[name] = true
			}
		}
	}
	found := map[string]bool{}
	err := filepath.WalkDir(s.Folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(s.Folder, name)
		found[rel] = rel != ".chromafs-store/lock" && rel != "lease.json"
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	for key, object := range found {
		if object && !want[key] {
			s.t.Errorf("litter in the store: %s", key)
		}
	}
	for key := range want {
		if !found[key] {
			s.t.Errorf("missing in the store: %s", key)
		}
	}
	if s.Endpoint != "" {
		s.CheckNoUploads()
	}
}

// files lists the files of a snapshot, by its manifest. Their names need no escape.
func (s *Store) files(id string) (names []string) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Snapshot(id), "manifest.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	var m struct {
		Entries []struct{ Path, Type string }
	}
	if err := json.Unmarshal(b, &m); err != nil {
		s.t.Fatalf("the manifest of %s: %v", id, err)
	}
	for _, e := range m.Entries {
		if e.Type == "file" {
			names = append(names, e.Path)
		}
	}
	return names
}
