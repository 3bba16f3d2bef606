package uploader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/objstore/retry"
	"github.com/chromafs/chromafs/journal"
)

// askPatience is how long the store is asked before anything is cut. Giving up early
// costs nothing then, and Status says that the store is down.
const askPatience = 3 * time.Second

// snapshot takes the steps of the package's doc, with the turn held. sealed is
// called right before the first cut. A writer that has to stand aside, or finds out
// on the way that it has to, stores a branch.
func (u *Uploader) snapshot(ctx context.Context, sealed func()) (Result, error) {
	if u.aside() == nil {
		res, err := u.mainSnapshot(ctx, sealed)
		if err == nil || u.aside() == nil {
			return res, err
		}
		u.o.Log.Error("this writer publishes nothing any more; what it holds is stored as branches", "error", err)
	}
	sealed()
	res, err := u.branch(ctx)
	res.Aside = true
	return res, err
}

func (u *Uploader) mainSnapshot(ctx context.Context, sealed func()) (Result, error) {
	if err := u.confirm(retry.WithBudget(ctx, askPatience)); err != nil {
		return Result{}, err
	}
	sealed()
	return u.untilWhole(ctx, func(ctx context.Context) (Result, error) { return u.withCut(ctx, u.publishCut) })
}

// untilWhole takes a snapshot and, where the view is damaged, one more: what was torn
// may be whole by then.
func (u *Uploader) untilWhole(ctx context.Context, take func(context.Context) (Result, error)) (Result, error) {
	res, err := take(ctx)
	var damaged *DamagedError
	if !errors.As(err, &damaged) || ctx.Err() != nil {
		return res, err
	}
	u.suspect = true
	u.o.Log.Warn("what was cut is damaged and is not published; cutting once more", "damage", damaged.Damage)
	return take(ctx)
}

// withCut hands a cut to f.
func (u *Uploader) withCut(ctx context.Context, f func(context.Context, View, time.Time) (Result, error)) (Result, error) {
	start := u.o.Now()
	view, err := u.o.Cut(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("cut: %w", err)
	}
	defer func() {
		if err := view.Close(); err != nil {
			u.o.Log.Warn("could not clean up after a cut", "error", err)
		}
	}()
	if err := failpoint.Hit("uploader/after-cut"); err != nil {
		return Result{}, err
	}
	return f(ctx, view, start)
}

func (u *Uploader) publishCut(ctx context.Context, view View, start time.Time) (Result, error) {
	// A mark made since hides one that precedes the cut, so any mark counts: what
	// was only touched since turns out to be the same.
	if u.o.Queue.Dirty().Empty() {
		res, err := u.standing(ctx)
		if err == nil {
			res.Untidy = u.tidy(ctx, nil)
		}
		return res, err
	}
	p, err := u.planOf(ctx, view)
	if err != nil {
		return Result{}, err
	}
	if u.basedOnNewest() && p.countChanged() == 0 {
		return u.acknowledgeSame(ctx, p, start)
	}
	return u.publish(ctx, p, start)
}

// planOf plans what a view needs, be it a snapshot or a branch, and refuses one that is
// neither.
func (u *Uploader) planOf(ctx context.Context, view View) (*plan, error) {
	if err := u.checkSparse(view); err != nil {
		return nil, err
	}
	p, err := newPlan(ctx, view, u.o.Queue, u.o.Parallel, u.since())
	if err != nil {
		return nil, err
	}
	return p, u.checkWiped(p)
}

// checkWiped refuses an empty view where something of the base is gone without a
// mark: a wiped directory is never published as such (DESIGN §7).
func (u *Uploader) checkWiped(p *plan) error {
	if len(p.items) > 0 {
		return nil
	}
	dirty := u.o.Queue.Dirty()
	for _, r := range u.o.Queue.BaseRecords() {
		if !dirty.Covers(r.Path) {
			return exitcode.New(exitcode.Failed, fmt.Errorf("%w: %s, and all else, is gone without having been removed on a mount", ErrWiped, r.Path),
				"nothing was published; the next mount brings the newest snapshot back")
		}
	}
	return nil
}

// since returns the cut that the journal's base is of, 0 where that is not known: it
// was published before this process came, or acknowledged without its view.
func (u *Uploader) since() uint64 {
	if u.based.id == u.o.Queue.State().ID {
		return u.based.cut
	}
	return 0
}

// rebased tells a view that the journal's base, id, is what it shows.
func (u *Uploader) rebased(view View, id string) {
	if t, ok := view.(tracker); ok {
		t.Acknowledged()
		u.based = basedOn{id, view.Number()}
	}
}

// basedOnNewest reports whether the journal's base is what the store has.
func (u *Uploader) basedOnNewest() bool {
	s := u.o.Queue.State()
	return s.Published && u.head.Newest != nil && s.Lineage == u.head.Lineage && s.ID == string(u.head.Newest.ID)
}

