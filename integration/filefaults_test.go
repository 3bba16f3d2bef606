package integration

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/chromafs/chromafs/integration/harness"
)

// A file:// store whose disk fails at the nth object that is written, before the object
// is there or after: the snapshot is published or not, as it says, and the next one
// leaves nothing of either.
func TestTheFileStoreFailsAtEachWrite(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"objstore/file-written=error:ENOSPC", "objstore/file-renamed=error:EIO"} {
		t.Run(filepath.Base(point), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, harness.NewFileStore(t))
			w.mountOnce()
			writeFile(t, filepath.Join(w.dir, "stays"), "stays")
			writeFile(t, filepath.Join(w.dir, "changes"), "0")
			writeFile(t, filepath.Join(w.dir, "goes-0"), "0")
			w.publish()
			failures := 0
			for n := 0; ; n++ {
				before := w.store.Newest()
				writeFile(t, filepath.Join(w.dir, "changes"), fmt.Sprint(n+1))
				writeFile(t, filepath.Join(w.dir, fmt.Sprintf("goes-%d", n+1)), "comes")
				remove(t, filepath.Join(w.dir, fmt.Sprintf("goes-%d", n)))
				r, hit := harness.Failing(t, fmt.Sprintf("%s+%d*1", point, n), w.store, "snapshot", "--keep", "2", w.dir)
				if published := w.store.Newest() != before; published != (r.Code == 0) {
					t.Fatalf("write %d fails: published is %v, yet it exited with %d: %s", n+1, published, r.Code, r.Output())
				}
				for _, id := range w.store.Head().History {
					harness.Must(t, 0, w.store, "history", "verify", id)
				}
				harness.Must(t, 0, w.store, "snapshot", "--keep", "2", w.dir)
				w.store.CheckTidy()
				if t.Failed() {
					t.Fatalf("write %d failed: %s", n+1, r.Output())
				}
				if !hit {
					break
				}
				failures++
			}
			if failures < 5 {
				t.Errorf("only %d writes failed", failures)
			}
		})
	}
}
