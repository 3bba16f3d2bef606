package retry

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"

	"github.com/chromafs/chromafs/internal/objstore"
)

// Store is an object store whose operations are repeated.
type Store struct {
	next objstore.Store
	r    *Repeater
}

var (
	_ objstore.Store   = (*Store)(nil)
	_ objstore.Resumer = (*Store)(nil)
)

// Over returns s with its operations repeated.
func (r *Repeater) Over(s objstore.Store) *Store { return &Store{next: s, r: r} }

// String implements objstore.Store.
func (s *Store) String() string { return s.next.String() }

// with does something that returns a value.
func with[V any](ctx context.Context, r *Repeater, what string, write bool, f func() (V, error)) (value V, err error) {
	err = r.do(ctx, what, write, func() (err error) {
		value, err = f()
		return err
	})
	return value, err
}

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o objstore.PutOptions) (objstore.Object, error) {
	return with(ctx, s.r, "put "+key, true, func() (objstore.Object, error) { return s.next.Put(ctx, key, body, size, o) })
}

// Copy implements objstore.Store.
func (s *Store) Copy(ctx context.Context, dst string, src objstore.Object, o objstore.CopyOptions) (objstore.Object, error) {
	return with(ctx, s.r, "copy "+src.Key+" to "+dst, false, func() (objstore.Object, error) { return s.next.Copy(ctx, dst, src, o) })
}

// deleteBatch is how many keys are deleted again where one of them failed: what one
// request to S3 may hold.
const deleteBatch = 1000

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	for _, key := range keys { // all or none
		if err := objstore.CheckKey(key); err != nil {
			return err
		}
	}
	for batch := range slices.Chunk(keys, deleteBatch) {
		if err := s.r.Do(ctx, "delete "+batch[0]+" and others", func() error { return s.next.Delete(ctx, batch) }); err != nil {
			return err
		}
	}
	return nil
}

// Uploads implements objstore.Store.
func (s *Store) Uploads(ctx context.Context, prefix string) ([]objstore.PendingUpload, error) {
	return with(ctx, s.r, "list the uploads to "+prefix, false, func() ([]objstore.PendingUpload, error) { return s.next.Uploads(ctx, prefix) })
}

// AbortUpload implements objstore.Store.
func (s *Store) AbortUpload(ctx context.Context, u objstore.PendingUpload) error {
	return s.r.Do(ctx, "abort the upload to "+u.Key, func() error { return s.next.AbortUpload(ctx, u) })
}

// lister is a Store that can list from the middle on.
type lister interface {
	// ListAfter is List of the keys behind after.
	ListAfter(ctx context.Context, prefix, after string) iter.Seq2[objstore.Object, error]
}

// List implements objstore.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[objstore.Object, error] {
	return func(yield func(objstore.Object, error) bool) {
		t := s.r.begin(ctx, "list "+prefix)
		last := ""
		for {
			var failed error
			for o, err := range s.listAfter(ctx, prefix, last) {
				if err != nil {
					failed = err
					break
				}
				if last != "" && o.Key <= last {
					continue
				}
				last = o.Key
				t.progress()
				if !yield(o, nil) {
					return
				}
			}
			if failed == nil {
				return
			}
			if err := t.next(ctx, failed); err != nil {
				yield(objstore.Object{}, err)
				return
			}
		}
	}
}

func (s *Store) listAfter(ctx context.Context, prefix, after string) iter.Seq2[objstore.Object, error] {
	if l, ok := s.next.(lister); ok && after != "" {
		return l.ListAfter(ctx, prefix, after)
	}
	return s.next.List(ctx, prefix)
}

// upload is an upload whose operations are repeated.
type upload struct {
	objstore.Upload
	r   *Repeater
	key string
}

// NewUpload implements objstore.Store. After a repetition it looks for an upload to key
// whose beginning was answered to nobody, and aborts it: nobody else would know of it.
// So no two uploads to one key may be begun at once.
func (s *Store) NewUpload(ctx context.Context, key string) (objstore.Upload, error) {
	asked := 0
	up, err := with(ctx, s.r, "begin an upload to "+key, false, func() (objstore.Upload, error) {
		asked++
		return s.next.NewUpload(ctx, key)
	})
	if err != nil {
		return nil, err
	}
	if asked > 1 {
		if err := s.abortOthers(ctx, key, up.ID()); err != nil && ctx.Err() == nil {
			s.r.o.Log.Warn("an upload may be left whose beginning was not answered; history prune removes it", "key", key, "error", err)
		}
	}
	return &upload{up, s.r, key}, nil
}

// abortOthers aborts every upload to key but one.
func (s *Store) abortOthers(ctx context.Context, key, id string) error {
	pending, err := s.Uploads(ctx, key)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range pending {
		if p.Key == key && p.ID != id {
			errs = append(errs, s.AbortUpload(ctx, p))
		}
	}
	return errors.Join(errs...)
}

// ResumeUpload implements objstore.Resumer, as far as the store below does.
func (s *Store) ResumeUpload(ctx context.Context, u objstore.PendingUpload, parts []objstore.UploadPart) (objstore.Upload, error) {
	up, err := objstore.ResumeUpload(ctx, s.next, u, parts)
	if err != nil {
		return nil, err
	}
	return &upload{up, s.r, u.Key}, nil
}

// PutPart implements objstore.Upload.
func (u *upload) PutPart(ctx context.Context, n int, body io.ReaderAt, off, size int64) error {
	return u.r.do(ctx, "send a part of "+u.key, true, func() error { return u.Upload.PutPart(ctx, n, body, off, size) })
}

// CopyPart implements objstore.Upload.
func (u *upload) CopyPart(ctx context.Context, n int, src objstore.Object, off, size int64) error {
	return u.r.Do(ctx, "copy a part of "+u.key, func() error { return u.Upload.CopyPart(ctx, n, src, off, size) })
}

// Part implements objstore.PartTeller, as far as the upload below does.
func (u *upload) Part(n int) (objstore.UploadPart, bool) { return objstore.PartOf(u.Upload, n) }

// Complete implements objstore.Upload.
func (u *upload) Complete(ctx context.Context) (objstore.Object, error) {
	return with(ctx, u.r, "complete the upload to "+u.key, false, func() (objstore.Object, error) { return u.Upload.Complete(ctx) })
}

// Abort implements objstore.Upload.
func (u *upload) Abort(ctx context.Context) error {
	return u.r.Do(ctx, "abort the upload to "+u.key, func() error { return u.Upload.Abort(ctx) })
}
