package integration

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/chromafs/chromafs/integration/harness"
)

// The main job: the disk is lost, the next mount brings everything back (S1, R1),
// with both ways of running ChromaDB, and once more after that.
func TestTheDiskIsLostAndEverythingComesBack(t *testing.T) {
	harness.EachStore(t, func(t *testing.T, store *harness.Store) {
		w := newWorld(t, store)
		m := w.mount()
		harness.Add(t, w.point, "docs", 0, 450)
		harness.Add(t, w.point, "notes", 0, 30)
		want := harness.Documents{"docs": 450, "notes": 30}
		first := m.Snapshot()
		if again := m.Snapshot(); again.ID != first.ID || again.BytesUploaded != 0 {
			t.Errorf("nothing changed, but a second snapshot is %+v after %+v (S4)", again, first)
		}
		m.Unmount()

		w.lose()
		m = w.mount()
		harness.Verify(t, w.point, want)

		// restore → write → snapshot → restore again
		harness.Add(t, w.point, "docs", 450, 100)
		want["docs"] += 100
		second := m.Snapshot()
		m.Kill()
		w.lose()
		m = w.mount()
		harness.Verify(t, w.point, want)
		m.Unmount()

		// Without chromafs: the plain objects are a ChromaDB.
		harness.Verify(t, store.Restored(first.ID), harness.Documents{"docs": 450, "notes": 30})
		harness.Verify(t, store.Restored(second.ID), want)
		harness.Verify(t, store.Current(), want)
		harness.Verify(t, w.dir, want)
		store.CheckWhole()
	})
}

func TestChromaRunSurvivesTheLossOfItsDisk(t *testing.T) {
	harness.EachStore(t, func(t *testing.T, store *harness.Store) {
		w := newWorld(t, store)
		m := w.mount()
		server := harness.StartServer(t, w.point)
		server.Add("docs", 0, 450)
		server.Add("notes", 0, 30)
		want := harness.Documents{"docs": 450, "notes": 30}
		m.Snapshot() // with the server running
		server.Stop()
		m.Unmount()

		w.lose()
		m = w.mount()
		server = harness.StartServer(t, w.point)
		server.Verify(want)
		server.Add("docs", 450, 50)
		want["docs"] += 50
		server.Stop()
		m.Unmount() // publishes what came after the snapshot

		w.lose()
		m = w.mount()
		harness.Verify(t, w.point, want)
		m.Unmount()
	})
}

// MOUNTPOINT may be DIR itself, so that an application's path need not change.
func TestMountOverTheDirectoryItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	w.seed()
	w.point = w.dir
	m := w.mount()
	harness.Verify(t, w.point, seedDocuments())
	harness.Add(t, w.point, "docs", fixtureCount, 10)
	if harness.Exists(t, filepath.Join(w.point, ".chromafs")) {
		t.Error(".chromafs is visible through the mount")
	}
	m.Snapshot()
	m.Status()

	other := *w
	other.point = filepath.Join(t.TempDir(), "elsewhere")
	r := harness.RunToEnd(t, other.options(), 2)
	harness.Explain(t, r, w.dir)

	m.Unmount()
	w.lose()
	m = w.mount()
	harness.Verify(t, w.point, harness.Documents{"docs": fixtureCount + 10})
	m.Unmount()
}

// A container's entrypoint: the command runs on the mount, gets the signals, and
// its exit code is the one that counts.
func TestMountRunsACommand(t *testing.T) {
	t.Parallel()
	t.Run("chroma run, SIGTERM", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, harness.NewFileStore(t))
		port := harness.FreePort(t)
		o := w.options("--stop-timeout", "10s")
		o.Command = harness.ServerArgs(t, w.point, port)
		m := harness.Launch(t, o)
		server := harness.ConnectServer(t, port)
		server.WaitReady()
		server.Add("docs", 0, 300)
		if code := m.Stop(); code != 0 {
			t.Errorf("exit code %d after SIGTERM: %s", code, m.Log())
		}
		w.lose()
		again := w.mount()
		harness.Verify(t, w.point, harness.Documents{"docs": 300})
		again.Unmount()
	})
	t.Run("its exit code", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, harness.NewFileStore(t))
		o := w.options()
		o.Command = []string{"sh", "-c", "echo kept > '" + w.point + "/file'; exit 7"}
		harness.RunToEnd(t, o, 7)
		kept, err := os.ReadFile(filepath.Join(w.store.Folder, "file"))
		if err != nil || string(kept) != "kept\n" {
			t.Errorf("the command's file is not in the store: %q, %v", kept, err)
		}
	})
}

// --daemon returns when the mount answers.
func TestDaemon(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	w.seed()
	if err := os.MkdirAll(w.point, 0o755); err != nil {
		t.Fatal(err)
	}
	harness.Must(t, 0, w.store, "mount", "--daemon", w.dir, w.point)
	t.Cleanup(func() {
		if harness.Mounted(t, w.point) {
			harness.Must(t, 0, nil, "unmount", w.point)
		}
	})
	if !harness.Exists(t, filepath.Join(w.point, "chroma.sqlite3")) {
		t.Error("the mount does not answer yet")
	}
	harness.Must(t, 0, nil, "snapshot", w.point)
	harness.Must(t, 0, nil, "status", "--check", w.dir)
	harness.Must(t, 0, nil, "unmount", w.point)
	if harness.Mounted(t, w.point) {
		t.Error("still mounted after unmount")
	}
}
