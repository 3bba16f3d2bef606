// Package memstore is an object store in memory, for unit tests of the packages
// above objstore. It keeps promises O1–O5 (it passes storetest) and behaves as S3
// does where stores differ: the ETag is the MD5 of the content, so equal content
// has an equal one, and that of an object made of parts is of another form.
//
// Fail makes it fail: before the Nth operation, as a store that is down, or after
// its effect, as a lost answer.
package memstore

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
)

// Op is one operation, as Fail sees it.
type Op struct {
	N    int    // counts from 0 over all operations of the store
	Kind string // get, put, copy, new-upload, put-part, copy-part, complete, abort, list, delete, uploads, abort-upload
	Key  string // the key, the destination or the prefix; the first one of a delete
	// After tells the second question, asked when the operation has had its effect,
	// from the first one.
	After bool
}

// Store is an objstore.Store in memory.
type Store struct {
	// Fail is asked before and after each operation; an error it returns is the
	// operation's, of kind ErrUnavailable unless it has a kind. Set it before use
	// or between operations. It is called without the lock.
	Fail func(Op) error
	// Now is the clock of Object.Modified. Set it before use.
	Now func() time.Time

	mu      sync.Mutex // guards what follows
	ops     int
	uploads int
	objects map[string]object
	pending map[string]*upload
}

type object struct {
	objstore.Object
	data []byte // never modified
}

var _ objstore.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	return &Store{Now: time.Now, objects: map[string]object{}, pending: map[string]*upload{}}
}

// String implements objstore.Store.
func (s *Store) String() string { return "mem://" }

// do carries out one operation between Fail's two questions. The effect runs under
// the lock and returns an error of a kind.
func (s *Store) do(ctx context.Context, kind, key string, effect func() error) error {
	s.mu.Lock()
	op := Op{N: s.ops, Kind: kind, Key: key}
	s.ops++
	s.mu.Unlock()
	if err := s.ask(ctx, op); err != nil {
		return err
	}
	s.mu.Lock()
	err := effect()
	s.mu.Unlock()
	if err != nil {
		return s.fail(op, err)
	}
	op.After = true
	return s.ask(ctx, op)
}

func (s *Store) ask(ctx context.Context, op Op) error {
	if err := objstore.Ended(ctx); err != nil {
		return &objstore.Error{Op: op.Kind, Store: s.String(), Key: op.Key, Err: err}
	}
	if s.Fail != nil {
		if err := s.Fail(op); err != nil {
			if objstore.KindOf(err) == nil {
				return &objstore.Error{Op: op.Kind, Store: s.String(), Key: op.Key, Kind: objstore.ErrUnavailable, Err: err}
			}
			return s.fail(op, err)
		}
	}
	return nil
}

func (s *Store) fail(op Op, err error) error {
	return &objstore.Error{Op: op.Kind, Store: s.String(), Key: op.Key, Kind: objstore.KindOf(err), Err: err}
}

// Get implements objstore.Store.
func (s *Store) Get(ctx context.Context, key string, o objstore.GetOptions) (io.ReadCloser, objstore.Object, error) {
	if err := objstore.CheckKey(key); err != nil {
		return nil, objstore.Object{}, err
	}
	var found object
	var length int64
	err := s.do(ctx, "get", key, func() (err error) {
		var ok bool
		found, ok = s.objects[key]
		switch {
		case !ok:
			return objstore.ErrNotFound
		case o.IfMatch != "" && o.IfMatch != found.ETag:
			return objstore.ErrPrecondition
		case o.IfNoneMatch != "" && o.IfNoneMatch == found.ETag:
			return objstore.ErrNotModified
		}
		length, err = o.CheckRange(found.Size)
		return err
	})
	if err != nil {
		return nil, objstore.Object{}, err
	}
	return io.NopCloser(bytes.NewReader(found.data[o.Offset : o.Offset+length])), found.Object, nil
}

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o objstore.PutOptions) (objstore.Object, error) {
	if err := objstore.CheckKey(key); err != nil {
		return objstore.Object{}, err
	}
	data, err := read(body, 0, size)
	if err != nil {
		return objstore.Object{}, &objstore.Error{Op: "put", Store: s.String(), Key: key, Err: err}
	}
	var made objstore.Object
	err = s.do(ctx, "put", key, func() error {
		old, exists := s.objects[key]
		if o.IfAbsent && exists || o.IfMatch != "" && o.IfMatch != old.ETag {
			return objstore.ErrPrecondition
		}
		sum := md5.Sum(data)
		made = s.storeLocked(key, data, hex.EncodeToString(sum[:]))
		return nil
	})
	return made, err
}

func (s *Store) storeLocked(key string, data []byte, etag string) objstore.Object {
	o := objstore.Object{Key: key, Size: int64(len(data)), ETag: etag, Modified: s.Now()}
	s.objects[key] = object{o, data}
	return o
}

// read reads a part of a caller's body. An error is the caller's own.
func read(body io.ReaderAt, off, size int64) ([]byte, error) {
	var data bytes.Buffer
	data.Grow(int(min(max(size, 0), 64<<20)) + bytes.MinRead)
	_, err := data.ReadFrom(objstore.NewBody(body, off, size))
	return data.Bytes(), err
}

// sourceLocked finds the object that a copy is pinned to.
func (s *Store) sourceLocked(src objstore.Object) (object, error) {
	found, ok := s.objects[src.Key]
	switch {
	case !ok:
		return object{}, fmt.Errorf("source %s: %w", src.Key, objstore.ErrNotFound)
	case found.ETag != src.ETag:
		return object{}, fmt.Errorf("source %s: %w", src.Key, objstore.ErrPrecondition)
	}
	return found, nil
}

// Copy implements objstore.Store.
func (s *Store) Copy(ctx context.Context, dst string, src objstore.Object, _ objstore.CopyOptions) (objstore.Object, error) {
	if err := objstore.CheckKey(dst); err != nil {
		return objstore.Object{}, err
	}
	var made objstore.Object
	err := s.do(ctx, "copy", dst, func() error {
		found, err := s.sourceLocked(src)
		if err != nil {
			return err
		}
		made = s.storeLocked(dst, found.data, found.ETag)
		return nil
	})
	return made, err
}

// List implements objstore.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[objstore.Object, error] {
	return func(yield func(objstore.Object, error) bool) {
		var found []objstore.Object
		err := s.do(ctx, "list", prefix, func() error {
			for _, key := range slices.Sorted(maps.Keys(s.objects)) {
				if strings.HasPrefix(key, prefix) {
					found = append(found, s.objects[key].Object)
				}
			}
			return nil
		})
		if err != nil {
			yield(objstore.Object{}, err)
			return
		}
		for _, o := range found {
			if err := objstore.Ended(ctx); err != nil {
				yield(objstore.Object{}, &objstore.Error{Op: "list", Store: s.String(), Key: prefix, Err: err})
				return
			}
			if !yield(o, nil) {
				return
			}
		}
	}
}

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	for _, key := range keys {
		if err := objstore.CheckKey(key); err != nil {
			return err
		}
	}
	return s.do(ctx, "delete", keys[0], func() error {
		for _, key := range keys {
			delete(s.objects, key)
		}
		return nil
	})
}
