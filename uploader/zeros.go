package uploader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// zeroObjects are objects of zeros that one snapshot's zero parts are copied from, so
// that the emptiness of a sparse file does not go over the wire. They lie in the
// snapshot's folder while it is being stored, so that what a crash leaves of them goes
// with the id, and are gone before its manifest is there: a folder that is published
// holds the files and nothing else.
type zeroObjects struct {
	mu   sync.Mutex // held while one is made: others want it too
	made map[int64]objstore.Object
}

// zerosWorthIt is how many zero parts of a file that would have to be sent justify an
// object of zeros: it costs sending one such part, and a request or two.
const zerosWorthIt = 2

// copyZeros makes part i by copying zeros inside the store. done is false where it has
// to be sent instead.
func (t *transfer) copyZeros(ctx context.Context, up objstore.Upload, it *item, i int) (done bool, err error) {
	if t.noPart.Load() || !it.rec.IsZeroPart(i) {
		return false, nil
	}
	length := it.rec.PartSize
	src, off := it.source, int64(0)
	if j := it.baseZeros(i); j >= 0 {
		off = int64(j) * length
	} else if it.newZeros(i) < zerosWorthIt {
		return false, nil
	} else if src, err = t.zeros(ctx, length); err != nil {
		return false, t.tolerate(err, it, src, &t.noPart)
	}
	err = up.CopyPart(ctx, i+1, src, off, length)
	return err == nil, t.tolerate(err, it, src, &t.noPart)
}

// baseZeros returns a part of the previous object that is what part i is, whole zeros;
// -1 for none.
func (it *item) baseZeros(i int) int {
	if it.source.Key == "" || it.base.PartSize != it.rec.PartSize {
		return -1
	}
	return slices.Index(it.base.Parts, it.rec.Parts[i])
}

// newZeros counts, up to what justifies an object of zeros, the parts that are what part
// i is, whole zeros, and that the previous object does not have.
func (it *item) newZeros(i int) (n int) {
	for j := range it.planned {
		stored := it.source.Key != "" && it.basePart(j) && it.base.Parts[j] == it.planned[j]
		if it.planned[j] == it.planned[i] && !stored {
			if n++; n == zerosWorthIt {
				break
			}
		}
	}
	return n
}

// zeros returns an object of size zeros, made at the first call. Only one part of the
// least size is sent: a bigger object is made of copies of it.
func (t *transfer) zeros(ctx context.Context, size int64) (objstore.Object, error) {
	z := &t.zeroed
	z.mu.Lock()
	defer z.mu.Unlock()
	least, err := t.makeZeros(ctx, tree.MinPartSize, func(key string) (objstore.Object, error) {
		return t.store.Put(ctx, key, tree.Zeros{}, tree.MinPartSize, objstore.PutOptions{})
	})
	if err != nil || size == tree.MinPartSize {
		return least, err
	}
	return t.makeZeros(ctx, size, func(key string) (none objstore.Object, err error) {
		up, err := t.store.NewUpload(ctx, key)
		if err != nil {
			return none, err
		}
		for i := range tree.PartCount(size, least.Size) {
			if err := up.CopyPart(ctx, i+1, least, 0, least.Size); err != nil {
				return none, errors.Join(err, up.Abort(ctx))
			}
		}
		return up.Complete(ctx)
	})
}

// makeZeros makes the object of size zeros unless it is there. mu is held.
func (t *transfer) makeZeros(ctx context.Context, size int64, store func(key string) (objstore.Object, error)) (objstore.Object, error) {
	z := &t.zeroed
	if made, ok := z.made[size]; ok {
		return made, nil
	}
	made, err := store(history.ZerosKey(t.id, size))
	if err != nil {
		return objstore.Object{}, fmt.Errorf("store %d zeros to copy from: %w", size, err)
	}
	if z.made == nil {
		z.made = map[int64]objstore.Object{}
	}
	z.made[size] = made
	if size == tree.MinPartSize {
		t.sent.Add(size)
	}
	return made, nil
}

// dropZeros deletes the objects of zeros. A key that may not delete leaves them to
// whoever removes the snapshot, as it leaves old snapshots.
func (t *transfer) dropZeros(ctx context.Context) error {
	t.zeroed.mu.Lock()
	defer t.zeroed.mu.Unlock()
	var keys []string
	for _, o := range t.zeroed.made {
		keys = append(keys, o.Key)
	}
	if len(keys) == 0 {
		return nil
	}
	err := t.store.Delete(ctx, keys)
	if errors.Is(err, objstore.ErrRefused) {
		t.log.Warn("what zeros were copied from stays in the snapshot's folder", "keys", keys, "error", err)
		return nil
	}
	return err
}
