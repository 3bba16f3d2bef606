package storetest

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/chromafs/chromafs/internal/objstore"
)

// O1, O3: an upload goes on in another process, of whose parts only those count that
// are handed over; and a completion that was not answered is repeated.
func testResume(t *testing.T, s objstore.Store) {
	data := Bytes(1, 3*MinPart+1000)
	body := bytes.NewReader(data)
	first, err := s.NewUpload(t.Context(), "big")
	if err != nil {
		t.Fatal(err)
	}
	pending := objstore.PendingUpload{Key: "big", ID: first.ID()}
	if _, err := objstore.ResumeUpload(t.Context(), s, pending, nil); objstore.KindOf(err) == objstore.ErrUnsupported {
		if err := first.Abort(t.Context()); err != nil {
			t.Error(err)
		}
		return // the parts of this store are not durable before the upload is
	} else if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 3, 4} {
		off := int64(n-1) * MinPart
		if err := first.PutPart(t.Context(), n, body, off, min(MinPart, int64(len(data))-off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.PutPart(t.Context(), 5, body, 0, 7); err != nil { // not handed over
		t.Fatal(err)
	}
	var parts []objstore.UploadPart
	for _, n := range []int{1, 3, 4} {
		part, ok := objstore.PartOf(first, n)
		if !ok || part.Number != n || part.ETag == "" {
			t.Fatalf("part %d: %+v, %v", n, part, ok)
		}
		parts = append(parts, part)
	}
	second, err := objstore.ResumeUpload(t.Context(), s, pending, parts)
	if err != nil {
		t.Fatal(err)
	}
	other := Bytes(9, MinPart)
	if err := second.PutPart(t.Context(), 3, bytes.NewReader(other), 0, MinPart); err != nil { // replaced
		t.Fatal(err)
	}
	if err := second.PutPart(t.Context(), 2, body, MinPart, MinPart); err != nil {
		t.Fatal(err)
	}
	for n := range 4 {
		part, ok := objstore.PartOf(second, n+1)
		if !ok {
			t.Fatalf("part %d is not known", n+1)
		}
		parts = append(parts, part)
	}
	made, err := second.Complete(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(data[:2*MinPart], other, data[3*MinPart:])
	wantContent(t, s, made, want)
	third, err := objstore.ResumeUpload(t.Context(), s, pending, parts[3:])
	if err != nil {
		t.Fatal(err)
	}
	again, err := third.Complete(t.Context())
	unknown := errors.Is(err, objstore.ErrNoUpload) // allowed: its ETag says nothing under a KMS key
	if !unknown && (err != nil || again.ETag != made.ETag || again.Size != made.Size) {
		t.Errorf("completed again: %+v, %v, want %+v", again, err, made)
	}
	if err := s.Delete(t.Context(), []string{"big"}); err != nil {
		t.Fatal(err)
	}
	if _, err := third.Complete(t.Context()); !errors.Is(err, objstore.ErrNoUpload) || objstore.KindOf(err) != objstore.ErrUnavailable {
		t.Errorf("completed after all is gone: %v", err)
	}
	// Small: a server may break the connection off after its answer to a big one.
	if err := third.PutPart(t.Context(), 4, body, 0, 1000); !errors.Is(err, objstore.ErrNoUpload) {
		t.Errorf("a part of an upload that is gone: %v", err)
	}
}
