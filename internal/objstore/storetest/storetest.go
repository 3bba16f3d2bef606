// Package storetest is the conformance suite of object stores: what package
// objstore promises (O1–O5), asked of an adapter through its interface alone.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/internal/objstore"
)

// MinPart is the smallest part that every store takes in the middle of an upload.
const MinPart = 5 << 20

// Run runs the suite. open returns a new, empty store.
func Run(t *testing.T, open func(t *testing.T) objstore.Store) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, objstore.Store)
	}{
		{"empty store", testEmpty},
		{"put and get", testPutGet},
		{"ranges", testRanges},
		{"get conditions", testGetConditions},
		{"put conditions", testPutConditions},
		{"races", testRaces},
		{"bad bodies", testBadBodies},
		{"key names", testKeyNames},
		{"bad keys", testBadKeys},
		{"copy", testCopy},
		{"multipart", testMultipart},
		{"multipart refusals", testMultipartRefusals},
		{"pending uploads", testUploads},
		{"resumed uploads", testResume},
		{"list order and prefixes", testListOrder},
		{"list pages", testListPages},
		{"delete", testDelete},
		{"cancelled", testCancelled},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// Bytes returns n reproducible bytes that look random.
func Bytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	rand.NewChaCha8(key).Read(b)
	return b
}

func put(t *testing.T, s objstore.Store, key string, data []byte, o objstore.PutOptions) objstore.Object {
	t.Helper()
	made, err := s.Put(t.Context(), key, bytes.NewReader(data), int64(len(data)), o)
	if err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
	if made.Key != key || made.Size != int64(len(data)) || made.ETag == "" || strings.Contains(made.ETag, `"`) {
		t.Fatalf("put %q of %d bytes returned %+v", key, len(data), made)
	}
	return made
}

func read(s objstore.Store, key string, o objstore.GetOptions) ([]byte, objstore.Object, error) {
	body, got, err := s.Get(context.Background(), key, o)
	if err != nil {
		return nil, got, err
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	return data, got, err
}

// wantContent checks an object's bytes and what Get and List say of it.
func wantContent(t *testing.T, s objstore.Store, want objstore.Object, data []byte) {
	t.Helper()
	got, o, err := read(s, want.Key, objstore.GetOptions{})
	if err != nil {
		t.Fatalf("get %q: %v", want.Key, err)
	}
	if !bytes.Equal(got, data) {
		t.Fatalf("get %q: %d bytes, not the %d that were put", want.Key, len(got), len(data))
	}
	if o.Key != want.Key || o.Size != int64(len(data)) || o.ETag != want.ETag || o.Modified.IsZero() {
		t.Fatalf("get %q says %+v, want %+v", want.Key, o, want)
	}
	for _, l := range list(t, s, want.Key) {
		if l.Key == want.Key && l.Size == o.Size && l.ETag == o.ETag && !l.Modified.IsZero() {
			return
		}
	}
	t.Fatalf("list %q: %+v, want %+v", want.Key, list(t, s, want.Key), want)
}

func list(t *testing.T, s objstore.Store, prefix string) []objstore.Object {
	t.Helper()
	var all []objstore.Object
	for o, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("list %q: %v", prefix, err)
		}
		all = append(all, o)
	}
	return all
}

func keys(objects []objstore.Object) []string {
	names := []string{}
	for _, o := range objects {
		names = append(names, o.Key)
	}
	return names
}

func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("%s: error %v, want %v", what, err, kind)
	}
	for _, other := range []error{objstore.ErrNotFound, objstore.ErrPrecondition, objstore.ErrNotModified, objstore.ErrRange,
		objstore.ErrRefused, objstore.ErrUnavailable, objstore.ErrUnsupported, objstore.ErrDamaged} {
		if other != kind && errors.Is(err, other) {
			t.Fatalf("%s: error %v is %v, and %v too", what, err, kind, other)
		}
	}
}

// O4, R4: an empty store lists as empty and says of a key that it is missing.
func testEmpty(t *testing.T, s objstore.Store) {
	for _, prefix := range []string{"", "history/", "manifest.json"} {
		if all := list(t, s, prefix); len(all) != 0 {
			t.Errorf("list %q of an empty store: %v", prefix, keys(all))
		}
	}
	_, _, err := read(s, "manifest.json", objstore.GetOptions{})
	wantKind(t, "get from an empty store", err, objstore.ErrNotFound)
	_, _, err = read(s, "no/such/folder/file", objstore.GetOptions{})
	wantKind(t, "get below what does not exist", err, objstore.ErrNotFound)
	if up, err := s.Uploads(t.Context(), ""); err != nil || len(up) != 0 {
		t.Errorf("uploads of an empty store: %v, %v", up, err)
	}
	if err := s.Delete(t.Context(), []string{"a", "b/c"}); err != nil {
		t.Errorf("delete in an empty store: %v", err)
	}
	if s.String() == "" || strings.HasSuffix(s.String(), "/") && !strings.HasSuffix(s.String(), "//") {
		t.Errorf("the store's name is %q", s)
	}
}

