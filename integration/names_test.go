package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/integration/harness"
)

// hostileNames are paths that Linux holds and that a store, a client, JSON, XML or a
// URL may not.
func hostileNames() []string {
	names := []string{
		"manifest.json", "lease.json", "history/manifest.json", "History", "history%2Fx", ".chromafsx", ".chromafs-zeros-8388608", ".chromafs-store",
		"%", "%41", "a%/b", "100%~", `back\slash`, "*?", "<>&'\"", "#frag?query=1", "+ +", "~", "-rf", "...", "..a", "trailing.", "trailing ", " leading",
		"new\nline", "\r", "tab\t", "\x01", "\x1b[31m", "\x7f", "\u0085", "\ufffe", "\uffff", "\ufeffbom", "\u2028", "\ufffd", "\u202egnp",
		"\xff", "\xc3\x28", "\xed\xa0\x80", "latin-\xe9", "\xf0\x9f", "NFC-\u00e9", "NFD-e\u0301", "\U0001f389", "CON", "nul.", "C:",
		strings.Repeat("n", 255), strings.Repeat("\xff", 255), strings.Repeat("%", 255), strings.Repeat("é", 127),
		"deep/" + strings.Repeat("d/", 1500) + "x", "deep/" + strings.Repeat("d/", 1500) + "y",
		strings.Repeat(strings.Repeat("L", 250)+"/", 10) + "x", strings.Repeat(strings.Repeat("\xfe", 250)+"/", 10) + "\xfd",
	}
	for c := 1; c < 256; c++ { // every byte but NUL, inside a name
		if c != '/' {
			names = append(names, "bytes/"+"a"+string([]byte{byte(c)})+"z")
		}
	}
	return names
}

// Every name comes back byte for byte, from every store, taken through a mount and of
// a plain directory; "current" follows, and rotation removes all of it.
func TestHostileNames(t *testing.T) {
	harness.EachStore(t, func(t *testing.T, store *harness.Store) {
		w := newWorld(t, store)
		if err := os.MkdirAll(w.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		m := w.mount("--keep", "1")
		want := map[string]string{}
		for i, name := range hostileNames() {
			want[name] = fmt.Sprint("content ", i)
			full := filepath.Join(w.point, filepath.Dir(name))
			if err := os.MkdirAll(full, 0o755); err != nil {
				t.Fatalf("%q: %v", name, err)
			}
			writeFile(t, w.point+"/"+name, want[name])
		}
		if err := os.Symlink("to \xff\n", filepath.Join(w.point, "link \xfe")); err != nil {
			t.Fatal(err)
		}
		m.Snapshot()
		want["\xff"] = "changed"
		writeFile(t, filepath.Join(w.point, "\xff"), "changed")
		m.Snapshot()
		m.Unmount()
		store.CheckWhole()

		check := func(when string) {
			t.Helper()
			got := map[string]string{}
			walk(t, w.dir, func(path string, info os.FileInfo) {
				switch {
				case info.IsDir():
				case info.Mode()&os.ModeSymlink != 0:
					if target, err := os.Readlink(filepath.Join(w.dir, path)); err != nil || path != "link \xfe" || target != "to \xff\n" {
						t.Errorf("%s: link %q to %q, %v", when, path, target, err)
					}
				default:
					got[path] = readFile(t, w.dir+"/"+path)
				}
			})
			for name, content := range want {
				if got[name] != content {
					t.Errorf("%s: %q holds %q, want %q", when, name, got[name], content)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%s: %d files, want %d", when, len(got), len(want))
			}
		}
		w.lose()
		harness.Must(t, 0, store, "restore", w.dir)
		check("restored")
		want["deep/"+strings.Repeat("d/", 1500)+"x"] = "changed behind the mount"
		writeFile(t, w.dir+"/deep/"+strings.Repeat("d/", 1500)+"x", "changed behind the mount")
		harness.Must(t, 0, store, "sync", "--keep", "1", w.dir)
		store.CheckWhole()
		w.lose()
		w.mountOnce()
		check("restored by a mount")
	})
}
