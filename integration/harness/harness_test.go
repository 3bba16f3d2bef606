package harness

import (
	"os"
	"path/filepath"
	"testing"
)

// Both ways of asking a ChromaDB know the same documents and vectors.
func TestServerAndClientAgree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	Add(t, dir, "docs", 0, 230)
	s := StartServer(t, dir)
	s.Verify(Documents{"docs": 230})
	s.Add("docs", 230, 30)
	s.Add("more", 0, 10)
	s.Stop()
	Verify(t, dir, Documents{"docs": 260, "more": 10})
}

// The check is worth something: a vector index that is older than SQLite, which is
// what careless copies hold, is found although all counts are right.
func TestAStaleIndexIsFound(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	Add(t, dir, "docs", 0, 400)
	segments, err := filepath.Glob(filepath.Join(dir, "*", "data_level0.bin"))
	if err != nil || len(segments) != 1 {
		t.Fatalf("segments: %v, %v", segments, err)
	}
	segment := filepath.Dir(segments[0])
	old := filepath.Join(t.TempDir(), "old")
	CopyTree(t, segment, old)
	Add(t, dir, "docs", 400, 400)
	Verify(t, dir, Documents{"docs": 800})
	if err := os.RemoveAll(segment); err != nil {
		t.Fatal(err)
	}
	CopyTree(t, old, segment)
	found := Inspect(t, dir).Collections["docs"]
	if found.Count != 800 || found.LostCount == 0 {
		t.Errorf("an index of 400 documents under 800 looks whole: %+v", found)
	}
}
