package history

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/objstore"
)

// Rotate splits a list, oldest first, into the newest keep ids and the others. The
// newest one is always kept (H2).
func Rotate(ids []ID, keep int) (kept, removed []ID) {
	cut := max(0, len(ids)-max(keep, 1))
	return slices.Clone(ids[cut:]), slices.Clone(ids[:cut])
}

// Remove deletes a snapshot's objects and aborts its unfinished uploads. It refuses
// an id that the head lists (H3). A branch stops being complete before anything else
// of it goes. It is idempotent: repeat it after an error. Where the store does not let
// uploads be looked for, that is logged once, and the objects go all the same.
func (c *Catalog) Remove(ctx context.Context, id ID) error {
	h, _, err := c.Head(ctx)
	if err != nil && !errors.Is(err, ErrNoBackup) {
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	if h.Lists(id) {
		return fmt.Errorf("remove snapshot %s: it is listed; take it off the list first", id)
	}
	if err := c.abortUploads(ctx, SnapshotPrefix(id)); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	if err := failpoint.Hit("history/remove"); err != nil {
		return err
	}
	keys := []string{ManifestKey(id)} // first, so that half a snapshot has none
	if id.IsBranch() {                // by a request of its own: no store promises the order of a batch
		if err := c.store.Delete(ctx, keys); err != nil {
			return fmt.Errorf("remove branch %s: %w", id, err)
		}
	}
	for obj, err := range c.store.List(ctx, SnapshotPrefix(id)) {
		if err != nil {
			return fmt.Errorf("remove snapshot %s: %w", id, err)
		}
		if obj.Key != keys[0] {
			keys = append(keys, obj.Key)
		}
	}
	if err := c.store.Delete(ctx, keys); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	return nil
}

// abortUploads aborts the unfinished uploads to a prefix, as far as the store lets
// this key.
func (c *Catalog) abortUploads(ctx context.Context, prefix string) error {
	uploads, err := c.store.Uploads(ctx, prefix)
	for _, u := range uploads {
		if err = c.store.AbortUpload(ctx, u); err != nil {
			break
		}
	}
	if !noLooking(err) {
		return err
	}
	if !c.noUploads.Swap(true) {
		c.log.Warn("unfinished uploads cannot be looked for or removed, so what a failed snapshot has sent of big files may stay in the store; "+
			uploadsHint, "error", err)
	}
	return nil
}

const uploadsHint = "grant s3:ListBucketMultipartUploads and s3:AbortMultipartUpload, or let a rule of the bucket abort incomplete uploads"

// noLooking reports whether a store does not let this key see to uploads, and will
// not tomorrow.
func noLooking(err error) bool {
	return errors.Is(err, objstore.ErrRefused) || errors.Is(err, objstore.ErrUnsupported)
}

// Clear takes all snapshots but the newest off the list, then removes their
// objects, and returns how many. A running writer merges the shorter list. What a
// crash in between leaves is for Prune.
func (c *Catalog) Clear(ctx context.Context) (int, error) {
	before, changed, err := c.change(ctx, func(h *Head) bool {
		kept, removed := Rotate(h.History, 1)
		h.History = kept
		return len(removed) > 0
	})
	if err != nil {
		return 0, fmt.Errorf("clear history: %w", err)
	}
	if !changed {
		return 0, nil
	}
	if err := failpoint.Hit("history/clear-swapped"); err != nil {
		return 0, err
	}
	_, removed := Rotate(before.History, 1)
	for i, id := range removed {
		if err := c.Remove(ctx, id); err != nil {
			return i, fmt.Errorf("clear history: %d of %d snapshots are off the list but not removed, history prune removes them later: %w",
				len(removed)-i, len(removed), err)
		}
	}
	c.log.Info("history cleared", "removed", len(removed), "kept", before.Newest.ID)
	return len(removed), nil
}

// DefaultPruneAge is how old litter must be, so that what a running writer is just
// uploading is spared, however slow its network and however wrong a clock.
const DefaultPruneAge = 24 * time.Hour

// PruneReport says what Prune did.
type PruneReport struct {
	Removed  []ID     // snapshots that no list names: their objects are gone
	Bytes    int64    // that these held
	Spared   []ID     // such snapshots that are younger than the age
	Branches []ID     // complete ones, which fenced writers stored aside; left alone
	Unknown  []string // names in history/ that are no ids; left alone
	Uploads  int      // unfinished uploads that were aborted
	Blind    error    // why uploads could not be looked for or aborted; nil: they could
	Probes   int      // objects that killed probes left
}

// Prune removes snapshots that the head does not list, branches that were never
// completed and unfinished uploads, all only when they are older than age. A snapshot
// is as old as the younger of its id and its last object. Complete branches stay, and
// so does a whole snapshot where nothing was published yet: it is the only one.
func (c *Catalog) Prune(ctx context.Context, now time.Time, age time.Duration) (PruneReport, error) {
	var report PruneReport
	h, _, err := c.Head(ctx)
	var empty *NoBackupError
	if err != nil && !errors.As(err, &empty) {
		return report, fmt.Errorf("prune: %w", err)
	}
	found, err := c.scan(ctx, HistoryPrefix)
	if err != nil {
		return report, fmt.Errorf("prune: %w", err)
	}
	report.Unknown = found.unknown
	young := func(t time.Time) bool { return now.Sub(t) < age }
	for _, id := range found.ids() {
		f := found.folders[id]
		switch {
		case h.Lists(id):
		case id.IsBranch() && f.complete(id):
			report.Branches = append(report.Branches, id)
		case young(f.newest), young(id.Time()), empty != nil && empty.Unpublished == id:
			report.Spared = append(report.Spared, id)
		default:
			if err := c.Remove(ctx, id); err != nil {
				return report, fmt.Errorf("prune: %w", err)
			}
			report.Removed = append(report.Removed, id)
			report.Bytes += f.bytes
		}
	}
	if report.Probes, err = c.pruneProbes(ctx, young); err != nil {
		return report, fmt.Errorf("prune: %w", err)
	}
	report.Uploads, err = c.pruneUploads(ctx, young)
	if noLooking(err) {
		report.Blind, err = err, nil
	}
	if err != nil {
		return report, fmt.Errorf("prune: %w", err)
	}
	return report, nil
}

// pruneProbes removes what killed probes left.
func (c *Catalog) pruneProbes(ctx context.Context, young func(time.Time) bool) (int, error) {
	var keys []string
	for obj, err := range c.store.List(ctx, objstore.ProbePrefix) {
		if err != nil {
			return 0, err
		}
		if !young(obj.Modified) {
			keys = append(keys, obj.Key)
		}
	}
	if len(keys) == 0 {
		return 0, nil
	}
	return len(keys), c.store.Delete(ctx, keys)
}

func (c *Catalog) pruneUploads(ctx context.Context, young func(time.Time) bool) (aborted int, err error) {
	uploads, err := c.store.Uploads(ctx, "")
	if err != nil {
		return 0, err
	}
	for _, u := range uploads {
		if young(u.Started) {
			continue
		}
		if err := c.store.AbortUpload(ctx, u); err != nil {
			return aborted, err
		}
		aborted++
	}
	return aborted, nil
}
