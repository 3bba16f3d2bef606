package history

import (
	"bytes"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
)

func TestID(t *testing.T) {
	id, err := NewID(time.Date(2026, 11, 22, 22, 15, 30, 123456789, time.FixedZone("", 7200)), bytes.NewReader([]byte{0x4f, 0x2a}))
	if err != nil || id != "20261122T201530.123Z-4f2a" {
		t.Fatalf("NewID: %q, %v", id, err)
	}
	if got := id.Time(); !got.Equal(time.Date(2026, 11, 22, 20, 15, 30, 123e6, time.UTC)) {
		t.Errorf("Time: %v", got)
	}
	if _, err := NewID(time.Now(), strings.NewReader("x")); err == nil {
		t.Error("NewID without randomness: no error")
	}
	branch := string(id) + "-branch-8c51"
	for text, want := range map[string]bool{
		string(id): true, branch: true, "": false, "latest": false, "..": false,
		"20261122T201530.123Z-4F2A": false, "20261322T201530.123Z-4f2a": false, string(id) + "/x": false,
		string(id) + "\n": false, string(id) + "-branch-": false, string(id) + "-branch-../x": false, "x" + string(id): false,
	} {
		got, err := ParseID(text)
		if (err == nil) != want {
			t.Errorf("ParseID(%q): %v", text, err)
		}
		if err == nil && got.IsBranch() != (text == branch) {
			t.Errorf("IsBranch(%q): %v", text, got.IsBranch())
		}
	}
}

func TestEscapePath(t *testing.T) {
	long := strings.Repeat("n", 255)
	for path, want := range map[string]string{
		"chroma.sqlite3": "chroma.sqlite3",
		"3f2504e0-4f89-11d3-9a0c-0305e82c3301/data_level0.bin": "3f2504e0-4f89-11d3-9a0c-0305e82c3301/data_level0.bin",
		"Grüße €/+ &?#~.txt":                                   "Grüße €/+ &?#~.txt",
		"manifest.json":                                        "%6Danifest.json",
		"lease.json":                                           "%6Cease.json",
		"history/x":                                            "%68istory/x",
		"history":                                              "%68istory",
		"History":                                              "%48istory",
		"a/manifest.json":                                      "a/manifest.json",
		"a/history/b":                                          "a/history/b",
		"a%b":                                                  "a%25b",
		`a\b`:                                                  "a%5Cb",
		"a\nb\x7f":                                             "a%0Ab%7F",
		"a\xffb":                                               "a%FFb",
		"dot.":                                                 "dot%2E",
		"...":                                                  "..%2E",
		"sp ":                                                  "sp%20",
		"\u0085\uffff":                                         "%C2%85%EF%BF%BF",
		".hidden":                                              ".hidden",
		long:                                                   long,
		long + "/x":                                            long + "/x",
		strings.Repeat("%", 100):                               strings.Repeat("%25", 84) + "%/" + strings.Repeat("%25", 16),
		strings.Repeat("%", 100) + "/x":                        strings.Repeat("%25", 84) + "%/" + strings.Repeat("%25", 16) + "/x",
	} {
		got := EscapePath(path)
		if got != want {
			t.Errorf("EscapePath(%q) = %q, want %q", path, got, want)
		}
		if back, err := UnescapePath(got); err != nil || back != path {
			t.Errorf("UnescapePath(%q) = %q, %v, want %q", got, back, err, path)
		}
	}
	for _, key := range []string{"", "a%", "a%2", "a%2g", "a%62", "a%2fb", "manifest.json", "history/x", "a//b", "../x", "/x",
		"dot.", ".chromafs", ".chromafs/x", "a%/b", "%00"} {
		if path, err := UnescapePath(key); err == nil {
			t.Errorf("UnescapePath(%q) = %q, no error", key, path)
		}
	}
}

