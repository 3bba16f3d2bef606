package adapt_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/adapt"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// unconditional is a store whose writes ignore conditions.
type unconditional struct {
	objstore.Store
	puts []objstore.PutOptions
	with func() // called before each write
}

func (u *unconditional) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o objstore.PutOptions) (objstore.Object, error) {
	u.puts = append(u.puts, o)
	made, err := u.Store.Put(ctx, key, body, size, objstore.PutOptions{})
	if u.with != nil {
		u.with()
	}
	return made, err
}

// Conditions hold one after the other, though the store knows none.
func TestConditionsByLooking(t *testing.T) {
	below := &unconditional{Store: memstore.New()}
	s := adapt.New(below)
	s.Know(objstore.Lacks{Create: "ignored", Replace: "ignored"})
	put := func(text string, o objstore.PutOptions) (objstore.Object, error) {
		return s.Put(t.Context(), "k", strings.NewReader(text), int64(len(text)), o)
	}
	if _, err := put("x", objstore.PutOptions{IfMatch: "e"}); !errors.Is(err, objstore.ErrPrecondition) {
		t.Errorf("replace what is missing: %v", err)
	}
	first, err := put("1", objstore.PutOptions{IfAbsent: true, ContentType: "application/json"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := put("x", objstore.PutOptions{IfAbsent: true}); !errors.Is(err, objstore.ErrPrecondition) {
		t.Errorf("create what is there: %v", err)
	}
	if _, err := put("2", objstore.PutOptions{IfMatch: first.ETag}); err != nil {
		t.Fatal(err)
	}
	if _, err := put("x", objstore.PutOptions{IfMatch: first.ETag}); !errors.Is(err, objstore.ErrPrecondition) {
		t.Errorf("replace a state that has passed: %v", err)
	}
	if len(below.puts) != 2 || below.puts[0] != (objstore.PutOptions{ContentType: "application/json"}) {
		t.Errorf("the store was asked to write %+v", below.puts)
	}
	below.with = func() {
		below.with = nil
		if _, err := below.Store.Put(t.Context(), "k", strings.NewReader("rival"), 5, objstore.PutOptions{}); err != nil {
			t.Error(err)
		}
	}
	if _, err := put("3", objstore.PutOptions{}); err != nil {
		t.Errorf("a plain write: %v", err)
	}
	second, _, err := read(s, "k")
	if err != nil {
		t.Fatal(err)
	}
	below.with = func() {
		below.with = nil
		if _, err := below.Store.Put(t.Context(), "k", strings.NewReader("faster"), 6, objstore.PutOptions{}); err != nil {
			t.Error(err)
		}
	}
	if _, err := put("4", objstore.PutOptions{IfMatch: second.ETag}); !errors.Is(err, objstore.ErrPrecondition) {
		t.Errorf("a write that another one replaced at once: %v", err)
	}
	s.Know(objstore.Lacks{Replace: "ignored"})
	if _, err := put("5", objstore.PutOptions{IfAbsent: true}); err != nil || !below.puts[len(below.puts)-1].IfAbsent {
		t.Errorf("a condition that the store does heed is not passed on: %+v, %v", below.puts, err)
	}
}

func read(s objstore.Store, key string) (objstore.Object, string, error) {
	body, o, err := s.Get(context.Background(), key, objstore.GetOptions{})
	if err != nil {
		return o, "", err
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	return o, string(data), err
}

// What is lacking is refused without asking the store; many keys go one by one.
func TestWithout(t *testing.T) {
	mem := memstore.New()
	s := adapt.New(mem)
	made, err := s.Put(t.Context(), "src", strings.NewReader("x"), 1, objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.Know(objstore.Lacks{Copy: "no", PartCopy: "no", BulkDelete: "no", Uploads: "no"})
	up, err := s.NewUpload(t.Context(), "dst")
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	var mu sync.Mutex
	mem.Fail = func(op memstore.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if !op.After {
			asked = append(asked, op.Kind)
		}
		return nil
	}
	_, copied := s.Copy(t.Context(), "dst", made, objstore.CopyOptions{})
	_, listed := s.Uploads(t.Context(), "")
	for what, err := range map[string]error{"copy": copied, "copy part": up.CopyPart(t.Context(), 1, made, 0, 1), "uploads": listed} {
		if !errors.Is(err, objstore.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if len(asked) != 0 {
		t.Errorf("asked all the same: %q", asked)
	}
	if err := s.Delete(t.Context(), []string{"src", "a", "b"}); err != nil || fmt.Sprint(asked) != "[delete delete delete]" {
		t.Errorf("delete: %v, %q", err, asked)
	}
}
