package s3

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/chromafs/chromafs/internal/objstore"
)

// List implements objstore.Store. That each page is the store's own word on bucket
// and prefix is seen to by the guard.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[objstore.Object, error] {
	return s.ListAfter(ctx, prefix, "")
}

// ListAfter is List of the keys behind after: how a listing that broke off goes on.
func (s *Store) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[objstore.Object, error] {
	return func(yield func(objstore.Object, error) bool) {
		fail := func(err error) { yield(objstore.Object{}, s.fail(ctx, "list", prefix, err)) }
		last, start := "", ""
		if after != "" {
			start = s.under(after)
		}
		noOwner := false
		for info := range s.core.ListObjectsIter(ctx, s.o.Bucket, minio.ListObjectsOptions{
			Prefix: s.under(prefix), Recursive: true, FetchOwner: &noOwner, StartAfter: start,
		}) {
			if info.Err != nil {
				fail(info.Err)
				return
			}
			key, ok := s.key(info.Key)
			switch {
			case !ok || !strings.HasPrefix(key, prefix):
				fail(fmt.Errorf("%w: the listing holds %q", objstore.ErrRefused, info.Key))
				return
			case info.Key <= last: // also a page that comes again and again
				fail(fmt.Errorf("%w: the listing holds %q after %q", objstore.ErrRefused, info.Key, last))
				return
			}
			last = info.Key
			if info.Key <= start { // a server that does not heed StartAfter
				continue
			}
			if strings.HasSuffix(info.Key, "/") { // a "folder" that a console made
				continue
			}
			if !yield(objstore.Object{Key: key, Size: info.Size, ETag: info.ETag, Modified: info.LastModified}, nil) {
				return
			}
		}
		// minio-go ends silently where the context ends.
		if err := objstore.Ended(ctx); err != nil {
			fail(err)
		}
	}
}

// Uploads implements objstore.Store. It asks for those of the whole bucket: some
// servers know no prefix but "" and a whole key.
func (s *Store) Uploads(ctx context.Context, prefix string) ([]objstore.PendingUpload, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var found []objstore.PendingUpload
	var failed error
	// The channel is read to its end: minio-go's goroutine would wait for ever.
	for info := range s.core.ListIncompleteUploads(ctx, s.o.Bucket, "", true) {
		if info.Err != nil {
			if failed == nil {
				failed = info.Err
			}
			continue
		}
		if key, ok := s.key(info.Key); ok && strings.HasPrefix(key, prefix) {
			found = append(found, objstore.PendingUpload{Key: key, ID: info.UploadID, Started: info.Initiated})
		}
	}
	if failed == nil {
		failed = objstore.Ended(ctx)
	}
	if failed != nil {
		return nil, s.fail(ctx, "list the uploads to", prefix, failed)
	}
	return found, nil
}
