package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/integration/harness"
)

// The rows of the table "At mount" (docs/architecture.md), those where both sides
// can be read. Each starts from a disk and a store in a certain state.

func TestMountStartsEmptyWhereThereIsNoBackup(t *testing.T) {
	harness.EachStore(t, func(t *testing.T, store *harness.Store) {
		w := newWorld(t, store)
		m := w.mount()
		if names := harness.Entries(t, w.point); len(names) != 0 {
			t.Errorf("an empty disk shows %v", names)
		}
		m.Unmount()
		if ids := store.Stored(); len(ids) != 0 {
			t.Errorf("an empty disk was published: %v", ids)
		}
	})
}

// A disk that was wiped may have kept its journal: it counts as empty all the same.
func TestMountRestoresToAnEmptyDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	w.seed()
	id := w.publish().ID
	for _, name := range harness.Entries(t, w.dir) {
		if name != ".chromafs" {
			if err := os.RemoveAll(filepath.Join(w.dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	m := w.mount()
	harness.Verify(t, w.point, seedDocuments())
	m.Unmount()
	if newest := w.store.Newest(); newest == id {
		t.Log("opening the database changed nothing")
	} else if n := len(w.store.Head().History); n != 2 {
		t.Errorf("%d snapshots", n)
	}
}

func TestMountKeepsAnUnpublishedDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	w.seed()
	m := w.mount()
	if s := m.Snapshot(); s.Files < 6 {
		t.Errorf("everything was dirty, yet the snapshot is %+v", s)
	}
	harness.Verify(t, w.store.Restored(w.store.Newest()), seedDocuments())
	harness.Verify(t, w.point, seedDocuments())
	m.Unmount()
}

func TestMountDoesNothingWhereBothSidesAreTheSame(t *testing.T) {
	harness.EachStore(t, func(t *testing.T, store *harness.Store) {
		w := newWorld(t, store)
		w.seed()
		id := w.publish().ID
		m := w.mount()
		if s := m.Snapshot(); s.ID != id || s.BytesUploaded != 0 {
			t.Errorf("nothing was dirty, yet %+v after %s", s, id)
		}
		m.Unmount()
		if newest := store.Newest(); newest != id {
			t.Errorf("a mount without a change published %s", newest)
		}
		if b := w.backups(); len(b) != 0 {
			t.Errorf("local backups: %v", b)
		}
	})
}

// older makes a disk that is a clean copy of the snapshot before the newest. The
// newest has ten documents more.
func older(t *testing.T, store *harness.Store) *world {
	t.Helper()
	ahead := newWorld(t, store)
	ahead.seed()
	ahead.publish()
	behind := ahead.another()
	behind.mountOnce()
	ahead.advance()
	ahead.publish()
	return behind
}

func TestMountBringsAnOlderDiskUpToDate(t *testing.T) {
	t.Parallel()
	t.Run("keeps the old copy", func(t *testing.T) {
		t.Parallel()
		w := older(t, harness.NewFileStore(t))
		m := w.mount()
		harness.Verify(t, w.point, newestDocuments())
		m.Unmount()
		harness.Verify(t, w.oneBackup(), seedDocuments())
	})
	t.Run("--no-local-backup", func(t *testing.T) {
		t.Parallel()
		w := older(t, harness.NewFileStore(t))
		m := w.mount("--no-local-backup")
		harness.Verify(t, w.point, newestDocuments())
		m.Unmount()
		if b := w.backups(); len(b) != 0 {
			t.Errorf("local backups: %v", b)
		}
	})
	t.Run("sync", func(t *testing.T) {
		t.Parallel()
		w := older(t, harness.NewFileStore(t))
		harness.Must(t, 0, w.store, "sync", w.dir)
		harness.Verify(t, w.dir, newestDocuments())
	})
}

// "Local newer": it is kept, and uploaded.
func TestMountKeepsLocalChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	w.seed()
	id := w.publish().ID
	w.advance() // while no daemon ran (J4)
	m := w.mount()
	harness.Verify(t, w.point, newestDocuments())
	if s := m.Snapshot(); s.ID == id || s.BytesUploaded == 0 {
		t.Errorf("local changes were not published: %+v", s)
	}
	m.Unmount()
	if b := w.backups(); len(b) != 0 {
		t.Errorf("local backups: %v", b)
	}
	w.lose()
	w.mountOnce()
	harness.Verify(t, w.dir, newestDocuments())
}

// Diverged: local changes on an older snapshot, and a newer one in the store. The
// published one is served; what was local is kept (R3, W2).
func TestMountOfADivergedDisk(t *testing.T) {
	t.Parallel()
	t.Run("keeps the local side", func(t *testing.T) {
		t.Parallel()
		w := older(t, harness.NewFileStore(t))
		w.add("mine", 0, 20)
		m := w.mount()
		harness.Verify(t, w.point, newestDocuments())
		m.Unmount()
		mine := harness.Documents{"docs": fixtureCount, "mine": 20}
		harness.Verify(t, w.oneBackup(), mine)
		harness.Verify(t, w.oneBranch(), mine)
		w.store.CheckWhole()
	})
	t.Run("--no-local-backup keeps it as a branch", func(t *testing.T) {
		t.Parallel()
		w := older(t, harness.NewFileStore(t))
		w.add("mine", 0, 20)
		w.mountOnce("--no-local-backup")
		harness.Verify(t, w.dir, newestDocuments())
		harness.Verify(t, w.oneBranch(), harness.Documents{"docs": fixtureCount, "mine": 20})
		if b := w.backups(); len(b) != 0 {
			t.Errorf("local backups: %v", b)
		}
		w.store.CheckWhole()
	})
}

// A disk of which no journal tells: an image, a copy of another machine's.
func TestMountOfAnUnknownDisk(t *testing.T) {
	t.Parallel()
	// copied is a disk made by cp -a: its journal is not its own.
	copied := func(t *testing.T) (*world, string) {
		t.Helper()
		origin := newWorld(t, harness.NewFileStore(t))
		origin.seed()
		id := origin.publish().ID
		w := origin.another()
		harness.CopyTree(t, origin.dir, w.dir)
		return w, id
	}
	t.Run("equal content is adopted", func(t *testing.T) {
		t.Parallel()
		w, id := copied(t)
		m := w.mount("--no-local-backup")
		if s := m.Snapshot(); s.ID != id || s.BytesUploaded != 0 {
			t.Errorf("an equal copy was published again: %+v after %s", s, id)
		}
		m.Unmount()
		if b := w.backups(); len(b) != 0 {
			t.Errorf("local backups: %v", b)
		}
	})
	t.Run("other content goes to backups", func(t *testing.T) {
		t.Parallel()
		w, _ := copied(t)
		w.add("mine", 0, 20)
		m := w.mount()
		harness.Verify(t, w.point, seedDocuments())
		m.Unmount()
		harness.Verify(t, w.oneBackup(), harness.Documents{"docs": fixtureCount, "mine": 20})
	})
	t.Run("--prefer-local publishes it", func(t *testing.T) {
		t.Parallel()
		w, id := copied(t)
		w.add("mine", 0, 20)
		want := harness.Documents{"docs": fixtureCount, "mine": 20}
		m := w.mount("--prefer-local")
		harness.Verify(t, w.point, want)
		m.Unmount()
		harness.Verify(t, w.store.Restored(w.store.Newest()), want)
		harness.Verify(t, w.store.Restored(id), seedDocuments())
	})
	t.Run("--no-local-backup refuses", func(t *testing.T) {
		t.Parallel()
		w, _ := copied(t)
		w.add("mine", 0, 20)
		r := w.refused(4, "--no-local-backup")
		harness.Explain(t, r, "--prefer-local", w.dir)
	})
	t.Run("an image with an empty database", func(t *testing.T) {
		t.Parallel()
		w, _ := copied(t)
		w.lose()
		w.add("none", 0, 0)
		m := w.mount()
		harness.Verify(t, w.point, seedDocuments())
		m.Unmount()
		harness.Verify(t, w.oneBackup(), harness.Documents{"none": 0})
	})
}

// A disk that belongs to another store, or is ahead of this one, is nobody's to
// overwrite, on either side.
func TestMountOfAForeignDiskIsRefused(t *testing.T) {
	t.Parallel()
	t.Run("another lineage", func(t *testing.T) {
		t.Parallel()
		w, other := newWorld(t, harness.NewFileStore(t)), newWorld(t, harness.NewFileStore(t))
		w.seed()
		w.publish()
		other.add("others", 0, 5)
		other.publish()
		w.store = other.store
		r := w.refused(4)
		harness.Explain(t, r, w.dir, w.store.Folder)
	})
	t.Run("the store is empty now", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, harness.NewFileStore(t))
		w.seed()
		w.publish()
		w.store = harness.NewFileStore(t)
		w.refused(4)
		if ids := w.store.Stored(); len(ids) != 0 {
			t.Errorf("the refused mount published %v", ids)
		}
	})
	t.Run("ahead of the store", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, harness.NewFileStore(t))
		w.seed()
		w.publish()
		old := filepath.Join(t.TempDir(), "old")
		harness.CopyTree(t, w.store.Folder, old)
		w.advance()
		w.publish()
		if err := os.RemoveAll(w.store.Folder); err != nil {
			t.Fatal(err)
		}
		harness.CopyTree(t, old, w.store.Folder)
		w.refused(4)
		harness.Verify(t, w.dir, newestDocuments())
	})
}