func testPutGet(t *testing.T, s objstore.Store) {
	for i, size := range []int{0, 1, 4095, 4096, 65537, 3 << 20} {
		data := Bytes(uint64(i), size)
		made := put(t, s, fmt.Sprintf("folder/file%d", i), data, objstore.PutOptions{ContentType: "application/json"})
		wantContent(t, s, made, data)
	}
	first := put(t, s, "twice", []byte("one"), objstore.PutOptions{})
	second := put(t, s, "twice", []byte("two"), objstore.PutOptions{})
	if first.ETag == second.ETag {
		t.Errorf("content was replaced, its ETag %q was not", first.ETag)
	}
	wantContent(t, s, second, []byte("two"))
	put(t, s, "twice", []byte("longer than before"), objstore.PutOptions{})
	last := put(t, s, "twice", nil, objstore.PutOptions{})
	wantContent(t, s, last, nil)
}

func testRanges(t *testing.T, s objstore.Store) {
	data := Bytes(7, 100_000)
	made := put(t, s, "data", data, objstore.PutOptions{})
	for _, r := range []struct{ off, length, want int64 }{
		{0, 0, 100_000}, {0, 1, 1}, {0, 100_000, 100_000}, {0, 200_000, 100_000}, {1, 0, 99_999},
		{99_999, 0, 1}, {99_999, 1, 1}, {99_999, 50, 1}, {40_000, 20_000, 20_000}, {50_000, 60_000, 50_000},
	} {
		got, o, err := read(s, "data", objstore.GetOptions{Offset: r.off, Length: r.length})
		if err != nil {
			t.Fatalf("get [%d,+%d): %v", r.off, r.length, err)
		}
		if !bytes.Equal(got, data[r.off:r.off+r.want]) {
			t.Errorf("get [%d,+%d): %d bytes, not the right ones", r.off, r.length, len(got))
		}
		if o.Size != made.Size || o.ETag != made.ETag {
			t.Errorf("get [%d,+%d) describes %+v, want the whole object %+v", r.off, r.length, o, made)
		}
	}
	for _, o := range []objstore.GetOptions{{Offset: 100_000}, {Offset: 100_001, Length: 5}, {Offset: -1}, {Length: -1}} {
		_, _, err := read(s, "data", o)
		wantKind(t, fmt.Sprintf("get %+v", o), err, objstore.ErrRange)
	}
	put(t, s, "empty", nil, objstore.PutOptions{})
	for _, length := range []int64{0, 10} {
		if got, _, err := read(s, "empty", objstore.GetOptions{Length: length}); err != nil || len(got) != 0 {
			t.Errorf("get of %d bytes of an empty object: %d bytes, %v", length, len(got), err)
		}
	}
	_, _, err := read(s, "empty", objstore.GetOptions{Offset: 1})
	wantKind(t, "get past an empty object", err, objstore.ErrRange)
}

func testGetConditions(t *testing.T, s objstore.Store) {
	old := put(t, s, "k", []byte("old"), objstore.PutOptions{})
	cur := put(t, s, "k", []byte("current"), objstore.PutOptions{})
	for _, o := range []objstore.GetOptions{{IfMatch: cur.ETag}, {IfNoneMatch: old.ETag}, {IfMatch: cur.ETag, Offset: 3}} {
		if got, _, err := read(s, "k", o); err != nil || string(got) != "current"[o.Offset:] {
			t.Errorf("get %+v: %q, %v", o, got, err)
		}
	}
	for _, o := range []objstore.GetOptions{{IfMatch: old.ETag}, {IfMatch: old.ETag, Offset: 1, Length: 2}} {
		_, _, err := read(s, "k", o)
		wantKind(t, fmt.Sprintf("get %+v", o), err, objstore.ErrPrecondition)
	}
	_, _, err := read(s, "k", objstore.GetOptions{IfNoneMatch: cur.ETag})
	wantKind(t, "get if not modified", err, objstore.ErrNotModified)
	_, _, err = read(s, "missing", objstore.GetOptions{IfMatch: cur.ETag})
	wantKind(t, "get a missing object if it matches", err, objstore.ErrNotFound)
}

