package history

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files of this format version")

func goldenManifest() *Manifest {
	entry := func(path string, typ tree.Type, mode uint32) tree.Entry {
		return tree.Entry{Path: path, Type: typ, Mode: mode, UID: 1000, GID: 1001, ModTime: 1795378530123456789}
	}
	file := func(path string, size int64, parts ...tree.Hash) tree.Record {
		e := entry(path, tree.File, 0o644)
		e.Size = size
		return tree.Record{Entry: e, PartSize: tree.PartSize(size), Parts: parts, ETag: "9a0364b9e99bb480dd25e1f0284c8555-2"}
	}
	link := entry("latest", tree.Symlink, 0o777)
	link.Target = "seg/\xfe<&>"
	return &Manifest{Format: 1, Lineage: "3a9be1", Sequence: 7, Epoch: 3, Writer: "8c51", Nonce: "00ff", ID: "20261122T201530.123Z-4f2a",
		Created: testTime.Add(456789), Consistency: CrashConsistent, Entries: []tree.Record{
			file("chroma.sqlite3", 8<<20+1, tree.Hash{1, 2}, tree.Hash{3}),
			file("empty", 0),
			{Entry: link},
			{Entry: entry("seg", tree.Dir, 0o1755)},
			file("seg/\xff\n\u2028.bin", 1, tree.Hash{31: 9}),
		}}
}

func goldenHead() Head {
	return Head{Format: 1, Lineage: "3a9be1", Sequence: 7, Epoch: 3, Writer: "8c51", Nonce: "00ff",
		Newest: &Summary{ID: "20261122T201530.123Z-4f2a", Created: testTime, Files: 3, Bytes: 8388610,
			ManifestSHA256: strings.Repeat("0a", 32)},
		History: []ID{"20261122T191530.001Z-0001", "20261122T201530.123Z-4f2a"}}
}

