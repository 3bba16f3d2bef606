package lease

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/retry"
)

// object is lease.json in a store.
type object struct {
	store objstore.Store
	rand  io.Reader
}

// errTaken: somebody else has written the lease since it was read.
var errTaken = errors.New("the lease was written by somebody else meanwhile")

// read returns the record and its ETag. Where known is its ETag still, the error is
// objstore.ErrNotModified; where there is none, objstore.ErrNotFound; what cannot be
// understood is errUnreadable, with its ETag.
func (o object) read(ctx context.Context, known string) (Record, string, error) {
	ctx = retry.WithBudget(ctx, 0) // whoever reads asks again, by timers of his own
	body, obj, err := o.store.Get(ctx, Key, objstore.GetOptions{IfNoneMatch: known})
	if err != nil {
		return Record{}, "", fmt.Errorf("read the lease: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(body, maxBytes+1))
	if err := errors.Join(err, body.Close()); err != nil {
		return Record{}, "", fmt.Errorf("read the lease: %w", err)
	}
	r, err := Decode(data)
	if err != nil {
		return Record{}, obj.ETag, fmt.Errorf("%s/%s: %w", o.store, Key, err)
	}
	return r, obj.ETag, nil
}

// write replaces the lease if its ETag is still etag ("" creates it), and returns
// the record as written and its ETag. An answer that was lost is read back. A store
// that knows no conditions gets none: the lease is advice (L1).
func (o object) write(ctx context.Context, r Record, etag string) (Record, string, error) {
	var err error
	if r.Nonce, err = o.nonce(); err != nil {
		return r, "", err
	}
	data, err := Encode(r)
	if err != nil {
		return r, "", err
	}
	ctx = retry.WithBudget(ctx, 0)
	put := func(c objstore.PutOptions) (objstore.Object, error) {
		c.ContentType = "application/json"
		return o.store.Put(ctx, Key, bytes.NewReader(data), int64(len(data)), c)
	}
	obj, err := put(objstore.PutOptions{IfMatch: etag, IfAbsent: etag == ""})
	if errors.Is(err, objstore.ErrUnsupported) {
		obj, err = put(objstore.PutOptions{})
	}
	if err == nil {
		return r, obj.ETag, nil
	}
	err = fmt.Errorf("write the lease: %w", err)
	refused := errors.Is(err, objstore.ErrPrecondition) || errors.Is(err, objstore.ErrNotFound)
	if !refused && !errors.Is(err, objstore.ErrUnavailable) {
		return r, "", err
	}
	there, thereETag, rerr := o.read(ctx, "")
	switch {
	case rerr == nil && there.Nonce == r.Nonce:
		return r, thereETag, nil
	case refused:
		return r, "", fmt.Errorf("%w: %w", errTaken, err)
	}
	return r, "", err
}

func (o object) nonce() (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(o.rand, b[:]); err != nil {
		return "", fmt.Errorf("make a nonce: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// absent reports whether an error of read means that there is no lease to go by.
func absent(err error) bool {
	return errors.Is(err, objstore.ErrNotFound) || errors.Is(err, errUnreadable)
}
