package storetest

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/chromafs/chromafs/internal/objstore"
)

// O3: a copy is whole, pinned, and stays what it is when its source changes.
func testCopy(t *testing.T, s objstore.Store) {
	for _, immutable := range []bool{false, true} {
		o := objstore.CopyOptions{Immutable: immutable}
		data := Bytes(11, 300_000)
		src := put(t, s, "history/1/data", data, objstore.PutOptions{})
		made, err := s.Copy(t.Context(), "history/2/data", src, o)
		if err != nil {
			t.Fatal(err)
		}
		if made.Key != "history/2/data" || made.Size != src.Size {
			t.Fatalf("copy returned %+v", made)
		}
		wantContent(t, s, made, data)
		again, err := s.Copy(t.Context(), "history/2/data", src, o) // as after a lost answer
		if err != nil {
			t.Fatal(err)
		}
		wantContent(t, s, again, data)

		next := put(t, s, "history/1/data", []byte("replaced"), objstore.PutOptions{})
		wantContent(t, s, again, data)
		_, err = s.Copy(t.Context(), "stale", src, o)
		wantKind(t, "copy of a source that changed", err, objstore.ErrPrecondition)
		overwritten, err := s.Copy(t.Context(), "history/2/data", next, o)
		if err != nil {
			t.Fatal(err)
		}
		wantContent(t, s, overwritten, []byte("replaced"))
		if err := s.Delete(t.Context(), []string{"history/1/data"}); err != nil {
			t.Fatal(err)
		}
		wantContent(t, s, overwritten, []byte("replaced"))
		_, err = s.Copy(t.Context(), "stale", next, o)
		wantKind(t, "copy of a source that is gone", err, objstore.ErrNotFound)

		empty := put(t, s, "empty", nil, objstore.PutOptions{})
		made, err = s.Copy(t.Context(), "empty copy", empty, o)
		if err != nil {
			t.Fatal(err)
		}
		wantContent(t, s, made, nil)
		if got := keys(list(t, s, "stale")); len(got) != 0 {
			t.Errorf("a refused copy left %q", got)
		}
		if err := s.Delete(t.Context(), []string{"history/2/data", "empty", "empty copy"}); err != nil {
			t.Fatal(err)
		}
	}
}