// Names at their limits have keys that a store can hold, each its own.
func TestLongPathsAreShortened(t *testing.T) {
	keys := map[string]string{}
	for n := 0; n < 900; n += 7 {
		for kind, unit := range map[string]string{"plain": "x", "wide": "é", "raw": "\xff", "percent": "%"} {
			// Segments of 255 bytes or so, with the boundary anywhere.
			name := strings.Repeat("a", n%97) + strings.Repeat(unit, (255-n%97)/len(unit))
			path := strings.Repeat(name+"/", 1+n%9) + strings.Repeat("b", 1+n%255)
			if checkPath(path) != nil {
				t.Fatalf("%d bytes are no path", len(path))
			}
			key := EscapePath(path)
			if err := objstore.CheckKey(key); err != nil || len(key) > maxKey {
				t.Fatalf("%s %d: %d bytes, %v", kind, n, len(key), err)
			}
			if was, ok := keys[key]; ok && was != path {
				t.Fatalf("%q and %q have one key", was, path)
			}
			keys[key] = path
			if long := strings.Contains(key, cutMark); long && unescapes(key) {
				t.Fatalf("%q was read back", key)
			}
		}
	}
	long := strings.Repeat("d/", 1000)
	if got, want := EscapePath(long+"x"), EscapePath(long+"y"); got == want || !strings.HasPrefix(got, strings.Repeat("d/", 300)) {
		t.Errorf("%q, %q", got, want)
	}
}

// Whatever Linux takes for a name is stored, found whole, and comes back.
func TestHostileNames(t *testing.T) {
	f := files{"link \xfe": "-> to \xff\n"}
	for i, name := range []string{"manifest.json", "lease.json", "history/manifest.json", "HISTORY", ".chromafs-zeros-8388608", ".chromafsx/y", "%", "%41", "100%~",
		`back\slash`, "...", "trailing.", "trailing ", " leading", "new\nline", "\x01", "\x7f", "\u0085", "\ufffe", "\u2028", "\ufffd", "\xff", "\xed\xa0\x80",
		"NFC-\u00e9", "NFD-e\u0301", strings.Repeat("\xff", 255), strings.Repeat("%", 255), strings.Repeat("d/", 900) + "x", strings.Repeat("d/", 900) + "y",
		strings.Repeat(strings.Repeat("\xfe", 250)+"/", 8) + "\xfd"} {
		f[name] = content(byte(i), testPart+i)
	}
	w := newWorld(t)
	w.publish(files{"was": "here"})
	m := w.publish(f)
	if _, err := w.c.Verify(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	if got := w.current(); len(got) != len(f)-1 {
		t.Errorf("current holds %d objects, want %d", len(got), len(f)-1)
	}
	d := openDir(t, t.TempDir())
	w.restore(w.options(d, m))
	sameTree(t, "DIR", readTree(t, d.Path()), withFolders(f))
}

func unescapes(key string) bool {
	_, err := UnescapePath(key)
	return err == nil
}

// FuzzEscapePath holds that escaping round-trips, is injective, never meets a key
// of the layout and makes keys that every store can hold.
func FuzzEscapePath(f *testing.F) {
	for _, path := range []string{"a", "manifest.json", "history/x/y", "a%b/c.", "\xff\x00", "..", strings.Repeat("\x01", 255) + "/b",
		strings.Repeat("é", 127), "x/y", "x%/y", "lease.json ", "HISTORY/"} {
		f.Add(path, path+"/y")
	}
	id, err := NewID(testTime, rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if back, err := UnescapePath(a); err == nil && EscapePath(back) != a {
			t.Fatalf("%q and %q are keys of %q", a, EscapePath(back), back)
		}
		if checkPath(a) != nil {
			return
		}
		key := EscapePath(a)
		back, err := UnescapePath(key)
		if shortened := strings.Contains(key, cutMark); shortened != (err != nil) || !shortened && back != a {
			t.Fatalf("%q → %q → %q, %v", a, key, back, err)
		}
		if first, _, _ := strings.Cut(key, "/"); ownName(first) {
			t.Fatalf("%q → %q meets the layout", a, key)
		}
		if ObjectKey(id, a) == ManifestKey(id) {
			t.Fatalf("%q meets the manifest of its snapshot", a)
		}
		if err := objstore.CheckKey(strings.Repeat("p", 150) + "/" + ObjectKey(id+"-branch-"+ID(strings.Repeat("w", 64)), a)); err != nil {
			t.Fatalf("%q → %q: %v", a, key, err)
		}
		if checkPath(b) != nil || a == b {
			return
		}
		other := EscapePath(b)
		if other == key {
			t.Fatalf("%q and %q share the key %q", a, b, key)
		}
		if strings.HasPrefix(other, key+"/") && !strings.HasPrefix(b, a+"/") {
			t.Fatalf("%q → %q is a folder of %q → %q", a, key, b, other)
		}
	})
}
