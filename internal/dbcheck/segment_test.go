package dbcheck

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// element is what a vector takes in data_level0.bin, for vectors of 8 floats.
const element = 132 + 8*4 + 8

func headerOf(count uint64) []byte {
	b := make([]byte, headerSize)
	binary.LittleEndian.PutUint32(b, headerVersion)
	for i, v := range []uint64{0, 1024, count, element, element - labelSize, 132} {
		binary.LittleEndian.PutUint64(b[4+8*i:], v)
	}
	return b
}

// segment makes a folder as ChromaDB's persist leaves it: count vectors in files
// that had room for some at first.
func segment(t *testing.T, count, room int) string {
	t.Helper()
	folder := t.TempDir()
	held := max(count, room)
	for name, content := range map[string][]byte{
		headerName: headerOf(uint64(count)), level0Name: make([]byte, held*element), lengthName: make([]byte, held*4),
		linksName: make([]byte, count*4+count/16*132), pickleName: []byte("\x80\x03}."),
	} {
		path := filepath.Join(folder, "segment", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

func TestWholeSegmentsPass(t *testing.T) {
	for _, of := range [][2]int{{0, 100}, {1, 100}, {100, 100}, {1000, 1000}, {1001, 1000}, {5000, 100}} {
		r := check(t, segment(t, of[0], of[1]), Quick)
		if len(r.Damage)+len(r.Doubts) > 0 || r.Segments != 1 {
			t.Errorf("%d vectors with room for %d: %v", of[0], of[1], r)
		}
	}
}

func TestTornSegmentsAreFound(t *testing.T) {
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:len(b)-n] } }
	for _, test := range []struct {
		name, file string
		edit       func([]byte) []byte
		want       string
	}{
		{"header ahead", headerName, func([]byte) []byte { return headerOf(1200) }, "counts 1200 vectors, but data_level0.bin holds 1000"},
		{"header cut off", headerName, cut(1), "has 99 bytes"},
		{"header wiped but for its version", headerName, func(b []byte) []byte { clear(b[4:]); return b }, "contradicts itself"},
		{"level0 behind", level0Name, cut(element), "length.bin has 4000 bytes, not 3996"},
		{"level0 within a vector", level0Name, cut(1), "no whole vectors"},
		{"level0 empty", level0Name, func([]byte) []byte { return nil }, "length.bin has 4000 bytes, not 0"},
		{"length behind", lengthName, cut(4), "length.bin has 3996 bytes"},
		{"length within a vector", lengthName, cut(1), "length.bin has 3999 bytes"},
		{"links behind", linksName, func(b []byte) []byte { return b[:3999] }, "cannot hold the links"},
		{"pickle cut off", pickleName, cut(1), "cut off"},
		{"pickle empty", pickleName, func([]byte) []byte { return nil }, "is empty"},
	} {
		t.Run(test.name, func(t *testing.T) {
			folder := segment(t, 1000, 100)
			edit(t, filepath.Join(folder, "segment", test.file), test.edit)
			r := check(t, folder, Quick)
			if len(r.Damage) != 1 || r.Damage[0].Path != "segment" || !strings.Contains(r.Damage[0].What, test.want) {
				t.Errorf("%v, want %q", r, test.want)
			}
		})
	}
	for _, name := range segmentNames[:4] {
		folder := segment(t, 1000, 100)
		remove(t, filepath.Join(folder, "segment", name))
		if r := check(t, folder, Quick); len(r.Damage) != 1 || !strings.Contains(r.Damage[0].What, name+" is missing") {
			t.Errorf("without %s: %v", name, r)
		}
	}
}

func TestAFolderWithoutPickleIsNoSegmentYet(t *testing.T) {
	folder := segment(t, 1000, 100)
	remove(t, filepath.Join(folder, "segment", pickleName))
	remove(t, filepath.Join(folder, "segment", headerName))
	if r := check(t, folder, Quick); r.Segments != 0 || len(r.Damage)+len(r.Doubts) > 0 {
		t.Errorf("%v", r)
	}
}

func TestAnUnknownVersionIsADoubt(t *testing.T) {
	folder := segment(t, 1000, 100)
	edit(t, filepath.Join(folder, "segment", headerName), func(b []byte) []byte { b[0] = 2; return b })
	wantDoubt(t, check(t, folder, Quick), "version")
}

func TestOnlySegmentsThatChangedAreChecked(t *testing.T) {
	folder := segment(t, 1000, 100)
	remove(t, filepath.Join(folder, "segment", linksName))
	for _, name := range []string{linksName, pickleName} {
		r, err := Check(t.Context(), view(t, folder), Quick, func(p string) bool { return p == "segment/"+name })
		if err != nil || len(r.Damage) != 1 {
			t.Errorf("%s changed: %v, %v", name, r, err)
		}
	}
	r, err := Check(t.Context(), view(t, folder), Quick, func(p string) bool { return p == "segment" })
	if err != nil || r.Segments != 0 {
		t.Errorf("nothing changed: %v, %v", r, err)
	}
}

// FuzzHeader: no header makes the check fail, and what it accepts fits.
func FuzzHeader(f *testing.F) {
	f.Add(headerOf(1000), uint64(1000*element), uint64(4000), uint64(4000))
	f.Add(headerOf(1<<63), uint64(1<<63), uint64(1<<62), uint64(1<<63))
	f.Add(headerOf(0)[:50], uint64(0), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, level0, length, links uint64) {
		h, err := parseHeader(b)
		if err != nil {
			if len(b) >= headerSize && b[0] == headerVersion && b[1]|b[2]|b[3] == 0 && errors.Is(err, errUnknownHeader) {
				t.Error("a known version is unknown")
			}
			return
		}
		if h.agree(level0, length, links) != "" {
			return
		}
		if h.count > 0 && (level0/h.count < h.elementSize || length/h.count < lengthSize || links/h.count < leastLinkSize) {
			t.Errorf("%+v accepted with %d, %d and %d bytes", h, level0, length, links)
		}
	})
}
