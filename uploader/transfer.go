package uploader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// transfer puts the content of a plan's files under history/<id>/ (S2): what the
// previous snapshot has is copied inside the store, the rest is sent (S4).
type transfer struct {
	*plan
	id     history.ID
	store  objstore.Store
	log    *slog.Logger
	sent   atomic.Int64 // bytes of bodies that arrived
	noCopy atomic.Bool  // the store said that it cannot copy
	noPart atomic.Bool  // nor copy parts
	zeroed zeroObjects
}

// run stores every file.
func (t *transfer) run(ctx context.Context) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(cap(t.slots))
	for i := range t.items {
		it := &t.items[i]
		if it.rec.Type != tree.File {
			continue
		}
		if gctx.Err() != nil {
			break
		}
		group.Go(func() error {
			if err := t.file(gctx, it); err != nil {
				return fmt.Errorf("store %s: %w", it.rec.Path, err)
			}
			return failpoint.Hit("uploader/stored-file")
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := endOf(ctx); err != nil {
		return err
	}
	return t.dropZeros(ctx)
}

// file stores one file and records the ETag of its object.
func (t *transfer) file(ctx context.Context, it *item) error {
	key := history.ObjectKey(t.id, it.rec.Path)
	if it.source.Key != "" && it.rec.SameContent(it.base) {
		done, err := t.copyWhole(ctx, key, it)
		if done || err != nil {
			return err
		}
	}
	if it.trusted || len(it.rec.Parts) <= 1 && it.kept != nil {
		if err := t.distrust(ctx, it); err != nil {
			return err
		}
	}
	f, err := t.view.Open(it.rec.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	var object objstore.Object
	if len(it.rec.Parts) <= 1 {
		object, err = t.put(ctx, key, f, it.rec.Size)
	} else {
		object, err = t.multipart(ctx, key, f, it)
	}
	it.rec.ETag = object.ETag
	return err
}

// distrust reads a file all the same: what is sent is what the manifest says,
// whatever journal and view thought.
func (t *transfer) distrust(ctx context.Context, it *item) error {
	known := it.rec.Parts
	it.touched, it.trusted = nil, false
	if err := t.hash(ctx, it); err != nil {
		return err
	}
	if !slices.Equal(it.rec.Parts, known) {
		t.log.Warn("a file that nothing was known to have written to has changed", "path", it.rec.Path)
	}
	return nil
}

// distrustPart does so for a part.
func (t *transfer) distrustPart(ctx context.Context, f io.ReaderAt, it *item, i int) error {
	sum, err := it.hashPart(ctx, f, i)
	if err == nil && sum != it.rec.Parts[i] {
		t.log.Warn("a part that nothing was known to have written to has changed", "path", it.rec.Path, "part", i)
		it.rec.Parts[i] = sum
	}
	return err
}

func (t *transfer) put(ctx context.Context, key string, f io.ReaderAt, size int64) (object objstore.Object, err error) {
	err = t.withSlot(ctx, func() error {
		object, err = t.store.Put(ctx, key, f, size, objstore.PutOptions{})
		return err
	})
	if err == nil {
		t.sent.Add(size)
	}
	return object, err
}

// copyWhole copies the previous snapshot's object. done is false where the bytes
// have to be sent instead.
func (t *transfer) copyWhole(ctx context.Context, key string, it *item) (done bool, err error) {
	if t.noCopy.Load() {
		return false, nil
	}
	err = t.withSlot(ctx, func() error {
		object, err := t.store.Copy(ctx, key, it.source, objstore.CopyOptions{Immutable: true})
		it.rec.ETag = object.ETag
		return err
	})
	return err == nil, t.tolerate(err, it, &t.noCopy)
}

// multipart stores a big file: parts that the previous snapshot's object has at
// the same place are copied from there, the others are sent.
func (t *transfer) multipart(ctx context.Context, key string, f io.ReaderAt, it *item) (objstore.Object, error) {
	up, err := t.store.NewUpload(ctx, key)
	if err != nil {
		return objstore.Object{}, err
	}
	err = t.eachPart(ctx, len(it.rec.Parts), func(ctx context.Context, i int) error {
		off, length := tree.PartRange(it.rec.Size, it.rec.PartSize, i)
		if it.hasPart(i) && !t.noPart.Load() {
			err := up.CopyPart(ctx, i+1, it.source, off, length)
			if err == nil {
				return nil
			}
			if err := t.tolerate(err, it, &t.noPart); err != nil {
				return err
			}
		}
		if done, err := t.copyZeros(ctx, up, it, i); done || err != nil {
			return err
		}
		if it.kept != nil && it.kept[i] {
			if err := t.distrustPart(ctx, f, it, i); err != nil {
				return err
			}
		}
		if err := up.PutPart(ctx, i+1, f, off, length); err != nil {
			return err
		}
		t.sent.Add(length)
		return failpoint.Hit("uploader/stored-part")
	})
	if err != nil {
		return objstore.Object{}, err // the upload is collected with the rest of the id
	}
	return up.Complete(ctx)
}

// hasPart reports whether the previous object holds part i at the same place.
func (it *item) hasPart(i int) bool {
	return it.source.Key != "" && it.basePart(i) && it.base.Parts[i] == it.rec.Parts[i]
}

// tolerate returns nil for an error of a copy after which sending the bytes is
// worth a try: the source is gone or another, or copies are not possible here.
func (t *transfer) tolerate(err error, it *item, never *atomic.Bool) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, objstore.ErrUnsupported):
		never.Store(true)
	case errors.Is(err, objstore.ErrPrecondition), errors.Is(err, objstore.ErrNotFound),
		errors.Is(err, objstore.ErrRange), errors.Is(err, objstore.ErrRefused):
	default:
		return err
	}
	t.log.Warn("cannot copy inside the store, sending the bytes", "path", it.rec.Path, "source", it.source.Key, "error", err)
	return nil
}
