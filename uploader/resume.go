package uploader

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"log/slog"
	"slices"
	"sync"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
	"github.com/chromafs/chromafs/journal"
)

// maxLeft is how many failed attempts are kept for the next one: those that have the
// most of it. So what a store that keeps failing is left with is bounded.
const maxLeft = 3

// leftovers is what failed attempts left in the store, as the journal noted it. A nil
// one is empty.
type leftovers struct {
	queue Queue
	store objstore.Store
	log   *slog.Logger

	mu      sync.Mutex // guards what follows; no request under it
	objects map[content]leftObject
	parts   map[tree.Hash]leftPart // of these objects
	uploads []*leftUpload          // that nobody goes on with yet
}

// content stands for the bytes of a file.
type content [sha256.Size]byte

func contentOf(size, partSize int64, parts []tree.Hash) (c content) {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(size)), uint64(partSize)))
	for i := range parts {
		h.Write(parts[i][:])
	}
	h.Sum(c[:0])
	return c
}

type leftObject struct {
	id string
	objstore.Object
}

// leftPart is where in an object a part lies.
type leftPart struct {
	leftObject
	off, length int64
}

// leftUpload is an upload that was not completed, as far as is known.
type leftUpload struct {
	id       string // of the attempt that it is for
	pending  objstore.PendingUpload
	partSize int64
	parts    map[int]journal.Stored
}

// leftovers reads what failed attempts left: the pending ids that the journal has notes
// of; the others were published once, and current may follow them still. What the plan
// has no use for is deleted at once, before more is stored.
func (u *Uploader) leftovers(ctx context.Context, p *plan) *leftovers {
	l := &leftovers{queue: u.o.Queue, store: u.o.Catalog.Store(), log: u.o.Log}
	_, pending, _ := u.pending()
	ids := l.read(pending)
	if len(ids) == 0 {
		return nil
	}
	useful := l.useful(p)
	useless := slices.DeleteFunc(ids, func(id history.ID) bool { return slices.Contains(useful, string(id)) })
	if len(useless) == 0 {
		return l
	}
	if err := u.collect(ctx, useless, nil); err != nil {
		u.o.Log.Debug("what earlier attempts left could not be deleted yet", "error", err)
	}
	slices.Reverse(useful)
	l.read(idsOf(useful))
	return l
}

func idsOf(names []string) (ids []history.ID) {
	for _, name := range names {
		ids = append(ids, history.ID(name))
	}
	return ids
}

// read takes up what was noted for ids, oldest first: of what two have the newer one's
// counts, which outlasts the other. It returns those of ids that there are notes of.
func (l *leftovers) read(ids []history.ID) (noted []history.ID) {
	l.objects, l.parts, l.uploads = map[content]leftObject{}, map[tree.Hash]leftPart{}, nil
	for _, id := range ids {
		stored, err := l.queue.Stored(string(id))
		if err != nil {
			l.log.Warn("what a failed attempt stored is sent again", "id", id, "error", err)
			continue
		}
		if len(stored) == 0 {
			continue
		}
		noted = append(noted, id)
		uploads := map[string]*leftUpload{} // by key
		for _, s := range stored {
			if s.Upload == "" {
				continue
			}
			up := uploads[s.Key]
			if up == nil || up.pending.ID != s.Upload {
				up = &leftUpload{string(id), objstore.PendingUpload{Key: s.Key, ID: s.Upload}, s.PartSize, map[int]journal.Stored{}}
				uploads[s.Key] = up
			}
			up.parts[s.Part] = s
		}
		for _, s := range stored {
			if s.Upload == "" {
				delete(uploads, s.Key)
				l.addObject(string(id), s)
			}
		}
		for _, s := range stored { // in the order of the notes
			if up := uploads[s.Key]; up != nil {
				l.uploads = append(l.uploads, up)
				delete(uploads, s.Key)
			}
		}
	}
	return noted
}

func (l *leftovers) addObject(id string, s journal.Stored) {
	o := leftObject{id, objstore.Object{Key: s.Key, Size: s.Size, ETag: s.ETag}}
	l.objects[contentOf(s.Size, s.PartSize, s.Hashes)] = o
	for i, sum := range s.Hashes {
		off, length := tree.PartRange(s.Size, s.PartSize, i)
		l.parts[sum] = leftPart{o, off, length}
	}
}

// useful returns the attempts that have something of what a plan would send, at most
// maxLeft, those that have the most first.
func (l *leftovers) useful(p *plan) []string {
	worth := map[string]int64{}
	var order []string
	credit := func(id string, n int64) {
		if _, ok := worth[id]; !ok {
			order = append(order, id)
		}
		worth[id] += n
	}
	for i := range p.items {
		it := &p.items[i]
		if it.rec.Type != tree.File || it.rec.Size == 0 || it.source.Key != "" && it.rec.SameContent(it.base) {
			continue
		}
		if o, ok := l.object(it); ok {
			credit(o.id, it.rec.Size)
			continue
		}
		if up, matches := l.best(it); up != nil {
			credit(up.id, int64(matches)*it.rec.PartSize)
		}
		for n := range it.rec.Parts {
			if part, ok := l.part(it, n); ok && !it.hasPart(n) {
				credit(part.id, part.length)
			}
		}
	}
	slices.SortStableFunc(order, func(a, b string) int { return int(min(max(worth[b]-worth[a], -1), 1)) })
	return order[:min(len(order), maxLeft)]
}