// TestGolden holds that what format version 1 wrote is read, and still written so.
func TestGolden(t *testing.T) {
	manifest, err := EncodeManifest(goldenManifest())
	if err != nil {
		t.Fatal(err)
	}
	head, err := EncodeHead(goldenHead())
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"testdata/manifest-v1.json": manifest, "testdata/head-v1-sum.json": head} {
		if *rewrite {
			if err := os.WriteFile(name, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(data, want) {
			t.Errorf("%s: written differently now:\n%s", name, data)
		}
	}
	m, err := DecodeManifest(manifest)
	if err != nil || !reflect.DeepEqual(m, goldenManifest()) {
		t.Errorf("manifest: %v\n%+v", err, m)
	}
	h, err := DecodeHead(head)
	if err != nil || !reflect.DeepEqual(h, goldenHead()) {
		t.Errorf("head: %v\n%+v", err, h)
	}
}

// Heads that were written before they had a sum are read.
func TestHeadWithoutASum(t *testing.T) {
	data, err := os.ReadFile("testdata/head-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	if h, err := DecodeHead(data); err != nil || !reflect.DeepEqual(h, goldenHead()) {
		t.Errorf("%+v, %v", h, err)
	}
}

// Whichever bit of a head flips on its way, what is read is the head or an error: a
// wrong epoch would fence a writer, a wrong id lose a snapshot.
func TestEveryBitOfAHeadIsGuarded(t *testing.T) {
	data, err := EncodeHead(goldenHead())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 * len(data) {
		data[i/8] ^= 1 << (i % 8)
		if h, err := DecodeHead(data); err == nil && !reflect.DeepEqual(h, goldenHead()) {
			t.Fatalf("bit %d flipped: %+v from\n%s", i, h, data)
		}
		data[i/8] ^= 1 << (i % 8)
	}
}

func TestVersions(t *testing.T) {
	data, err := EncodeManifest(goldenManifest())
	if err != nil {
		t.Fatal(err)
	}
	more := bytes.Replace(data, []byte(`"type":"file"`), []byte(`"type":"file","colour":[1]`), 1)
	if _, err := DecodeManifest(bytes.Replace(more, []byte(`"lineage"`), []byte(`"later":{},"lineage"`), 1)); err != nil {
		t.Errorf("unknown fields of the same version: %v", err)
	}
	for _, newer := range []string{`{"format":2}`, `{"format":2,"entries":"elsewhere"}`} {
		if _, err := DecodeManifest([]byte(newer)); !errors.Is(err, ErrNewerFormat) {
			t.Errorf("manifest %s: %v", newer, err)
		}
		if _, err := DecodeHead([]byte(newer)); !errors.Is(err, ErrNewerFormat) {
			t.Errorf("head %s: %v", newer, err)
		}
	}
	for _, bad := range []string{"", "null", "{}", `{"format":0}`, `{"format":-1}`, `{"format":"1"}`, "<html>404</html>",
		string(data[:len(data)/2]), string(data) + "x", `{"format":1}`, "\xff"} {
		if _, err := DecodeManifest([]byte(bad)); err == nil || errors.Is(err, ErrNewerFormat) {
			t.Errorf("manifest %.40q: %v", bad, err)
		}
		if _, err := DecodeHead([]byte(bad)); err == nil || errors.Is(err, ErrNewerFormat) {
			t.Errorf("head %.40q: %v", bad, err)
		}
	}
}

// hostile are changes that make a good manifest one that must not be believed.
var hostile = map[string]func(m *Manifest){
	"dot dot":          func(m *Manifest) { m.Entries[0].Path = "../chroma.sqlite3" },
	"dot dot inside":   func(m *Manifest) { m.Entries[4].Path = "seg/../../x" },
	"absolute":         func(m *Manifest) { m.Entries[0].Path = "/etc/passwd" },
	"not clean":        func(m *Manifest) { m.Entries[4].Path = "seg//x" },
	"dot":              func(m *Manifest) { m.Entries[0].Path = "." },
	"empty":            func(m *Manifest) { m.Entries[0].Path = "" },
	"trailing slash":   func(m *Manifest) { m.Entries[4].Path = "seg/" },
	"NUL":              func(m *Manifest) { m.Entries[4].Path = "seg/a\x00b" },
	"own folder":       func(m *Manifest) { m.Entries[0].Path = ".chromafs" },
	"in own folder":    func(m *Manifest) { m.Entries[0].Path = ".chromafs/journal.db" },
	"long name":        func(m *Manifest) { m.Entries[4].Path = "seg/" + strings.Repeat("x", 256) },
	"long path":        func(m *Manifest) { m.Entries[4].Path = "seg/" + strings.Repeat("x/", 2048) + "x" },
	"below a file":     func(m *Manifest) { m.Entries[4].Path = "empty/x" },
	"below a link":     func(m *Manifest) { m.Entries[4].Path = "latest/x" },
	"below nothing":    func(m *Manifest) { m.Entries[4].Path = "seh/x" },
	"unsorted":         func(m *Manifest) { m.Entries[0], m.Entries[1] = m.Entries[1], m.Entries[0] },
	"twice":            func(m *Manifest) { m.Entries[1] = m.Entries[0] },
	"negative size":    func(m *Manifest) { m.Entries[0].Size = -1 },
	"absurd size":      func(m *Manifest) { m.Entries[0].Size = 1 << 62 },
	"absurd total":     func(m *Manifest) { big(&m.Entries[0], 1<<60); big(&m.Entries[4], 1<<60) },
	"missing part":     func(m *Manifest) { m.Entries[0].Parts = m.Entries[0].Parts[:1] },
	"part too many":    func(m *Manifest) { m.Entries[1].Parts = []tree.Hash{{}} },
	"no part size":     func(m *Manifest) { m.Entries[0].PartSize = 0 },
	"negative parts":   func(m *Manifest) { m.Entries[0].PartSize = -1 },
	"too many parts":   func(m *Manifest) { m.Entries[0].PartSize = 838; m.Entries[0].Parts = make([]tree.Hash, 10_011) },
	"mode":             func(m *Manifest) { m.Entries[0].Mode = 0o100644 },
	"type":             func(m *Manifest) { m.Entries[0].Type = 9 },
	"no target":        func(m *Manifest) { m.Entries[2].Target = "" },
	"NUL in target":    func(m *Manifest) { m.Entries[2].Target = "a\x00" },
	"long target":      func(m *Manifest) { m.Entries[2].Target = strings.Repeat("x", 4096) },
	"file with target": func(m *Manifest) { m.Entries[0].Target = "x" },
	"folder with size": func(m *Manifest) { m.Entries[3].Size = 1 },
	"header in ETag":   func(m *Manifest) { m.Entries[0].ETag = "a\r\nx-amz-acl: public" },
	"id":               func(m *Manifest) { m.ID = "../x" },
	"no lineage":       func(m *Manifest) { m.Lineage = "" },
	"no sequence":      func(m *Manifest) { m.Sequence = 0 },
	"absurd epoch":     func(m *Manifest) { m.Epoch = 1<<64 - 1 },
	"consistency":      func(m *Manifest) { m.Consistency = "fine" },
	"format":           func(m *Manifest) { m.Format = 0 },
	"no writer":        func(m *Manifest) { m.Writer = "" },
}

func big(r *tree.Record, size int64) {
	r.Size, r.PartSize, r.Parts = size, size, []tree.Hash{{}}
}

// hostileJSON encodes without asking whether it should.
func hostileJSON(m *Manifest) []byte {
	var b bytes.Buffer
	head, _ := marshal(wireManifest{m.Format, m.Lineage, m.Sequence, m.Epoch, m.Writer, m.Nonce, m.ID, m.Created, m.Consistency})
	fmt.Fprintf(&b, "%s,\"entries\":[", head[:len(head)-1])
	for i := range m.Entries {
		e := toWire(&m.Entries[i])
		line, err := marshal(e)
		if err != nil { // a type without a name
			e.Type = tree.File
			line, _ = marshal(e)
			line = bytes.Replace(line, []byte(`"type":"file"`), []byte(`"type":"device"`), 1)
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(line)
	}
	b.WriteString("]}")
	return b.Bytes()
}

func TestHostileManifests(t *testing.T) {
	if _, err := DecodeManifest(hostileJSON(goldenManifest())); err != nil {
		t.Fatalf("unchanged: %v", err)
	}
	for name, change := range hostile {
		m := goldenManifest()
		change(m)
		if _, err := EncodeManifest(m); err == nil {
			t.Errorf("%s: encoded", name)
		}
		if _, err := DecodeManifest(hostileJSON(m)); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

func TestHostileHeads(t *testing.T) {
	for name, change := range map[string]func(h *Head){
		"newest is not last":    func(h *Head) { h.History[0], h.History[1] = h.History[1], h.History[0] },
		"listed twice":          func(h *Head) { h.History[0] = h.History[1] },
		"branch":                func(h *Head) { h.History[0] += "-branch-1" },
		"bad id":                func(h *Head) { h.History[0] = "../.." },
		"history but no newest": func(h *Head) { h.Newest = nil },
		"newest but no history": func(h *Head) { h.History = nil },
		"no sequence":           func(h *Head) { h.Sequence = 0 },
		"absurd sequence":       func(h *Head) { h.Sequence = 1<<64 - 1 },
		"bad sum":               func(h *Head) { h.Newest.ManifestSHA256 = "00" },
		"negative files":        func(h *Head) { h.Newest.Files = -1 },
		"negative bytes":        func(h *Head) { h.Newest.Bytes = -1 },
		"no nonce":              func(h *Head) { h.Nonce = "" },
	} {
		h := goldenHead()
		change(&h)
		if _, err := EncodeHead(h); err == nil {
			t.Errorf("%s: encoded", name)
		}
		data, err := marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeHead(data); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

// FuzzManifest holds that nothing decoded makes the package panic, and that what is
// accepted is safe to restore and encodes to itself.
func FuzzManifest(f *testing.F) {
	data, err := EncodeManifest(goldenManifest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	for _, change := range hostile {
		m := goldenManifest()
		change(m)
		if d := hostileJSON(m); len(d) < 1<<16 {
			f.Add(d)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeManifest(data)
		if err != nil {
			return
		}
		for i := range m.Entries {
			e := &m.Entries[i]
			if err := checkPath(e.Path); err != nil {
				t.Fatalf("accepted %q: %v", e.Path, err)
			}
			if err := objstore.CheckKey(ObjectKey(m.ID, e.Path)); err != nil {
				t.Fatalf("%q has no key: %v", e.Path, err)
			}
		}
		again, err := EncodeManifest(m)
		if err != nil {
			t.Fatalf("accepted, but not encoded: %v", err)
		}
		m2, err := DecodeManifest(again)
		if err != nil {
			t.Fatalf("encoded, but not accepted: %v", err)
		}
		if third, err := EncodeManifest(m2); err != nil || !bytes.Equal(again, third) {
			t.Fatalf("encoding is not stable: %v\n%s\n%s", err, again, third)
		}
	})
}

// FuzzHead is the same for heads.
func FuzzHead(f *testing.F) {
	data, err := EncodeHead(goldenHead())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"format":1,"lineage":"l","sequence":0,"epoch":1,"writer":"w","nonce":"n","newest":null,"history":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := DecodeHead(data)
		if err != nil {
			return
		}
		again, err := EncodeHead(h)
		if err != nil {
			t.Fatalf("accepted, but not encoded: %v", err)
		}
		if _, err := DecodeHead(again); err != nil {
			t.Fatalf("encoded, but not accepted: %v", err)
		}
	})
}

// FuzzIntent is the same for the intent of a restore.
func FuzzIntent(f *testing.F) {
	f.Add([]byte(`{"format":1,"id":"20261122T201530.123Z-4f2a","lineage":"l","sequence":1,"epoch":1,"stage":"retire","backup":"20261122T201530.123Z-unsaved-2"}`))
	f.Add([]byte(`{"format":1,"id":"20261122T201530.123Z-4f2a","stage":"install","backup":"../.."}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := decodeIntent(data)
		if err != nil {
			return
		}
		if _, err := ParseID(string(p.ID)); err != nil {
			t.Fatalf("accepted: %v", err)
		}
		if strings.ContainsAny(p.Backup, "/\x00") || p.Backup == ".." || p.Backup == "." {
			t.Fatalf("accepted the backup %q", p.Backup)
		}
	})
}