// manifest.json is gone or unreadable, but there is history: never "no backup".
func TestMountWithoutAReadableManifest(t *testing.T) {
	damage := map[string]func(t *testing.T, manifest string){
		"missing": func(t *testing.T, manifest string) {
			if err := os.Remove(manifest); err != nil {
				t.Fatal(err)
			}
		},
		"unreadable": func(t *testing.T, manifest string) {
			if err := os.WriteFile(manifest, []byte(`{"format":1,"hist`), 0o644); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, harm := range damage {
		t.Run(name, func(t *testing.T) {
			harness.EachStore(t, func(t *testing.T, store *harness.Store) {
				w := newWorld(t, store)
				w.seed()
				w.publish()
				w.advance()
				id := w.publish().ID
				harm(t, filepath.Join(store.Folder, "manifest.json"))
				w.lose()
				if err := os.Mkdir(w.dir, 0o755); err != nil {
					t.Fatal(err)
				}
				r := w.refused(5)
				harness.Explain(t, r, id)
				harness.Must(t, 0, store, adoption(t, r)...)
				m := w.mount()
				harness.Verify(t, w.point, newestDocuments())
				m.Unmount()
			})
		})
	}
}

// adoption finds the command that the message offers.
func adoption(t *testing.T, r harness.Result) []string {
	t.Helper()
	for line := range strings.SplitSeq(r.Output(), "\n") {
		if _, command, ok := strings.Cut(line, "chromafs history adopt"); ok {
			id := strings.Fields(command)
			if len(id) > 0 {
				return []string{"history", "adopt", strings.Trim(id[len(id)-1], "`'\".;,)")}
			}
		}
	}
	t.Fatalf("no command is offered: %s", r.Output())
	return nil
}