// object returns an object that holds what a file does.
func (l *leftovers) object(it *item) (leftObject, bool) {
	if l == nil || it.rec.Size == 0 {
		return leftObject{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	o, ok := l.objects[contentOf(it.rec.Size, it.rec.PartSize, it.rec.Parts)]
	return o, ok
}

// part returns where a part of a file lies in an object.
func (l *leftovers) part(it *item, i int) (leftPart, bool) {
	if l == nil {
		return leftPart{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	part, ok := l.parts[it.rec.Parts[i]]
	_, length := tree.PartRange(it.rec.Size, it.rec.PartSize, i)
	return part, ok && part.length == length
}

// best returns the upload that has most parts of a file in their place, and none beyond
// its end: what an upload holds can be replaced, but not taken away.
func (l *leftovers) best(it *item) (best *leftUpload, most int) {
	for _, up := range l.uploads {
		if n := up.matches(it); up.partSize == it.rec.PartSize && n > most && !up.longer(it) {
			best, most = up, n
		}
	}
	return best, most
}

func (up *leftUpload) longer(it *item) bool {
	for n := range up.parts {
		if n > len(it.rec.Parts) {
			return true
		}
	}
	return false
}

func (up *leftUpload) matches(it *item) (n int) {
	for i := range it.rec.Parts {
		if up.has(it, i) {
			n++
		}
	}
	return n
}

// has reports whether the upload's part i (from 0) is the file's.
func (up *leftUpload) has(it *item, i int) bool {
	if up == nil {
		return false
	}
	part, ok := up.parts[i+1]
	return ok && part.Hashes[0] == it.rec.Parts[i]
}

// claim returns an upload to go on with for a file, which nobody else gets; nil if
// there is none.
func (l *leftovers) claim(it *item) *leftUpload {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	up, _ := l.best(it)
	l.uploads = slices.DeleteFunc(l.uploads, func(other *leftUpload) bool { return other == up })
	return up
}

// resume returns the upload as the store has it.
func (l *leftovers) resume(ctx context.Context, up *leftUpload) (objstore.Upload, error) {
	var parts []objstore.UploadPart
	for n, s := range up.parts {
		parts = append(parts, objstore.UploadPart{Number: n, Size: s.Size, ETag: s.ETag})
	}
	return objstore.ResumeUpload(ctx, l.store, up.pending, parts)
}

// recover looks whether an upload that nobody can go on with is an object, whose
// completion was not answered, and lets its parts be copied from there.
func (l *leftovers) recover(ctx context.Context, up *leftUpload) {
	whole := journal.Stored{Key: up.pending.Key, PartSize: up.partSize}
	for n := 1; n <= len(up.parts); n++ {
		part, ok := up.parts[n]
		if !ok {
			return
		}
		whole.Size += part.Size
		whole.Hashes = append(whole.Hashes, part.Hashes[0])
	}
	resumed, err := l.resume(ctx, up)
	if err != nil {
		return
	}
	made, err := resumed.Complete(ctx)
	if err != nil || made.Size != whole.Size {
		return
	}
	whole.ETag = made.ETag
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addObject(up.id, whole)
}

// sentAgain reports whether an error of going on with what was left says that there
// is nothing to go on with, so that the bytes have to be sent.
func sentAgain(err error) bool {
	switch objstore.KindOf(err) {
	case objstore.ErrNotFound, objstore.ErrPrecondition, objstore.ErrRange, objstore.ErrRefused, objstore.ErrUnsupported:
		return true
	}
	return errors.Is(err, objstore.ErrNoUpload)
}

// witness is a body whose bytes are hashed as they are read: what a view that cannot
// hold its instant delivers may be other than what was hashed before.
type witness struct {
	io.ReaderAt
	off, length int64

	mu   sync.Mutex // guards what follows
	h    hash.Hash
	next int64
	sum  tree.Hash // of the last time that it was read from start to end
}

// ReadAt implements io.ReaderAt.
func (w *witness) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.ReaderAt.ReadAt(p, off)
	w.mu.Lock()
	defer w.mu.Unlock()
	if off == w.off {
		w.h, w.next = sha256.New(), off
	}
	if off == w.next && w.h != nil {
		w.h.Write(p[:n])
		if w.next += int64(n); w.next == w.off+w.length {
			w.sum = tree.Hash(w.h.Sum(nil))
		}
	}
	return n, err
}

// NextData implements tree.Sparse. What is skipped is not seen: then nothing is vouched
// for.
func (w *witness) NextData(off, end int64) int64 { return tree.NextData(w.ReaderAt, off, end) }

// Allocated implements tree.Sparse.
func (w *witness) Allocated() (int64, error) {
	n, _, err := tree.Allocated(w.ReaderAt)
	return n, err
}

// saw reports whether what was read has that hash.
func (w *witness) saw(sum tree.Hash) bool {
	if w == nil {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sum == sum
}

// witnessed returns what to send for [off, off+length) of f, and, where the view may
// deliver other bytes than were hashed, who sees them.
func (t *transfer) witnessed(f io.ReaderAt, off, length int64) (io.ReaderAt, *witness) {
	if _, moves := t.view.(verifier); !moves {
		return f, nil
	}
	w := &witness{ReaderAt: f, off: off, length: length}
	return w, w
}
