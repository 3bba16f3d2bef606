package retry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/objstore/storetest"
)

// brittle gives bodies that break off after some bytes, and listings that break off
// after some keys.
type brittle struct {
	*memstore.Store
	after  int
	gets   []objstore.GetOptions
	lists  int
	change func(n int) // before the nth get
}

func (b *brittle) Get(ctx context.Context, key string, o objstore.GetOptions) (io.ReadCloser, objstore.Object, error) {
	b.gets = append(b.gets, o)
	if b.change != nil {
		b.change(len(b.gets))
	}
	body, found, err := b.Store.Get(ctx, key, o)
	if err != nil {
		return nil, found, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(body, int64(b.after)), failing{}), body}, found, nil
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, unavailable() }

func (b *brittle) List(ctx context.Context, prefix string) iter.Seq2[objstore.Object, error] {
	return b.ListAfter(ctx, prefix, "")
}

func (b *brittle) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[objstore.Object, error] {
	b.lists++
	return func(yield func(objstore.Object, error) bool) {
		n := 0
		for o, err := range b.Store.List(ctx, prefix) {
			if err == nil && o.Key <= after {
				continue
			}
			if n++; n > b.after {
				yield(objstore.Object{}, unavailable())
				return
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

// deaf is one that cannot list from the middle on. Each time it gets further.
type deaf struct {
	objstore.Store
	lists int
}

func (d *deaf) List(ctx context.Context, prefix string) iter.Seq2[objstore.Object, error] {
	d.lists++
	return func(yield func(objstore.Object, error) bool) {
		n := 0
		for o, err := range d.Store.List(ctx, prefix) {
			if n++; n > 40*d.lists {
				yield(objstore.Object{}, unavailable())
				return
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

// T5: a body goes on where it broke off, of the very object that it began with.
func TestBodiesGoOn(t *testing.T) {
	data := storetest.Bytes(1, 1000)
	for _, o := range []objstore.GetOptions{{}, {Offset: 100}, {Offset: 100, Length: 350}, {Offset: 900, Length: 500}, {Length: 64}} {
		inner := &brittle{Store: memstore.New(), after: 64}
		src, err := inner.Put(t.Context(), "k", bytes.NewReader(data), 1000, objstore.PutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		body, found, err := newRepeater(&clock{}, policy).Over(inner).Get(t.Context(), "k", o)
		if err != nil || found.Size != 1000 {
			t.Fatal(found, err)
		}
		got, err := io.ReadAll(body)
		want := data[o.Offset:]
		if o.Length > 0 {
			want = want[:min(int(o.Length), len(want))]
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%+v: read %d bytes, not the %d wanted: %v", o, len(got), len(want), err)
		}
		if n := (len(want) + 63) / 64; len(inner.gets) != n {
			t.Errorf("%+v: %d requests for %d pieces", o, len(inner.gets), n)
		}
		for i, g := range inner.gets[1:] {
			if g.IfMatch != src.ETag || g.Offset != o.Offset+int64(64*(i+1)) || g.Offset+g.Length != o.Offset+int64(len(want)) {
				t.Errorf("%+v: request %d asks for %+v", o, i+1, g)
			}
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestBodyOfAnObjectThatChanges(t *testing.T) {
	inner := &brittle{Store: memstore.New(), after: 10}
	put := func(text string) {
		if _, err := inner.Put(t.Context(), "k", strings.NewReader(text), int64(len(text)), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	put(strings.Repeat("a", 30))
	inner.change = func(n int) {
		if n == 2 {
			put(strings.Repeat("b", 30))
		}
	}
	body, _, err := newRepeater(&clock{}, policy).Over(inner).Get(t.Context(), "k", objstore.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(body); string(got) != "aaaaaaaaaa" || objstore.KindOf(err) != objstore.ErrPrecondition {
		t.Errorf("read %q, %v", got, err)
	}
}

// T3: a body that always breaks off is given up, unless a lot came in between.
func TestBodiesEnd(t *testing.T) {
	short := policy
	short.Attempts = 5
	for after, whole := range map[int]bool{0: false, 1000: false, 1 << 20: true} {
		inner := &brittle{Store: memstore.New(), after: after}
		size := max(8*after, 10_000)
		if _, err := inner.Put(t.Context(), "k", bytes.NewReader(make([]byte, size)), int64(size), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		c := &clock{}
		body, _, err := newRepeater(c, short).Over(inner).Get(t.Context(), "k", objstore.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, body)
		if whole != (err == nil && n == int64(size)) || !whole && (objstore.KindOf(err) != objstore.ErrUnavailable || c.total() > policy.Time) {
			t.Errorf("breaking off each %d bytes: %d bytes, %v, waited %v", after, n, err, c.total())
		}
	}
}

// T5: a listing whose page fails yields every key once.
func TestListingsGoOn(t *testing.T) {
	inner := &brittle{Store: memstore.New(), after: 3}
	var want []string
	for i := range 200 {
		key := fmt.Sprintf("dir/%03d", i)
		want = append(want, key)
		if _, err := inner.Put(t.Context(), key, strings.NewReader(""), 0, objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for o, err := range newRepeater(&clock{}, policy).Over(inner).List(t.Context(), "dir/") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, o.Key)
	}
	if !slices.Equal(got, want) || inner.lists != 67 {
		t.Errorf("%d keys in %d listings", len(got), inner.lists)
	}
	for o, err := range newRepeater(&clock{}, policy).Over(inner).List(t.Context(), "dir/") { // left early
		if err != nil || o.Key != want[0] {
			t.Fatal(o, err)
		}
		break
	}
	// Where it cannot go on in the middle it begins anew, and still yields no key twice.
	got, inner.lists = nil, 0
	for o, err := range newRepeater(&clock{}, policy).Over(&deaf{Store: inner.Store}).List(t.Context(), "dir/") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, o.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("from the start each time: %d keys", len(got))
	}
	inner.Fail = func(memstore.Op) error { return errors.New("down") }
	var last error
	for _, err := range newRepeater(&clock{}, policy).Over(inner).List(t.Context(), "dir/") {
		last = err
	}
	if objstore.KindOf(last) != objstore.ErrUnavailable {
		t.Errorf("a store that stays down: %v", last)
	}
}
