package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

// Whatever keeps chromafs from knowing what the store holds, an empty database
// never takes the place of a real one (R4), and nothing is touched.
func TestMountRefusesWhatIsNoAnswer(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		spoil func(t *testing.T, s *harness.Store) *harness.Store
		hint  string // what the message must speak of
	}{
		"a web page that says 404": {spoil: behind(harness.HTML404)},
		"a key that may not list":  {spoil: behind(harness.Forbidden)},
		"a wrong secret": {spoil: func(_ *testing.T, s *harness.Store) *harness.Store {
			c := *s
			c.Secret = "not-the-secret-of-this-key"
			return &c
		}},
		"an unknown key": {spoil: func(_ *testing.T, s *harness.Store) *harness.Store {
			c := *s
			c.Key = "nobody"
			return &c
		}},
		"a missing bucket": {spoil: func(_ *testing.T, s *harness.Store) *harness.Store {
			c := *s
			c.URL = "s3://no-such-bucket"
			return &c
		}, hint: "no-such-bucket"},
		"a missing parent folder": {spoil: func(t *testing.T, _ *harness.Store) *harness.Store {
			s := harness.NewFileStore(t)
			s.Folder = filepath.Join(s.Folder, "missing", "prefix")
			s.URL = "file://" + s.Folder
			return s
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := c.spoil(t, harness.NewS3Store(t))
			w := newWorld(t, store)
			if err := os.Mkdir(w.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			r := w.refused(3, "--store-timeout", "20s")
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("asking again does not help, yet it took %v", took)
			}
			harness.Explain(t, r, c.hint)
			if strings.Contains(r.Output(), store.Secret) && store.Secret != "" {
				t.Errorf("the secret is in the message: %s", r.Output())
			}

			w.refused(3, "--offline", "--store-timeout", "1s") // there is no local copy

			// A disk with data is not touched either, and served with --offline.
			w.seed()
			w.refused(3, "--store-timeout", "20s")
			m := w.mount("--offline", "--store-timeout", "1s")
			harness.Verify(t, w.point, seedDocuments())
			m.Kill()
		})
	}
}

func behind(trouble harness.Trouble) func(*testing.T, *harness.Store) *harness.Store {
	return func(t *testing.T, s *harness.Store) *harness.Store {
		seen, gate := harness.Behind(t, s)
		gate.Set(trouble)
		return seen
	}
}

func TestMountWaitsForAStoreThatIsDown(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]harness.Trouble{"dead": harness.Dead, "overloaded": harness.Overload} {
		t.Run(name+", for good", func(t *testing.T) {
			t.Parallel()
			store, gate := harness.Behind(t, harness.NewS3Store(t))
			gate.Set(trouble)
			w := newWorld(t, store)
			if err := os.Mkdir(w.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			r := w.refused(3, "--store-timeout", "3s")
			if took := time.Since(start); took < 2*time.Second || took > 30*time.Second {
				t.Errorf("--store-timeout 3s took %v", took)
			}
			harness.Explain(t, r, "backups")
			w.refused(3, "--offline", "--store-timeout", "1s") // there is no local copy
			w.seed()
			m := w.mount("--offline", "--store-timeout", "1s")
			harness.Verify(t, w.point, seedDocuments())
			m.Kill()
		})
		t.Run(name+", for a while", func(t *testing.T) {
			t.Parallel()
			store, gate := harness.Behind(t, harness.NewS3Store(t))
			w := newWorld(t, store)
			w.seed()
			w.publish()
			w.lose()
			gate.Set(trouble)
			m := harness.Launch(t, w.options("--store-timeout", "60s"))
			before := gate.Requests()
			harness.Eventually(t, 30*time.Second, "the store is asked twice", func() bool { return gate.Requests() >= before+2 })
			gate.Set(harness.None)
			m.WaitReady()
			harness.Verify(t, w.point, seedDocuments())
			m.Unmount()
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		t.Parallel()
		store := harness.NewS3Store(t)
		store.Endpoint = fmt.Sprintf("http://127.0.0.1:%d", harness.FreePort(t))
		w := newWorld(t, store)
		if err := os.Mkdir(w.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		w.refused(3, "--store-timeout", "2s")
	})
}

// F4: a store that is down is no trouble of the application's. What it did
// meanwhile is uploaded once the store is back, without anyone asking.
func TestTheStoreIsDownWhileMounted(t *testing.T) {
	t.Parallel()
	store, gate := harness.Behind(t, harness.NewS3Store(t))
	w := newWorld(t, store)
	w.seed()
	m := w.mount("--interval", "2s", "--settle", "200ms")
	harness.Eventually(t, time.Minute, "a first snapshot by itself", func() bool {
		return len(store.Stored()) > 0 && harness.Exists(t, filepath.Join(store.Folder, "manifest.json"))
	})
	gate.Set(harness.Dead)
	before := gate.Requests()
	harness.Add(t, w.point, "docs", fixtureCount, 10)
	harness.Verify(t, w.point, newestDocuments())
	harness.Eventually(t, time.Minute, "it keeps trying", func() bool { return gate.Requests() >= before+3 })
	harness.Eventually(t, 20*time.Second, "status --check exits with 1", func() bool {
		return harness.Chromafs(t, nil, "status", "--check", w.point).Code == 1
	})
	gate.Set(harness.None)
	harness.Eventually(t, 2*time.Minute, "the store has what was added while it was down", func() bool {
		return harness.Chromafs(t, nil, "status", "--check", w.point).Code == 0 && !m.Dirty()
	})
	m.Kill()
	w.lose()
	w.mountOnce()
	harness.Verify(t, w.dir, newestDocuments())
}
