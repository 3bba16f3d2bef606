package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/chromafs/chromafs/internal/objstore"
)

// oddKeys are names that a client, a proxy or a server may take for something else.
var oddKeys = []string{
	"with space", " leading and trailing ", "a+b", "100%", "%41", "%2F", "a%20b", "semi;colon", "amp&ersand=1",
	"question?mark", "hash#tag", "quote'single", `quote"double`, "<angle>", "back\\slash", "tilde~", "star*", "(paren)",
	"comma,", "at@", "colon:", "dollar$", "pipe|", "caret^", "tick`", "{brace}", "[bracket]", "...", ".hidden", "..two",
	"ünïcödé", "日本語/ファイル", "emoji 🎉", "combining e\u0301", "composed \u00e9", "rtl \u05d0\u05d1",
	"UPPER", "upper", strings.Repeat("x", objstore.MaxSegment),
	strings.Repeat(strings.Repeat("y", 99)+"/", 8) + "deep",
}

func testKeyNames(t *testing.T, s objstore.Store) {
	made := map[string]objstore.Object{}
	for _, key := range oddKeys {
		made[key] = put(t, s, key, []byte("content of "+key), objstore.PutOptions{})
	}
	for _, key := range oddKeys {
		wantContent(t, s, made[key], []byte("content of "+key))
	}
	want := slices.Sorted(slices.Values(oddKeys))
	if got := keys(list(t, s, "")); !slices.Equal(got, want) {
		t.Errorf("list returned\n%q, want\n%q", got, want)
	}
	for _, key := range []string{"a+b", "%41", "with space", "日本語/ファイル"} {
		to, err := s.Copy(t.Context(), "copy of "+key, made[key], objstore.CopyOptions{})
		if err != nil {
			t.Errorf("copy %q: %v", key, err)
			continue
		}
		wantContent(t, s, to, []byte("content of "+key))
	}
	if err := s.Delete(t.Context(), oddKeys); err != nil {
		t.Fatalf("delete odd keys: %v", err)
	}
	if all := keys(list(t, s, "")); len(all) != 4 {
		t.Errorf("after deleting all but the copies: %q", all)
	}
}

func testBadKeys(t *testing.T, s objstore.Store) {
	put(t, s, "good", []byte("x"), objstore.PutOptions{})
	for _, key := range []string{"", "/", "/abs", "a/", "a//b", ".", "..", "../up", "a/../b", "a/./b", "nul\x00", "new\nline",
		"\xff\xfe", strings.Repeat("x", objstore.MaxSegment+1), strings.Repeat("x/", objstore.MaxKey/2) + "x"} {
		_, _, err := read(s, key, objstore.GetOptions{})
		wantKind(t, fmt.Sprintf("get %q", key), err, objstore.ErrRefused)
		_, err = s.Put(t.Context(), key, strings.NewReader(""), 0, objstore.PutOptions{})
		wantKind(t, fmt.Sprintf("put %q", key), err, objstore.ErrRefused)
		_, err = s.NewUpload(t.Context(), key)
		wantKind(t, fmt.Sprintf("upload %q", key), err, objstore.ErrRefused)
		_, err = s.Copy(t.Context(), key, objstore.Object{Key: "good", Size: 1, ETag: "x"}, objstore.CopyOptions{})
		wantKind(t, fmt.Sprintf("copy to %q", key), err, objstore.ErrRefused)
		wantKind(t, fmt.Sprintf("delete %q", key), s.Delete(t.Context(), []string{"good", key}), objstore.ErrRefused)
	}
	if got := keys(list(t, s, "")); !slices.Equal(got, []string{"good"}) {
		t.Errorf("after operations on bad keys the store holds %q", got)
	}
}

// Keys are ordered as bytes: "a-b" before "a/b" before "a0", though a folder "a"
// would sort before them all.
func testListOrder(t *testing.T, s objstore.Store) {
	all := []string{"a-b", "a/b/c", "a/b/d/e", "a/b0", "a/c", "a0", "ab/x", "b", "history/1/x", "history/10/x", "history/1x/x", "z/é", "z/e"}
	for _, key := range all {
		put(t, s, key, []byte(key), objstore.PutOptions{})
	}
	for _, prefix := range []string{"", "a", "a/", "a/b", "a/b/", "a/b/d", "a-", "b", "history/1", "history/1/", "nothing", "z/e", "ab/x/y", "a/b/c/", "h"} {
		var want []string
		for _, key := range slices.Sorted(slices.Values(all)) {
			if strings.HasPrefix(key, prefix) {
				want = append(want, key)
			}
		}
		if got := keys(list(t, s, prefix)); !slices.Equal(got, want) {
			t.Errorf("list %q: %q, want %q", prefix, got, want)
		}
	}
	n := 0
	for range s.List(t.Context(), "") { // a caller may stop
		if n++; n == 2 {
			break
		}
	}
}

