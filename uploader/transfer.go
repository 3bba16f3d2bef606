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
	"github.com/chromafs/chromafs/journal"
)

// transfer puts the content of a plan's files under history/<id>/ (S2): what the
// previous snapshot or a failed attempt has is copied inside the store, the rest is
// sent (S4).
type transfer struct {
	*plan
	id      history.ID
	store   objstore.Store
	log     *slog.Logger
	left    *leftovers   // of failed attempts; nil: nothing
	ledger  *ledger      // where what is stored is noted; nil: nowhere
	sent    atomic.Int64 // bytes of bodies that arrived
	resumed atomic.Int64 // bytes that a failed attempt had sent
	noCopy  atomic.Bool  // the store said that it cannot copy
	noPart  atomic.Bool  // nor copy parts
	spare   chan []byte  // buffers that nobody uses now
	zeroed  zeroObjects
}

// run stores every file.
func (t *transfer) run(ctx context.Context) error {
	t.spare = make(chan []byte, cap(t.slots))
	defer t.drop()
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
	err := group.Wait()
	if err == nil {
		err = objstore.Ended(ctx)
	}
	if err != nil {
		t.ledger.flush()
		return err
	}
	if n := t.resumed.Load(); n > 0 {
		t.log.Info("what failed attempts had stored was not sent again", "bytes", n, "bytes_uploaded", t.sent.Load())
	}
	return t.dropZeros(ctx)
}

