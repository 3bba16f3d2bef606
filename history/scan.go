package history

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// scan is what a complete listing found.
type scan struct {
	folders map[ID]*folder
	unknown []string // folders and files directly in history/ that have no id for a name
	stray   string   // the first key that is neither head nor lease, nor in such a folder, nor a probe's
}

// folder is what a listing found of one snapshot.
type folder struct {
	objects map[string]int64 // key to size
	bytes   int64
	newest  time.Time // when its last object was stored, by the store's clock
}

// scan lists a prefix: "" for all, HistoryPrefix for the snapshots.
func (c *Catalog) scan(ctx context.Context, prefix string) (*scan, error) {
	found := &scan{folders: map[ID]*folder{}}
	for obj, err := range c.store.List(ctx, prefix) {
		if err != nil {
			return nil, err
		}
		found.add(obj)
	}
	return found, nil
}

func (s *scan) add(obj objstore.Object) {
	if obj.Key == HeadKey || obj.Key == LeaseKey || strings.HasPrefix(obj.Key, objstore.ProbePrefix) {
		return
	}
	name, _, inFolder := snapshotOf(obj.Key)
	id, err := ParseID(name)
	if !inFolder || err != nil {
		if s.stray == "" {
			s.stray = obj.Key
		}
		if name != "" && !slices.Contains(s.unknown, name) {
			s.unknown = append(s.unknown, name)
		}
		return
	}
	f := s.folders[id]
	if f == nil {
		f = &folder{objects: map[string]int64{}}
		s.folders[id] = f
	}
	f.objects[obj.Key] = obj.Size
	f.bytes += obj.Size
	if obj.Modified.After(f.newest) {
		f.newest = obj.Modified
	}
}

// ids returns the ids of all folders, sorted.
func (s *scan) ids() []ID { return slices.Sorted(maps.Keys(s.folders)) }

// size returns the size of an object of the folder. A nil folder is empty.
func (f *folder) size(key string) (int64, bool) {
	if f == nil {
		return 0, false
	}
	size, ok := f.objects[key]
	return size, ok
}

// holdsAll reports whether every file of a manifest is listed with its size.
func (f *folder) holdsAll(m *Manifest) bool {
	for i := range m.Entries {
		r := &m.Entries[i]
		if r.Type != tree.File {
			continue
		}
		if size, ok := f.size(ObjectKey(m.ID, r.Path)); !ok || size != r.Size {
			return false
		}
	}
	return true
}

// wholeSnapshot is one whose manifest is readable and all of whose objects are listed.
type wholeSnapshot struct {
	*Manifest
	sha256 string
}

// whole returns the whole snapshots of a scan, branches left out, in the order of
// their sequence (of two writers that raced for one: of their epoch, then time).
func (c *Catalog) whole(ctx context.Context, found *scan) ([]wholeSnapshot, error) {
	var all []wholeSnapshot
	for _, id := range found.ids() {
		f := found.folders[id]
		if _, ok := f.objects[ManifestKey(id)]; !ok || id.IsBranch() {
			continue
		}
		data, _, err := c.read(ctx, ManifestKey(id), maxManifestBytes)
		if errors.Is(err, objstore.ErrNotFound) {
			continue // removed since the listing
		}
		if err != nil {
			return nil, err
		}
		m, err := decodeManifestOf(id, data)
		if errors.Is(err, ErrNewerFormat) {
			return nil, err
		}
		if err != nil {
			c.log.Warn("a snapshot has no usable manifest", "id", id, "error", err)
			continue
		}
		if !f.holdsAll(m) {
			c.log.Warn("a snapshot is not whole", "id", id)
			continue
		}
		all = append(all, wholeSnapshot{m, sumHex(data)})
	}
	slices.SortStableFunc(all, func(a, b wholeSnapshot) int {
		return cmp.Or(cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.Epoch, b.Epoch), a.Created.Compare(b.Created))
	})
	return all, nil
}

// newestWhole returns the whole snapshot with the highest sequence, nil if there
// is none.
func (c *Catalog) newestWhole(ctx context.Context, found *scan) (*wholeSnapshot, error) {
	all, err := c.whole(ctx, found)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return &all[len(all)-1], nil
}