// standing returns the newest snapshot as the result of taking none.
func (u *Uploader) standing(ctx context.Context) (Result, error) {
	n := u.head.Newest
	if n == nil {
		return Result{}, nil
	}
	m, err := u.newestManifest(ctx)
	if err != nil {
		return Result{}, err
	}
	return Result{ID: n.ID, Sequence: u.head.Sequence, Created: n.Created, Consistency: string(m.Consistency),
		Files: n.Files, Bytes: n.Bytes}, nil
}

// newestManifest returns what the newest snapshot holds; it asks the store once.
func (u *Uploader) newestManifest(ctx context.Context) (*history.Manifest, error) {
	n := u.head.Newest
	if n == nil {
		return nil, nil
	}
	if u.newest == nil || u.newest.ID != n.ID {
		m, err := u.o.Catalog.Manifest(ctx, n.ID, n.ManifestSHA256)
		if err != nil {
			return nil, err
		}
		u.newest = m
	}
	return u.newest, nil
}

// acknowledgeSame ends a snapshot that would hold what the newest one holds: the
// marks that precede the cut are cleared and nothing is published (S4).
func (u *Uploader) acknowledgeSame(ctx context.Context, p *plan, start time.Time) (Result, error) {
	if err := stillThere(ctx, p.view); err != nil {
		return Result{}, err
	}
	s := u.o.Queue.State()
	err := u.o.Queue.Acknowledge(journal.Published{Lineage: s.Lineage, Sequence: s.Sequence, Epoch: u.head.Epoch,
		ID: s.ID, Cut: p.view.Number(), Records: p.records(false)})
	if err != nil {
		return Result{}, err
	}
	u.rebased(p.view, s.ID)
	u.hasCut(start)
	res, err := u.standing(ctx)
	if err != nil {
		return Result{}, err
	}
	res.Untidy = u.tidy(ctx, nil)
	u.o.Log.Info("what was touched is as before; nothing to publish", "id", res.ID, "duration", u.o.Now().Sub(start))
	return res, nil
}

// publish stores a plan as a new snapshot and publishes it.
func (u *Uploader) publish(ctx context.Context, p *plan, start time.Time) (Result, error) {
	if u.suspect {
		if err := u.inspection(p)(ctx); err != nil {
			return Result{}, err
		}
	}
	if err := u.attach(ctx); err != nil {
		return Result{}, err
	}
	prev, err := u.newestManifest(ctx)
	if errors.Is(err, history.ErrIntegrity) {
		u.o.Log.Warn("the manifest of the newest snapshot cannot be used; this one does without", "error", err)
	} else if err != nil {
		return Result{}, err
	}
	followed := prev
	if prev != nil && slices.Contains(u.o.Queue.State().Pending, string(prev.ID)) {
		followed = nil // current does not follow it yet: step 8 was not reached for it
	}
	m, err := u.newManifest(p.view)
	if err != nil {
		return Result{}, err
	}
	left := u.leftovers(ctx, p)
	if err := u.step("pending", u.o.Queue.AddPending(string(m.ID))); err != nil {
		return Result{}, err
	}
	t := &transfer{plan: p, id: m.ID, store: u.o.Catalog.Store(), log: u.o.Log, left: left, ledger: newLedger(u.o.Queue, u.o.Log)}
	if err := u.step("objects", u.store(ctx, t)); err != nil {
		return Result{}, err
	}
	if err := stillThere(ctx, p.view); err != nil {
		return Result{}, err
	}
	m.Entries = p.records(true)
	sum, err := u.o.Catalog.PutManifest(ctx, m)
	if err := u.step("manifest", err); err != nil {
		return Result{}, err
	}
	removed, err := u.swap(ctx, m, sum, p.view.Number())
	if err := u.step("published", err); err != nil {
		return Result{}, err
	}
	err = u.acknowledge()
	if err == nil {
		u.rebased(p.view, string(m.ID))
	}
	if err := u.step("acknowledged", err); err != nil {
		return Result{}, err
	}
	u.hasCut(start)
	u.KnowCurrent("")
	u.newest, u.suspect = m, false
	files, bytes := m.Files()
	res := Result{ID: m.ID, Sequence: m.Sequence, Created: m.Created, Consistency: string(m.Consistency), Files: files,
		Bytes: bytes, Changed: p.countChanged(), BytesUploaded: t.sent.Load(), Published: true}
	if res.Untidy = u.tidy(ctx, followed); res.Untidy == "" {
		res.Untidy = u.rotateOthers(ctx, prev)
	}
	res.Removed = u.countGone(removed)
	res.Duration = u.o.Now().Sub(start)
	u.logPublished(res, removed)
	return res, nil
}