func testListPages(t *testing.T, s objstore.Store) {
	var want []string
	var g errgroup.Group
	g.SetLimit(8)
	for i := range 1103 {
		key := fmt.Sprintf("many/%03d/%d", i%7, i)
		want = append(want, key)
		g.Go(func() error {
			_, err := s.Put(t.Context(), key, strings.NewReader(key), int64(len(key)), objstore.PutOptions{})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	if got := keys(list(t, s, "many/")); !slices.Equal(got, want) {
		t.Errorf("list returned %d keys, want %d, in order and once each", len(got), len(want))
	}
	if err := s.Delete(t.Context(), append(want, "many/missing", "gone")); err != nil {
		t.Fatalf("delete %d keys: %v", len(want), err)
	}
	if got := keys(list(t, s, "")); len(got) != 0 {
		t.Errorf("%d keys are left after all were deleted: %q…", len(got), got[:min(5, len(got))])
	}
}

func testDelete(t *testing.T, s objstore.Store) {
	for _, key := range []string{"a/b/c", "a/b/d", "a/e", "f"} {
		put(t, s, key, []byte(key), objstore.PutOptions{})
	}
	for range 2 { // again, as after a lost answer
		if err := s.Delete(t.Context(), []string{"a/b/c", "missing", "a/b/c", "a/missing/x"}); err != nil {
			t.Fatal(err)
		}
	}
	if got := keys(list(t, s, "")); !slices.Equal(got, []string{"a/b/d", "a/e", "f"}) {
		t.Errorf("left after a delete: %q", got)
	}
	_, _, err := read(s, "a/b/c", objstore.GetOptions{})
	wantKind(t, "get what was deleted", err, objstore.ErrNotFound)
	if err := s.Delete(t.Context(), nil); err != nil {
		t.Errorf("delete nothing: %v", err)
	}
	if err := s.Delete(t.Context(), []string{"a/b/d", "a/e"}); err != nil {
		t.Fatal(err)
	}
	// What was only a folder may be an object now: nothing of it is left.
	wantContent(t, s, put(t, s, "a", []byte("object"), objstore.PutOptions{}), []byte("object"))
}

// An operation whose caller gave up fails with the caller's reason, and is of no kind.
func testCancelled(t *testing.T, s objstore.Store) {
	made := put(t, s, "k", []byte("content"), objstore.PutOptions{})
	up, err := s.NewUpload(t.Context(), "u")
	if err != nil {
		t.Fatal(err)
	}
	reason := errors.New("the caller gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	for name, op := range map[string]func() error{
		"get": func() error { _, _, err := s.Get(ctx, "k", objstore.GetOptions{}); return err },
		"put": func() error {
			_, err := s.Put(ctx, "k2", strings.NewReader("x"), 1, objstore.PutOptions{})
			return err
		},
		"copy": func() error { _, err := s.Copy(ctx, "k2", made, objstore.CopyOptions{}); return err },
		"list": func() error {
			for _, err := range s.List(ctx, "") {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"delete":       func() error { return s.Delete(ctx, []string{"k"}) },
		"new upload":   func() error { _, err := s.NewUpload(ctx, "k2"); return err },
		"uploads":      func() error { _, err := s.Uploads(ctx, ""); return err },
		"abort upload": func() error { return s.AbortUpload(ctx, objstore.PendingUpload{Key: "u", ID: up.ID()}) },
		"put part":     func() error { return up.PutPart(ctx, 1, strings.NewReader("x"), 0, 1) },
		"copy part":    func() error { return up.CopyPart(ctx, 1, made, 0, 1) },
		"complete":     func() error { _, err := up.Complete(ctx); return err },
		"abort":        func() error { return up.Abort(ctx) },
	} {
		if err := op(); !errors.Is(err, reason) || objstore.KindOf(err) != nil {
			t.Errorf("%s: %v (kind %v), want %v", name, err, objstore.KindOf(err), reason)
		}
	}
	wantContent(t, s, made, []byte("content"))
	if got := keys(list(t, s, "")); !slices.Equal(got, []string{"k"}) {
		t.Errorf("cancelled operations left %q", got)
	}
	if err := up.Abort(t.Context()); err != nil {
		t.Error(err)
	}
}
