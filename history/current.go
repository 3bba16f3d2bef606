package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// RefreshCurrent brings "current" from prev to next (prev may be nil): files that
// changed are copied inside the store (where it does not copy, through this machine),
// keys that only prev named are deleted, all others are left alone. It is repeated
// after an error as it is. It acts for the writer of head, and ends with a
// *FencedError once that has been replaced.
func (c *Catalog) RefreshCurrent(ctx context.Context, head Head, prev, next *Manifest) error {
	had := map[string]*tree.Record{}
	if prev != nil {
		had = filesByKey(prev)
	}
	_, err := c.bringCurrent(ctx, &watch{catalog: c, head: head}, had, next, func(key string, r *tree.Record) bool {
		old, ok := had[key]
		return ok && old.SameContent(*r)
	})
	return err
}

// RepairCurrent makes "current" the copy of next where it is not known how far an
// interrupted refresh from prev (may be nil) has come, and returns how many files
// it copied. It goes by sizes and ETags of a listing, so where a store gives a copy
// another ETag than its source it copies more than it must. As to head, see
// RefreshCurrent.
func (c *Catalog) RepairCurrent(ctx context.Context, head Head, prev, next *Manifest) (copied int, err error) {
	had := map[string]*tree.Record{}
	if prev != nil {
		had = filesByKey(prev)
	}
	there := map[string]objstore.Object{}
	for obj, err := range c.store.List(ctx, "") {
		if err != nil {
			return 0, fmt.Errorf("repair current: %w", err)
		}
		if _, _, inHistory := snapshotOf(obj.Key); !inHistory {
			there[obj.Key] = obj
		}
	}
	return c.bringCurrent(ctx, &watch{catalog: c, head: head}, had, next, func(key string, r *tree.Record) bool {
		obj, ok := there[key]
		return ok && obj.Size == r.Size && r.ETag != "" && obj.ETag == r.ETag
	})
}

// bringCurrent deletes the keys of had that next does not have, then copies what
// is not fresh. The order matters where a file became a folder: some stores cannot
// hold x and x/y together.
func (c *Catalog) bringCurrent(ctx context.Context, w *watch, had map[string]*tree.Record, next *Manifest,
	fresh func(string, *tree.Record) bool) (copied int, err error) {
	want := filesByKey(next)
	var gone []string
	for key := range had {
		if want[key] == nil {
			gone = append(gone, key)
		}
	}
	if len(gone) > 0 {
		if err := w.look(ctx); err != nil {
			return 0, fmt.Errorf("refresh current: %w", err)
		}
		if err := c.store.Delete(ctx, gone); err != nil {
			return 0, fmt.Errorf("refresh current: %w", err)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for key, r := range want {
		if fresh(key, r) {
			continue
		}
		copied++
		g.Go(func() error {
			if err := failpoint.Hit("history/refresh-current"); err != nil {
				return err
			}
			if err := w.look(gctx); err != nil {
				return err
			}
			src := objstore.Object{Key: ObjectKey(next.ID, r.Path), Size: r.Size, ETag: r.ETag}
			return c.copyCurrent(gctx, key, src)
		})
	}
	if err := g.Wait(); err != nil {
		return 0, fmt.Errorf("refresh current to %s: %w", next.ID, err)
	}
	return copied, nil
}

// watchEvery is how long a look at the head is good for.
const watchEvery = time.Second

// watch keeps a writer that was left behind from going on with current. No store can
// fence a copy, so the head is looked at before the first, and again where time has
// passed since: a process that was stopped and wakes up looks before it acts. A
// request that was under way by then, and what follows within watchEvery of a look,
// is what remains of the gap.
type watch struct {
	catalog *Catalog
	head    Head

	mu     sync.Mutex // held over the request: the others wait for its answer
	looked time.Time  // when the last look was begun; zero: never
}

// look returns a *FencedError where the head is of another writer.
func (w *watch) look(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if !w.looked.IsZero() && now.Sub(w.looked) < watchEvery {
		return nil
	}
	h, _, err := w.catalog.readHead(ctx)
	if err != nil {
		return err
	}
	if h.Epoch != w.head.Epoch || h.Writer != w.head.Writer {
		return &FencedError{Head: h}
	}
	w.looked = now
	return nil
}

// copyCurrent copies one object of the newest snapshot to where people look for it.
// A store that does not copy is read and written instead: it costs the wire twice, but
// "current" is what other tools take for the data, and an old state of it, or a mix of
// two, is worse than none.
func (c *Catalog) copyCurrent(ctx context.Context, key string, src objstore.Object) error {
	_, err := c.store.Copy(ctx, key, src, objstore.CopyOptions{})
	if err == nil || !errors.Is(err, objstore.ErrUnsupported) && !errors.Is(err, objstore.ErrRefused) {
		return err
	}
	if !c.noCopy.Swap(true) {
		c.log.Warn("the store does not copy objects: current is read back and sent again", "error", err)
	}
	if rerr := c.relay(ctx, key, src); rerr != nil {
		return errors.Join(err, rerr)
	}
	return nil
}

// relay copies an object through this machine, part by part, each pinned.
func (c *Catalog) relay(ctx context.Context, key string, src objstore.Object) error {
	part := tree.PartSize(src.Size)
	if src.Size <= part {
		data, err := c.readPart(ctx, src, 0, src.Size)
		if err != nil {
			return err
		}
		_, err = c.store.Put(ctx, key, bytes.NewReader(data), src.Size, objstore.PutOptions{})
		return err
	}
	up, err := c.store.NewUpload(ctx, key)
	if err != nil {
		return err
	}
	for n, off := 1, int64(0); off < src.Size; n, off = n+1, off+part {
		size := min(part, src.Size-off)
		var data []byte
		if data, err = c.readPart(ctx, src, off, size); err == nil {
			err = up.PutPart(ctx, n, bytes.NewReader(data), 0, size)
		}
		if err != nil {
			break
		}
	}
	if err == nil {
		_, err = up.Complete(ctx)
	}
	if err != nil { // it lies beside the snapshots, where nothing collects it
		abort, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
		defer cancel()
		err = errors.Join(err, up.Abort(abort))
	}
	return err
}

// abortTimeout bounds the removal of an upload that failed.
const abortTimeout = 15 * time.Second

// readPart reads a range of an object, which must still be the one that src says.
func (c *Catalog) readPart(ctx context.Context, src objstore.Object, off, size int64) ([]byte, error) {
	body, _, err := c.store.Get(ctx, src.Key, objstore.GetOptions{Offset: off, Length: size, IfMatch: src.ETag})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data := make([]byte, size)
	if _, err := io.ReadFull(body, data); err != nil {
		return nil, fmt.Errorf("read %s: %w", src.Key, err)
	}
	return data, nil
}

func filesByKey(m *Manifest) map[string]*tree.Record {
	files := make(map[string]*tree.Record, len(m.Entries))
	for i := range m.Entries {
		if r := &m.Entries[i]; r.Type == tree.File {
			files[CurrentKey(r.Path)] = r
		}
	}
	return files
}