// step is the end of a step of the order: a failpoint, and the error of either.
func (u *Uploader) step(name string, err error) error {
	if err != nil {
		return err
	}
	return failpoint.Hit("uploader/" + name)
}

// stillThere lets a view that cannot keep writers out look again.
func stillThere(ctx context.Context, view View) error {
	if v, ok := view.(verifier); ok {
		return v.Verify(ctx)
	}
	return nil
}

// hasCut records the cut that the interval is counted from.
func (u *Uploader) hasCut(at time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.lastCut = at
}

// countChanged counts the entries that differ from the previous snapshot's, those
// that are gone included.
func (p *plan) countChanged() int {
	n := p.bases // those of them that are in the view no more
	for i := range p.items {
		if p.items[i].base.Path != "" {
			n--
		}
		if p.items[i].changed() {
			n++
		}
	}
	return n
}

// newManifest makes the manifest of a view, but for its entries.
func (u *Uploader) newManifest(view View) (*history.Manifest, error) {
	nonce, err := history.NewNonce(u.o.Rand)
	if err != nil {
		return nil, err
	}
	m := &history.Manifest{Format: history.Format, Lineage: u.head.Lineage, Sequence: u.head.Sequence + 1,
		Epoch: u.head.Epoch, Writer: u.head.Writer, Nonce: nonce, Created: view.Created().UTC(),
		Consistency: history.Consistency(view.Consistency())}
	pending := u.o.Queue.State().Pending
	for { // a clock that stands still must not make the same id twice
		if m.ID, err = history.NewID(m.Created, u.o.Rand); err != nil {
			return nil, err
		}
		if !u.head.Lists(m.ID) && !slices.Contains(pending, string(m.ID)) {
			return m, nil
		}
	}
}

// maxMerges bounds how often one snapshot merges a list that was changed by
// others under this writer's epoch.
const maxMerges = 10

// swap publishes m (step 6) under an intent (step 5) and returns what it took off
// the list. Whoever rewrote the list meanwhile and kept the epoch wins: its list
// is merged, not ours.
func (u *Uploader) swap(ctx context.Context, m *history.Manifest, sum string, cut uint64) (removed []history.ID, err error) {
	next := u.head
	next.Format, next.Sequence, next.Nonce, next.Newest = history.Format, m.Sequence, m.Nonce, m.Summary(sum)
	u.unacked = &journal.Published{Lineage: m.Lineage, Sequence: m.Sequence, Epoch: m.Epoch, ID: string(m.ID), Cut: cut, Records: m.Entries}
	intent := journal.Intent{ID: string(m.ID), Nonce: m.Nonce, Cut: cut, Sequence: m.Sequence}
	if err := u.step("intent", u.o.Queue.SetIntent(intent)); err != nil {
		return nil, err
	}
	for range maxMerges {
		next.History, removed = history.Rotate(append(slices.Clone(u.head.History), m.ID), u.o.Keep)
		for _, id := range removed { // off the list first, then deleted: pending until then (H3)
			if err := u.o.Queue.AddPending(string(id)); err != nil {
				return nil, err
			}
		}
		etag, err := u.o.Catalog.SwapHead(ctx, next, u.etag)
		var stale *history.StaleError
		switch {
		case err == nil:
			u.head, u.etag = next, etag
			return removed, nil
		case errors.Is(err, history.ErrFenced):
			return nil, u.fence(err)
		case !errors.As(err, &stale):
			return nil, err
		case newestID(stale.Head) != newestID(u.head) || stale.Head.Sequence != u.head.Sequence:
			return nil, fmt.Errorf("%w, and names another newest snapshot, %s; the next attempt goes on from there", err, newestID(stale.Head))
		}
		u.head, u.etag = stale.Head, stale.ETag
	}
	return nil, fmt.Errorf("publish %s: %w %d times over", m.ID, history.ErrStale, maxMerges)
}

func newestID(h history.Head) history.ID {
	if h.Newest == nil {
		return ""
	}
	return h.Newest.ID
}

// acknowledge tells the journal what was published (step 7).
func (u *Uploader) acknowledge() error {
	if err := u.o.Queue.Acknowledge(*u.unacked); err != nil {
		return err
	}
	u.unacked = nil
	return nil
}

func (u *Uploader) logPublished(res Result, removed []history.ID) {
	u.o.Log.Info("snapshot published", "id", res.ID, "sequence", res.Sequence, "files", res.Files, "changed", res.Changed,
		"bytes", res.Bytes, "bytes_uploaded", res.BytesUploaded, "duration", res.Duration,
		"consistency", res.Consistency, "removed", res.Removed)
	if len(removed) > 0 {
		u.o.Log.Info("history rotated", "kept", len(u.head.History), "keep", u.o.Keep, "taken_off", removed, "deleted", res.Removed)
	}
}