// O2.
func testPutConditions(t *testing.T, s objstore.Store) {
	try := func(key, text string, o objstore.PutOptions) (objstore.Object, error) {
		return s.Put(t.Context(), key, strings.NewReader(text), int64(len(text)), o)
	}
	_, err := try("k", "no", objstore.PutOptions{IfMatch: "0123456789abcdef0123456789abcdef"})
	wantKind(t, "replace what is missing", err, objstore.ErrPrecondition)
	first := put(t, s, "k", []byte("first"), objstore.PutOptions{IfAbsent: true})
	_, err = try("k", "no", objstore.PutOptions{IfAbsent: true})
	wantKind(t, "create what exists", err, objstore.ErrPrecondition)
	wantContent(t, s, first, []byte("first"))
	second := put(t, s, "k", []byte("second"), objstore.PutOptions{IfMatch: first.ETag})
	_, err = try("k", "no", objstore.PutOptions{IfMatch: first.ETag})
	wantKind(t, "replace a state that has passed", err, objstore.ErrPrecondition)
	wantContent(t, s, second, []byte("second"))
	if err := s.Delete(t.Context(), []string{"k"}); err != nil {
		t.Fatal(err)
	}
	_, err = try("k", "no", objstore.PutOptions{IfMatch: second.ETag})
	wantKind(t, "replace what was deleted", err, objstore.ErrPrecondition)
	wantContent(t, s, put(t, s, "k", []byte("third"), objstore.PutOptions{IfAbsent: true}), []byte("third"))
}

// O2: of two conditional writes exactly one wins, 50 rounds each way.
func testRaces(t *testing.T, s objstore.Store) {
	var last objstore.Object
	for round := range 100 {
		key, o := fmt.Sprintf("create%d", round), objstore.PutOptions{IfAbsent: true}
		if round%2 == 1 {
			key, o = "replace", objstore.PutOptions{IfMatch: last.ETag}
			if round == 1 {
				o = objstore.PutOptions{IfAbsent: true}
			}
		}
		type result struct {
			made objstore.Object
			text string
			err  error
		}
		results := make(chan result)
		for writer := range 2 {
			go func() {
				text := fmt.Sprintf("round %d, writer %d", round, writer)
				made, err := s.Put(context.Background(), key, strings.NewReader(text), int64(len(text)), o)
				results <- result{made, text, err}
			}()
		}
		var winners []result
		for range 2 {
			switch r := <-results; {
			case r.err == nil:
				winners = append(winners, r)
			case !errors.Is(r.err, objstore.ErrPrecondition):
				t.Errorf("round %d: %v", round, r.err)
			}
		}
		if len(winners) != 1 {
			t.Fatalf("round %d: %d of 2 conditional writes won", round, len(winners))
		}
		wantContent(t, s, winners[0].made, []byte(winners[0].text))
		if round%2 == 1 {
			last = winners[0].made
		}
	}
}

type badBody struct{ err error }

func (b badBody) ReadAt(p []byte, off int64) (int, error) {
	if off >= 1000 {
		return 0, b.err
	}
	return int(min(int64(len(p)), 1000-off)), nil
}

// O1: what cannot be read whole is not stored, and that is no fault of the store.
func testBadBodies(t *testing.T, s objstore.Store) {
	broken := errors.New("the disk is on fire")
	for _, test := range []struct {
		body io.ReaderAt
		want error
	}{
		{badBody{broken}, broken},
		{strings.NewReader("short"), io.ErrUnexpectedEOF},
	} {
		_, err := s.Put(t.Context(), "bad", test.body, 5000, objstore.PutOptions{})
		if !errors.Is(err, test.want) || objstore.KindOf(err) != nil {
			t.Errorf("put of a bad body: %v (kind %v), want %v", err, objstore.KindOf(err), test.want)
		}
		up, err := s.NewUpload(t.Context(), "bad")
		if err != nil {
			t.Fatal(err)
		}
		err = up.PutPart(t.Context(), 1, test.body, 2, 5000)
		if !errors.Is(err, test.want) || objstore.KindOf(err) != nil {
			t.Errorf("put part of a bad body: %v (kind %v), want %v", err, objstore.KindOf(err), test.want)
		}
		if err := up.Abort(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if all := list(t, s, ""); len(all) != 0 {
		t.Errorf("a bad body was stored: %v", all)
	}
}
