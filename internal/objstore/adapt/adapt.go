// Package adapt lets an object store be used that lacks something, once it is known
// what (package probe finds out).
//
// The model: a Store passes everything on to the adapter until Know says what is
// lacking. From then on
//
//   - what cannot be had another way is objstore.ErrUnsupported at once, without a
//     request: copies, copies of parts, the listing of uploads. Callers send the bytes
//     instead, or go without, as they do where a store says so itself.
//   - many keys are deleted one by one.
//   - a conditional write becomes three requests: look whether the condition holds,
//     write, look whether what is there now is what was written. ErrPrecondition means
//     what it does elsewhere. That the write was the only one is not certain: two that
//     look at the same moment both go on, and the one that writes last wins. Of the
//     other, the second look may have come before that. So O2 does not hold, and W1
//     with it: whoever calls Know with a store without conditions has been told that
//     there is one writer.
package adapt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/chromafs/chromafs/internal/objstore"
)

// deleteWorkers is how many keys are deleted at the same time, one by one.
const deleteWorkers = 8

// Store is an object store without what it lacks. It is safe for concurrent use.
type Store struct {
	objstore.Store
	lacks atomic.Pointer[objstore.Lacks]
}

var _ objstore.Store = (*Store)(nil)

// New returns s, of which nothing is known yet.
func New(s objstore.Store) *Store { return &Store{Store: s} }

// Know says what the store lacks.
func (s *Store) Know(l objstore.Lacks) { s.lacks.Store(&l) }

// Lacks returns what Know said; known is false before that.
func (s *Store) Lacks() (l objstore.Lacks, known bool) {
	if p := s.lacks.Load(); p != nil {
		return *p, true
	}
	return l, false
}

// without returns the error of an operation that the store lacks; nil if it has it.
func (s *Store) without(op, key string, why func(objstore.Lacks) string) error {
	l, _ := s.Lacks()
	if why := why(l); why != "" {
		return &objstore.Error{Op: op, Store: s.String(), Key: key, Kind: objstore.ErrUnsupported, Err: errors.New(why)}
	}
	return nil
}

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o objstore.PutOptions) (objstore.Object, error) {
	l, _ := s.Lacks()
	if o.IfAbsent && l.Create != "" || o.IfMatch != "" && l.Replace != "" {
		return s.putChecked(ctx, key, body, size, o)
	}
	return s.Store.Put(ctx, key, body, size, o)
}

func (s *Store) putChecked(ctx context.Context, key string, body io.ReaderAt, size int64, o objstore.PutOptions) (none objstore.Object, err error) {
	refuse := func(why string) error {
		return &objstore.Error{Op: "put", Store: s.String(), Key: key, Kind: objstore.ErrPrecondition, Err: errors.New(why)}
	}
	before, err := s.etag(ctx, key)
	switch {
	case err != nil:
		return none, err
	case o.IfAbsent && before != "":
		return none, refuse("it is there already")
	case o.IfMatch != "" && before != o.IfMatch:
		return none, refuse(fmt.Sprintf("its ETag is %q, not %q", before, o.IfMatch))
	}
	made, err := s.Store.Put(ctx, key, body, size, objstore.PutOptions{ContentType: o.ContentType})
	if err != nil {
		return none, err
	}
	after, err := s.etag(ctx, key)
	switch {
	case err != nil:
		return none, err
	case after != made.ETag:
		return none, refuse("another writer replaced it at the same moment")
	}
	return made, nil
}

// etag returns the ETag of what a key holds, "" for nothing.
func (s *Store) etag(ctx context.Context, key string) (string, error) {
	body, o, err := s.Get(ctx, key, objstore.GetOptions{Length: 1})
	if errors.Is(err, objstore.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return o.ETag, body.Close()
}

// Copy implements objstore.Store.
func (s *Store) Copy(ctx context.Context, dst string, src objstore.Object, o objstore.CopyOptions) (objstore.Object, error) {
	if err := s.without("copy "+src.Key+" to", dst, func(l objstore.Lacks) string { return l.Copy }); err != nil {
		return objstore.Object{}, err
	}
	return s.Store.Copy(ctx, dst, src, o)
}

// NewUpload implements objstore.Store.
func (s *Store) NewUpload(ctx context.Context, key string) (objstore.Upload, error) {
	up, err := s.Store.NewUpload(ctx, key)
	if err != nil {
		return nil, err
	}
	return &upload{up, s, key}, nil
}

// ResumeUpload implements objstore.Resumer, as far as the store below does.
func (s *Store) ResumeUpload(ctx context.Context, p objstore.PendingUpload, parts []objstore.UploadPart) (objstore.Upload, error) {
	up, err := objstore.ResumeUpload(ctx, s.Store, p, parts)
	if err != nil {
		return nil, err
	}
	return &upload{up, s, p.Key}, nil
}

type upload struct {
	objstore.Upload
	s   *Store
	key string
}

// Part implements objstore.PartTeller, as far as the upload below does.
func (u *upload) Part(n int) (objstore.UploadPart, bool) { return objstore.PartOf(u.Upload, n) }

// CopyPart implements objstore.Upload.
func (u *upload) CopyPart(ctx context.Context, n int, src objstore.Object, off, size int64) error {
	err := u.s.without(fmt.Sprintf("copy part %d of", n), u.key, func(l objstore.Lacks) string { return l.PartCopy })
	if err != nil {
		return err
	}
	return u.Upload.CopyPart(ctx, n, src, off, size)
}

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	if l, _ := s.Lacks(); l.BulkDelete == "" {
		return s.Store.Delete(ctx, keys)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(deleteWorkers)
	for _, key := range keys {
		g.Go(func() error { return s.Store.Delete(ctx, []string{key}) })
	}
	return g.Wait()
}

// Uploads implements objstore.Store.
func (s *Store) Uploads(ctx context.Context, prefix string) ([]objstore.PendingUpload, error) {
	if err := s.without("list the uploads to", prefix, func(l objstore.Lacks) string { return l.Uploads }); err != nil {
		return nil, err
	}
	return s.Store.Uploads(ctx, prefix)
}
