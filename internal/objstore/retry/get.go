package retry

import (
	"context"
	"io"

	"github.com/chromafs/chromafs/internal/objstore"
)

// progress is how much of a body must have come for its budget to begin anew: a
// server that breaks off after every byte is given up in the end.
const progress = 1 << 20

// Get implements objstore.Store.
func (s *Store) Get(ctx context.Context, key string, o objstore.GetOptions) (io.ReadCloser, objstore.Object, error) {
	b := &body{ctx: ctx, s: s, key: key, tries: s.r.begin(ctx, "get "+key)}
	var found objstore.Object
	for {
		var err error
		b.now, found, err = s.next.Get(ctx, key, o)
		if err == nil {
			break
		}
		if err := b.tries.next(ctx, err); err != nil {
			return nil, objstore.Object{}, err
		}
	}
	b.tries.recovered()
	b.etag, b.at = found.ETag, o.Offset
	var err error
	if b.left, err = o.CheckRange(found.Size); err != nil { // the adapter let it through
		b.now.Close()
		return nil, objstore.Object{}, err
	}
	return b, found, nil
}

// body is what Get returns. Like any reader it is for one goroutine at a time.
type body struct {
	ctx   context.Context // of the Get that the body belongs to, as in net/http
	s     *Store
	key   string
	etag  string
	tries *tries

	now      io.ReadCloser // nil while there is none
	at, left int64         // where in the object the next byte is, and how many are to come
	since    int64         // bytes since the budget began
	broken   bool          // the body broke off, and nothing has come since
	err      error         // for good
}

// Read implements io.Reader (T5).
func (b *body) Read(p []byte) (int, error) {
	for b.err == nil {
		if b.now == nil {
			b.reopen()
			continue
		}
		n, err := b.now.Read(p)
		b.count(n)
		switch {
		case err == nil, err == io.EOF:
			b.err = err
		case b.left == 0: // what breaks behind the last byte breaks nothing
			b.err = io.EOF
		default:
			b.now.Close() // what it could say is said
			b.now = nil
			b.broken = true
			b.err = b.tries.next(b.ctx, err)
		}
		if n > 0 || err == nil {
			return n, nil
		}
	}
	return 0, b.err
}

func (b *body) count(n int) {
	b.at, b.left, b.since = b.at+int64(n), b.left-int64(n), b.since+int64(n)
	if b.broken && n > 0 {
		b.tries.recovered()
		b.broken = false
	}
	if b.since >= progress {
		b.since = 0
		b.tries.progress()
	}
}

// reopen asks for what is still to come.
func (b *body) reopen() {
	next, _, err := b.s.next.Get(b.ctx, b.key, objstore.GetOptions{Offset: b.at, Length: b.left, IfMatch: b.etag})
	if err != nil {
		b.err = b.tries.next(b.ctx, err)
		return
	}
	b.now = next
}

// Zeros implements objstore.Sparse, as far as the body below does.
func (b *body) Zeros() bool {
	s, ok := b.now.(objstore.Sparse)
	return ok && s.Zeros()
}

// Close implements io.Closer.
func (b *body) Close() error {
	if b.now == nil {
		return nil
	}
	return b.now.Close()
}
