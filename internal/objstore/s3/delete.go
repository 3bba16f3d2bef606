package s3

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"github.com/chromafs/chromafs/internal/objstore"
)

const (
	deleteBatch   = 1000 // what one request may hold
	deleteWorkers = 8    // where there is no such request
)

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, keys []string) error {
	names := make([]string, len(keys))
	for i, key := range keys {
		var err error
		if names[i], err = s.name(key); err != nil {
			return s.fail(ctx, "delete", key, err)
		}
	}
	slices.Sort(names)
	for batch := range slices.Chunk(slices.Compact(names), deleteBatch) {
		if err := s.deleteBatch(ctx, batch); err != nil {
			return s.fail(ctx, "delete", "", err)
		}
	}
	return nil
}

// NoBulkDelete returns why the server does not delete many keys in one request, which
// it was found not to do; nil where it does, or was not asked yet.
func (s *Store) NoBulkDelete() error {
	if why := s.noBulk.Load(); why != nil {
		return *why
	}
	return nil
}

// deleteBatch deletes up to 1000 names in one request, and those for which that was
// not answered, one by one.
func (s *Store) deleteBatch(ctx context.Context, names []string) error {
	if err := objstore.Ended(ctx); err != nil {
		return err
	}
	rest := map[string]bool{}
	for _, name := range names {
		rest[name] = true
	}
	if s.noBulk.Load() == nil && len(names) > 1 {
		objects := make(chan minio.ObjectInfo, len(names))
		for _, name := range names {
			objects <- minio.ObjectInfo{Key: name}
		}
		close(objects)
		var failed error
		for result := range s.core.RemoveObjectsWithResult(ctx, s.o.Bucket, objects, minio.RemoveObjectsOptions{}) {
			_, kind := kindOf(result.Err)
			switch {
			case result.Err == nil || kind == objstore.ErrNotFound:
				delete(rest, result.ObjectName)
			case lacking(result.Err) || kind == objstore.ErrUnsupported:
				if err := result.Err; s.noBulk.Swap(&err) == nil {
					s.log.Info("the store deletes objects one by one only", "store", s.String(), "err", result.Err)
				}
			case failed == nil:
				failed = fmt.Errorf("%s: %w", result.ObjectName, result.Err)
			}
		}
		if failed != nil {
			return failed
		}
	}
	// minio-go also leaves out, silently, keys that the server took for invalid.
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(deleteWorkers)
	for name := range maps.Keys(rest) {
		g.Go(func() error {
			err := s.core.RemoveObject(ctx, s.o.Bucket, name, minio.RemoveObjectOptions{})
			if _, kind := kindOf(err); err == nil || kind == objstore.ErrNotFound {
				return nil
			}
			return fmt.Errorf("%s: %w", name, err)
		})
	}
	return g.Wait()
}
