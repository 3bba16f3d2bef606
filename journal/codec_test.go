package journal

import (
	"bytes"
	"errors"
	"hash/fnv"
	"testing"

	"github.com/chromafs/chromafs/internal/tree"
)

func fnvSum(b []byte) uint64 {
	h := fnv.New64a()
	h.Write(b)
	return h.Sum64()
}

// Each decoder of persisted bytes is fuzzed: it refuses with errValue, or what it
// decodes is encoded and decoded to the same again.

func refused(t *testing.T, err error) bool {
	t.Helper()
	if err != nil && !errors.Is(err, errValue) && !errors.Is(err, ErrNewerFormat) {
		t.Errorf("an error of no kind: %v", err)
	}
	return err != nil
}

func FuzzHeader(f *testing.F) {
	b, err := encodeHeader(header{Format: 1, JournalID: "j", Lineage: "l", ID: "i", Published: true, Cut: 4, Intent: &Intent{ID: "i", Nonce: "n", Cut: 4}, Pending: []string{"a"}})
	must(f, err)
	f.Add(b)
	f.Add([]byte(`{"format":99}`))
	f.Add([]byte(`{"format":1,"journal_id":"x","cut":1}{}`))
	f.Add([]byte(`{"format":1,"journal_id":"x","cut":1,"intent":{"id":"","nonce":"","cut":9,"sequence":0}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHeader(b)
		if refused(t, err) {
			return
		}
		again, err := encodeHeader(h)
		must(t, err)
		h2, err := decodeHeader(again)
		must(t, err)
		third, err := encodeHeader(h2)
		must(t, err)
		if !bytes.Equal(again, third) {
			t.Errorf("%s became %s", again, third)
		}
	})
}

func FuzzMark(f *testing.F) {
	f.Add(encodeMark(mark{cut: 1, first: 2, at: 3}))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeMark(b); !refused(t, err) && !bytes.Equal(encodeMark(m), b) {
			t.Errorf("%x became %x", b, encodeMark(m))
		}
	})
}

func FuzzStat(f *testing.F) {
	f.Add(encodeStat(statOf(record("a", 5, 1).Entry)))
	f.Add(make([]byte, statSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeStat(b); !refused(t, err) && !bytes.Equal(encodeStat(s), b) {
			t.Errorf("%x became %x", b, encodeStat(s))
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add("big", encodeRecord(record("big", 20<<20, 1)))
	f.Add("empty", encodeRecord(record("empty", 0, 1)))
	f.Add("link", encodeRecord(tree.Record{Entry: tree.Entry{Type: tree.Symlink, Target: "x", ModTime: -1}}))
	f.Add("../out", encodeRecord(record("x", 1, 1)))
	f.Add("lying", encodeRecord(record("x", 1, 1))[:20])
	f.Add("huge", bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, path string, b []byte) {
		r, err := decodeRecord(path, b)
		if refused(t, err) {
			return
		}
		again, err := decodeRecord(path, encodeRecord(r))
		must(t, err)
		if !sameRecord(r, again) {
			t.Errorf("%+v became %+v", r, again)
		}
	})
}

func FuzzReserve(f *testing.F) {
	f.Add(encodeReserve(nil))
	f.Add(encodeReserve(&mark{cut: 3, first: 1, at: 2}))
	f.Add(make([]byte, reserveSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeReserve(b)
		if refused(t, err) {
			return
		}
		again, err := decodeReserve(encodeReserve(m))
		must(t, err)
		if (m == nil) != (again == nil) || m != nil && *m != *again {
			t.Errorf("%v became %v", m, again)
		}
	})
}

func TestHeaderRefused(t *testing.T) {
	good := header{Format: 1, JournalID: "j", Lineage: "l", ID: "i", Published: true, Cut: 4, Intent: &Intent{ID: "i", Nonce: "n", Cut: 4}}
	must(t, good.valid())
	for name, harm := range map[string]func(*header){
		"older format":          func(h *header) { h.Format = 0 },
		"no journal id":         func(h *header) { h.JournalID = "" },
		"published nowhere":     func(h *header) { h.Lineage = "" },
		"a base out of nothing": func(h *header) { h.Published = false },
		"intent without nonce":  func(h *header) { h.Intent = &Intent{ID: "i"} },
		"intent above all cuts": func(h *header) { h.Intent = &Intent{ID: "i", Nonce: "n", Cut: 5} },
		"pending nothing":       func(h *header) { h.Pending = []string{""} },
	} {
		h := good
		if harm(&h); !errors.Is(h.valid(), errValue) {
			t.Errorf("%s: %v", name, h.valid())
		}
	}
}

// A value under another key, in another bucket or changed is not believed.
func TestSeal(t *testing.T) {
	value := seal("mark", "a/b", encodeMark(mark{cut: 1}))
	if _, err := unseal("mark", "a/b", value); err != nil {
		t.Error(err)
	}
	changed := bytes.Clone(value)
	changed[3] ^= 1
	for name, err := range map[string]error{
		"key":     second(unseal("mark", "a/c", value)),
		"bucket":  second(unseal("stat", "a/b", value)),
		"changed": second(unseal("mark", "a/b", changed)),
		"short":   second(unseal("mark", "a/b", value[:3])),
		"none":    second(unseal("mark", "a/b", nil)),
	} {
		if !errors.Is(err, errValue) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