// file stores one file and records the ETag of its object.
func (t *transfer) file(ctx context.Context, it *item) error {
	key := history.ObjectKey(t.id, it.rec.Path)
	if it.source.Key != "" && it.rec.SameContent(it.base) {
		done, err := t.copyWhole(ctx, key, it, it.source)
		if done || err != nil {
			return err
		}
	}
	if o, ok := t.left.object(it); ok {
		done, err := t.copyWhole(ctx, key, it, o.Object)
		if done {
			t.resumed.Add(it.rec.Size)
			t.ledger.object(string(t.id), objstore.Object{Key: key, ETag: it.rec.ETag}, it)
		}
		if done || err != nil {
			return err
		}
	}
	f, err := t.view.Open(it.rec.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := t.settling(ctx, f, it); err != nil {
		return err
	}
	var object objstore.Object
	if len(it.rec.Parts) <= 1 {
		object, err = t.put(ctx, key, f, it)
	} else {
		object, err = t.multipart(ctx, key, f, it)
	}
	it.rec.ETag = object.ETag
	return err
}

// settling makes the hashes of an item its own: those of parts that are sent are
// recorded then, and of an unread file there are none before. A sparse one is hashed all
// the same: its holes are skipped, and parts of zeros need not be sent.
func (t *transfer) settling(ctx context.Context, f io.ReaderAt, it *item) error {
	if it.unread {
		it.rec.Parts = make([]tree.Hash, tree.PartCount(it.rec.Size, it.rec.PartSize))
		allocated, known, err := tree.Allocated(f)
		if err == nil && known && allocated < it.rec.Size {
			err = t.hash(ctx, it)
		}
		if err != nil {
			return err
		}
	}
	it.planned, it.rec.Parts = it.rec.Parts, slices.Clone(it.rec.Parts)
	return nil
}

// put sends a file of one part, or of none.
func (t *transfer) put(ctx context.Context, key string, f io.ReaderAt, it *item) (object objstore.Object, err error) {
	exact := false
	send := func(body io.ReaderAt) error {
		object, err = t.store.Put(ctx, key, body, it.rec.Size, objstore.PutOptions{})
		return err
	}
	err = t.withSlot(ctx, func() (err error) {
		if it.rec.Size == 0 {
			return send(f)
		}
		exact, err = t.hold(ctx, f, it, 0, send)
		return err
	})
	if err != nil {
		return object, err
	}
	t.sent.Add(it.rec.Size)
	if exact {
		t.ledger.object(string(t.id), object, it)
	}
	return object, nil
}

// copyWhole copies an object of the previous snapshot or a failed attempt. done is
// false where the bytes have to be sent instead.
func (t *transfer) copyWhole(ctx context.Context, key string, it *item, source objstore.Object) (done bool, err error) {
	if t.noCopy.Load() {
		return false, nil
	}
	err = t.withSlot(ctx, func() error {
		object, err := t.store.Copy(ctx, key, source, objstore.CopyOptions{Immutable: true})
		it.rec.ETag = object.ETag
		return err
	})
	return err == nil, t.tolerate(err, it, source, &t.noCopy)
}

// multipart stores a big file. An upload that a failed attempt began is gone on with,
// where it was begun, and what it makes is copied.
func (t *transfer) multipart(ctx context.Context, key string, f io.ReaderAt, it *item) (objstore.Object, error) {
	if left := t.left.claim(it); left != nil && !t.noCopy.Load() {
		object, err := t.goOn(ctx, left, key, f, it)
		if err == nil || !sentAgain(err) || ctx.Err() != nil {
			return object, err
		}
		t.log.Warn("cannot go on with an upload that was begun, beginning anew", "path", it.rec.Path, "error", err)
		if errors.Is(err, objstore.ErrNoUpload) {
			t.left.recover(ctx, left)
		}
	}
	up, err := t.store.NewUpload(ctx, key)
	if err != nil {
		return objstore.Object{}, err
	}
	return t.fill(ctx, &building{Upload: up, id: string(t.id), key: key}, f, it)
}

// goOn completes an upload that a failed attempt began, under its key, and copies
// what it makes to ours.
func (t *transfer) goOn(ctx context.Context, left *leftUpload, key string, f io.ReaderAt, it *item) (objstore.Object, error) {
	up, err := t.left.resume(ctx, left)
	if err != nil {
		return objstore.Object{}, err
	}
	b := &building{Upload: up, id: left.id, key: left.pending.Key, left: left}
	made, err := t.fill(ctx, b, f, it)
	if err != nil {
		return objstore.Object{}, err
	}
	object, err := t.store.Copy(ctx, key, made, objstore.CopyOptions{Immutable: true})
	if errors.Is(err, objstore.ErrUnsupported) {
		t.noCopy.Store(true)
	}
	if err == nil && !b.moved.Load() {
		t.ledger.object(string(t.id), object, it)
	}
	return object, err
}

// building is an upload on its way to be an object.
type building struct {
	objstore.Upload
	id, key string      // of the attempt that it is noted for, and the object's
	left    *leftUpload // what it had to begin with; nil: nothing
	moved   atomic.Bool // a part that was sent is not what was hashed
}

// fill stores the parts that an upload lacks and completes it.
func (t *transfer) fill(ctx context.Context, up *building, f io.ReaderAt, it *item) (objstore.Object, error) {
	err := t.eachPart(ctx, len(it.rec.Parts), func(ctx context.Context, i int) error { return t.part(ctx, up, f, it, i) })
	if err != nil {
		return objstore.Object{}, err // the upload is collected with the rest of its id
	}
	object, err := up.Complete(ctx)
	if err == nil && object.Size != it.rec.Size { // S2, whatever was thought to be in it
		return object, fmt.Errorf("%w: %s was completed with %d bytes, not %d", objstore.ErrPrecondition, up.key, object.Size, it.rec.Size)
	}
	if err == nil && !up.moved.Load() {
		t.ledger.object(up.id, object, it)
	}
	return object, err
}

// part stores part i (from 0): one that the previous object or one of a failed
// attempt has is copied from there, another is sent.
func (t *transfer) part(ctx context.Context, up *building, f io.ReaderAt, it *item, i int) error {
	off, length := tree.PartRange(it.rec.Size, it.rec.PartSize, i)
	if up.left.has(it, i) {
		t.resumed.Add(length)
		return nil
	}
	if up.left != nil && up.left.parts[i+1].ETag != "" { // until the next note it is not known which one is there
		t.ledger.note(up.id, journal.Stored{Key: up.key, Upload: up.ID(), Part: i + 1})
	}
	if copied, err := t.copyPart(ctx, up, it, i); copied || err != nil {
		return err
	}
	if copied, err := t.copyZeros(ctx, up, it, i); copied || err != nil {
		if copied {
			t.notePart(up, it, i)
		}
		return err
	}
	exact, err := t.hold(ctx, f, it, i, func(body io.ReaderAt) error { return up.PutPart(ctx, i+1, body, off, length) })
	if err != nil {
		return err
	}
	t.sent.Add(length)
	if exact {
		t.notePart(up, it, i)
	} else {
		up.moved.Store(true)
	}
	return failpoint.Hit("uploader/stored-part")
}

// copyPart copies a part inside the store, if there is one to copy.
func (t *transfer) copyPart(ctx context.Context, up *building, it *item, i int) (copied bool, err error) {
	off, length := tree.PartRange(it.rec.Size, it.rec.PartSize, i)
	var sources []leftPart
	if it.hasPart(i) {
		sources = append(sources, leftPart{leftObject{Object: it.source}, off, length})
	}
	if left, ok := t.left.part(it, i); ok {
		sources = append(sources, left)
	}
	for _, s := range sources {
		if t.noPart.Load() {
			return false, nil
		}
		err := up.CopyPart(ctx, i+1, s.Object, s.off, length)
		if err == nil {
			if s.id != "" {
				t.resumed.Add(length)
			}
			t.notePart(up, it, i)
			return true, nil
		}
		if err := t.tolerate(err, it, s.Object, &t.noPart); err != nil {
			return false, err
		}
	}
	return false, nil
}

func (t *transfer) notePart(up *building, it *item, i int) {
	if part, ok := objstore.PartOf(up.Upload, i+1); ok {
		t.ledger.note(up.id, journal.Stored{Key: up.key, Upload: up.ID(), Part: i + 1, Size: part.Size,
			PartSize: it.rec.PartSize, ETag: part.ETag, Hashes: it.rec.Parts[i : i+1]})
	}
}

// hasPart reports whether the previous object holds part i at the same place.
func (it *item) hasPart(i int) bool {
	return it.source.Key != "" && it.basePart(i) && it.base.Parts[i] == it.rec.Parts[i]
}

// tolerate returns nil for an error of a copy after which sending the bytes is
// worth a try: the source is gone or another, or copies are not possible here.
func (t *transfer) tolerate(err error, it *item, source objstore.Object, never *atomic.Bool) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, objstore.ErrUnsupported):
		if never.Swap(true) {
			return nil // it was said
		}
		t.log.Info("cannot copy inside the store, sending the bytes", "path", it.rec.Path, "error", err)
		return nil
	case errors.Is(err, objstore.ErrPrecondition), errors.Is(err, objstore.ErrNotFound),
		errors.Is(err, objstore.ErrRange), errors.Is(err, objstore.ErrRefused):
	default:
		return err
	}
	t.log.Warn("cannot copy inside the store, sending the bytes", "path", it.rec.Path, "source", source.Key, "error", err)
	return nil
}
