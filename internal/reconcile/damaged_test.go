package reconcile

import (
	"errors"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
)

func (m *machine) spoil(key, content string) {
	m.t.Helper()
	if _, err := m.store.Put(m.t.Context(), key, strings.NewReader(content), int64(len(content)), objstore.PutOptions{}); err != nil {
		m.t.Fatal(err)
	}
}

// A newest snapshot that is damaged, whatever of it: mount, restore and sync name an
// older one, that can be restored and served, and the next snapshot is whole.
func TestADamagedNewestSnapshotIsNotTheEnd(t *testing.T) {
	for name, damage := range map[string]func(m *machine, newest history.ID){
		"both copies of a file": func(m *machine, newest history.ID) {
			m.spoil(history.ObjectKey(newest, "chroma.sqlite3"), "bad")
			m.spoil(history.CurrentKey("chroma.sqlite3"), "bad")
		},
		"the manifest": func(m *machine, newest history.ID) { m.spoil(history.ManifestKey(newest), "{bad") },
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := pair(t)
			all := ids(t, a)
			a.stop()
			damage(a, all[1])
			m := newMachine(t, a.store).start()
			sync := m.env()
			sync.Takeover = nil
			for what, try := range map[string]func() error{
				"mount":   func() error { _, err := Run(t.Context(), m.env()); return err },
				"sync":    func() error { _, err := Run(t.Context(), sync); return err },
				"restore": func() error { _, err := RestoreAt(t.Context(), m.env(), ""); return err },
			} {
				err := try()
				if !errors.Is(err, history.ErrIntegrity) || exitcode.Of(err) != exitcode.Integrity ||
					!strings.Contains(exitcode.Hint(err), "restore --at "+string(all[0])) {
					t.Errorf("%s: %v; next: %s", what, err, exitcode.Hint(err))
				}
			}
			m.restore(all[0])
			m.wantFiles(one)
			m.restart().mount(RowDirty, Keep)
			r, err := m.u.Snapshot(t.Context())
			if err != nil || r.Sequence != 3 || r.Untidy != "" {
				t.Fatalf("%+v, %v", r, err)
			}
			fresh := newMachine(t, a.store).start()
			fresh.mount(RowEmpty, Restore)
			fresh.wantFiles(one)
		})
	}
}