// O1, O3: parts sent and parts copied make one object, whatever their order.
func testMultipart(t *testing.T, s objstore.Store) {
	old := Bytes(1, 4*MinPart)
	src := put(t, s, "history/1/big", old, objstore.PutOptions{})
	fresh := Bytes(2, 4*MinPart+12_345)
	want := slices.Concat(fresh[:MinPart], old[MinPart:2*MinPart], fresh[2*MinPart:3*MinPart], old[100:100+MinPart], fresh[4*MinPart:])
	up, err := s.NewUpload(t.Context(), "history/2/big")
	if err != nil {
		t.Fatal(err)
	}
	if up.ID() == "" {
		t.Fatal("the upload has no id")
	}
	body := bytes.NewReader(fresh)
	var g errgroup.Group
	for _, part := range []func() error{
		func() error { return up.PutPart(t.Context(), 5, body, 4*MinPart, 12_345) },
		func() error { return up.CopyPart(t.Context(), 4, src, 100, MinPart) },
		func() error { return up.PutPart(t.Context(), 3, body, 2*MinPart, MinPart) },
		func() error { return up.CopyPart(t.Context(), 2, src, MinPart, MinPart) },
		func() error { return up.PutPart(t.Context(), 1, body, 0, MinPart) },
	} {
		g.Go(part)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := up.PutPart(t.Context(), 3, body, 2*MinPart, MinPart); err != nil { // again, as after a lost answer
		t.Fatal(err)
	}
	if got := keys(list(t, s, "history/2")); len(got) != 0 {
		t.Errorf("an upload that is not complete shows as %q", got)
	}
	made, err := up.Complete(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if made.Key != "history/2/big" || made.Size != int64(len(want)) || made.ETag == "" {
		t.Fatalf("complete returned %+v", made)
	}
	wantContent(t, s, made, want)
	if pending, err := s.Uploads(t.Context(), ""); err != nil || len(pending) != 0 {
		t.Errorf("pending after completion: %v, %v", pending, err)
	}
	testReplaceByParts(t, s, made)
}

// testReplaceByParts makes a new state of an object of itself, as a delta does, in
// descending order of parts.
func testReplaceByParts(t *testing.T, s objstore.Store, old objstore.Object) {
	t.Helper()
	before, _, err := read(s, old.Key, objstore.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	up, err := s.NewUpload(t.Context(), old.Key)
	if err != nil {
		t.Fatal(err)
	}
	patch := Bytes(3, 2*MinPart)
	for n := 3; n >= 1; n-- {
		if n == 2 {
			err = up.PutPart(t.Context(), n, bytes.NewReader(patch), 17, MinPart)
		} else {
			err = up.CopyPart(t.Context(), n, old, int64(n-1)*MinPart, MinPart)
		}
		if err != nil {
			t.Fatalf("part %d: %v", n, err)
		}
	}
	made, err := up.Complete(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if made.ETag == old.ETag {
		t.Errorf("content was replaced, its ETag %q was not", old.ETag)
	}
	wantContent(t, s, made, slices.Concat(before[:MinPart], patch[17:17+MinPart], before[2*MinPart:3*MinPart]))
}

func testMultipartRefusals(t *testing.T, s objstore.Store) {
	src := put(t, s, "src", Bytes(1, MinPart), objstore.PutOptions{})
	next := put(t, s, "src", Bytes(2, MinPart), objstore.PutOptions{})
	up, err := s.NewUpload(t.Context(), "dst")
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, "copy part of a source that changed", up.CopyPart(t.Context(), 1, src, 0, MinPart), objstore.ErrPrecondition)
	gone := next
	gone.Key = "gone"
	wantKind(t, "copy part of a source that is gone", up.CopyPart(t.Context(), 1, gone, 0, MinPart), objstore.ErrNotFound)
	_, err = up.Complete(t.Context())
	wantKind(t, "complete without parts", err, objstore.ErrRefused)
	if err := up.CopyPart(t.Context(), 1, next, 0, MinPart); err != nil {
		t.Fatal(err)
	}
	if err := up.PutPart(t.Context(), 3, strings.NewReader("last"), 0, 4); err != nil {
		t.Fatal(err)
	}
	_, err = up.Complete(t.Context())
	wantKind(t, "complete with a part missing", err, objstore.ErrRefused)
	for range 2 {
		if err := up.Abort(t.Context()); err != nil {
			t.Fatalf("abort: %v", err)
		}
	}
	if err := up.PutPart(t.Context(), 2, strings.NewReader("x"), 0, 1); err == nil {
		t.Error("a part was stored in an upload that was aborted")
	}
	if got := keys(list(t, s, "")); !slices.Equal(got, []string{"src"}) {
		t.Errorf("an aborted upload left %q", got)
	}
}

func testUploads(t *testing.T, s objstore.Store) {
	ids := map[string]string{}
	for _, key := range []string{"history/1/a", "history/1/b c+d%é", "history/2/a", "current"} {
		up, err := s.NewUpload(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if err := up.PutPart(t.Context(), 1, strings.NewReader("x"), 0, 1); err != nil {
			t.Fatal(err)
		}
		ids[key] = up.ID()
	}
	pending := func(prefix string) []objstore.PendingUpload {
		t.Helper()
		all, err := s.Uploads(t.Context(), prefix)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range all {
			if ids[u.Key] != u.ID || u.Started.IsZero() {
				t.Errorf("uploads %q: %+v, want id %q", prefix, u, ids[u.Key])
			}
		}
		return all
	}
	for prefix, want := range map[string]int{"": 4, "history/": 3, "history/1/": 2, "history/2/a": 1, "cur": 1, "x": 0} {
		if got := pending(prefix); len(got) != want {
			t.Errorf("uploads %q: %+v, want %d", prefix, got, want)
		}
	}
	all := pending("")
	for _, u := range append(all, all...) { // the second time they are gone
		if err := s.AbortUpload(t.Context(), u); err != nil {
			t.Errorf("abort %+v: %v", u, err)
		}
	}
	if got := pending(""); len(got) != 0 {
		t.Errorf("pending after all were aborted: %+v", got)
	}
	if got := keys(list(t, s, "")); len(got) != 0 {
		t.Errorf("aborted uploads left %q", got)
	}
}
