package uploader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

// keptBranches is how many branches of a writer stay however old they are. Younger
// ones than history.BranchAge all do.
const keptBranches = 3

// storedBranch is a branch that this process stored.
type storedBranch struct {
	id history.ID
	at time.Time // monotonic
}

// aside returns why this writer publishes nothing in the list, an *AsideError, nil
// while it does. What it holds goes to branches then.
func (u *Uploader) aside() error {
	if err := u.isFenced(); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.yielded {
		return &AsideError{Store: u.o.Catalog.Store().String(), Why: ErrYielded}
	}
	return nil
}

func (u *Uploader) isFenced() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.fenced
}

// Branch stores what the next cut shows as a branch, of a writer whose journal is
// based on a snapshot that the store has moved on from: DIR before a newer snapshot
// takes its place. The journal is left as it is. Where the last branch holds just
// that, it is the result; where nothing differs from the journal's base, there is
// none (an empty ID). Nothing is published from here any more.
func (u *Uploader) Branch(ctx context.Context) (Result, error) {
	if err := u.takeTurn(ctx); err != nil {
		return Result{}, fmt.Errorf("store a branch: %w", err)
	}
	defer u.leaveTurn()
	if u.isFenced() == nil {
		u.fence(ErrDiverged)
	}
	res, err := u.branch(ctx)
	if err != nil {
		return res, fmt.Errorf("store a branch: %w", err)
	}
	return res, nil
}

// branch does so with the turn held.
func (u *Uploader) branch(ctx context.Context) (Result, error) {
	return u.untilWhole(ctx, func(ctx context.Context) (Result, error) { return u.withCut(ctx, u.branchOf) })
}

func (u *Uploader) branchOf(ctx context.Context, view View, start time.Time) (Result, error) {
	none := Result{Aside: true}
	if u.o.Queue.Dirty().Empty() {
		return none, nil
	}
	last, err := u.lastBranch(ctx)
	if err != nil {
		return none, err
	}
	p, err := u.planOf(ctx, view)
	if err != nil {
		return none, err
	}
	if p.countChanged() == 0 {
		u.hasCut(start)
		return none, nil
	}
	if last != nil && p.equals(last) {
		if err := stillThere(ctx, view); err != nil {
			return none, err
		}
		there, err := u.o.Catalog.HasBranch(ctx, last)
		if err != nil {
			return none, err
		}
		if there {
			u.hasCut(start)
			return resultOfBranch(last), nil
		}
		u.o.Log.Warn("the last branch is not in the store any more; storing another", "id", last.ID)
		last = nil
	}
	return u.storeBranch(ctx, p, last, start)
}

// storeBranch stores a plan as a branch. What the base snapshot or the last branch
// holds is copied inside the store, as long as that is there: the new writer may
// rotate the base away at any time.
func (u *Uploader) storeBranch(ctx context.Context, p *plan, last *history.Manifest, start time.Time) (Result, error) {
	res := Result{Aside: true, Changed: p.countChanged()}
	if u.suspect {
		if err := u.inspection(p)(ctx); err != nil {
			return res, err
		}
	}
	m, err := u.branchManifest(ctx, p.view)
	if err != nil {
		return res, err
	}
	if err := u.step("branch-pending", u.o.Queue.AddPending(string(m.ID))); err != nil {
		return res, err
	}
	if last != nil {
		p.copyFrom(last)
	}
	t := &transfer{plan: p, id: m.ID, store: u.o.Catalog.Store(), log: u.o.Log}
	if err := u.step("branch-objects", u.store(ctx, t)); err != nil {
		return res, err
	}
	if err := stillThere(ctx, p.view); err != nil {
		return res, err
	}
	m.Entries = p.records(true)
	_, err = u.o.Catalog.PutManifest(ctx, m)
	if err := u.step("branch-manifest", err); err != nil {
		return res, err
	}
	u.hasCut(start)
	u.last, u.suspect = m, false
	u.branches = append(u.branches, storedBranch{m.ID, u.o.Now()})
	stored := resultOfBranch(m)
	stored.Changed, stored.BytesUploaded = res.Changed, t.sent.Load()
	stored.Removed, err = u.tidyBranches(ctx, last)
	if err != nil {
		stored.Untidy = err.Error()
		u.o.Log.Warn("the branch is safe, but not everything could be tidied up", "error", err)
	}
	stored.Duration = u.o.Now().Sub(start)
	u.o.Log.Warn("stored as a branch: it is in no list, and no mount restores it by itself", "id", stored.ID, "files", stored.Files,
		"changed", stored.Changed, "bytes", stored.Bytes, "bytes_uploaded", stored.BytesUploaded, "duration", stored.Duration,
		"consistency", stored.Consistency, "removed", stored.Removed, "to_restore", restoreCommand(stored.ID))
	return stored, nil
}

func resultOfBranch(m *history.Manifest) Result {
	files, bytes := m.Files()
	return Result{ID: m.ID, Created: m.Created, Consistency: string(m.Consistency), Files: files, Bytes: bytes, Aside: true}
}

func restoreCommand(id history.ID) string { return fmt.Sprintf("chromafs restore --at %s DIR", id) }

// branchManifest makes the manifest of a branch, but for its entries. A branch goes
// only where the journal's snapshots are: in a store without a head it would stand
// in the way of the next mount, and in another's it has no business.
func (u *Uploader) branchManifest(ctx context.Context, view View) (*history.Manifest, error) {
	if err := u.ready(ctx); err != nil { // there may have been no takeover
		return nil, err
	}
	head, etag, err := u.o.Catalog.Head(ctx)
	if err != nil && (etag == "" || !errors.Is(err, history.ErrNoBackup)) {
		return nil, err
	}
	s := u.o.Queue.State()
	if s.Lineage != "" && s.Lineage != head.Lineage {
		return nil, exitcode.New(exitcode.Conflict, fmt.Errorf("%w: %s is of lineage %.8s, what is local of %.8s",
			ErrDiverged, u.o.Catalog.Store(), head.Lineage, s.Lineage), "what is local is untouched; stop, and mount again to be shown the choices")
	}
	u.head = head // for what is said of the newest
	m := &history.Manifest{Format: history.Format, Lineage: head.Lineage, Sequence: s.Sequence + 1, Epoch: s.Epoch,
		Writer: s.Writer, Created: view.Created().UTC(), Consistency: history.Consistency(view.Consistency())}
	if m.Nonce, err = history.NewNonce(u.o.Rand); err != nil {
		return nil, err
	}
	for { // a clock that stands still must not make the same id twice
		if m.ID, err = history.NewBranchID(m.Created, s.Writer, u.o.Rand); err != nil {
			return nil, err
		}
		known := func(b storedBranch) bool { return b.id == m.ID }
		if !slices.Contains(s.Pending, string(m.ID)) && !slices.ContainsFunc(u.branches, known) {
			return m, nil
		}
	}
}

// lastBranch returns the last branch that was stored from this DIR, by this process
// or one before it; nil where there is none, or none that can be read. It is the last
// complete one that is pending, and stays so until another one, or a snapshot, takes
// its place. All others are settled.
func (u *Uploader) lastBranch(ctx context.Context) (*history.Manifest, error) {
	_, _, pending := u.pending()
	var last *history.Manifest
	for _, id := range slices.Backward(pending) {
		m := u.last
		if m == nil || m.ID != id || last != nil {
			var err error
			if m, err = u.settle(ctx, id, last == nil); err != nil {
				return nil, err
			}
		}
		last = cmp.Or(last, m)
	}
	u.last = last
	return last, nil
}

// settle ends that a branch is pending: a complete one leaves the list as it is, or
// with keep stays there and is returned; half of one is removed from the store.
func (u *Uploader) settle(ctx context.Context, id history.ID, keep bool) (*history.Manifest, error) {
	m, err := u.o.Catalog.Branch(ctx, id)
	switch {
	case errors.Is(err, history.ErrIntegrity), errors.Is(err, history.ErrNewerFormat):
		u.o.Log.Warn("a branch cannot be read; it is left alone", "id", id, "error", err)
	case errors.Is(err, history.ErrGone): // removed by someone meanwhile
		return nil, u.removePending(ctx, id)
	case err != nil:
		return nil, err
	case m == nil:
		return nil, u.removePending(ctx, id)
	case keep:
		return m, nil
	}
	return nil, u.o.Queue.DropPending(string(id))
}

// removePending removes what the store has of an id that is pending.
func (u *Uploader) removePending(ctx context.Context, id history.ID) error {
	if err := u.step("removed", u.o.Catalog.Remove(ctx, id)); err != nil {
		return err
	}
	return u.o.Queue.DropPending(string(id))
}

// tidyBranches ends that the branch before the last is pending, and rotates those of
// this writer.
func (u *Uploader) tidyBranches(ctx context.Context, before *history.Manifest) (removed int, err error) {
	if before != nil {
		if err := u.o.Queue.DropPending(string(before.ID)); err != nil {
			return 0, err
		}
	}
	if err := failpoint.Hit("uploader/branch-kept"); err != nil {
		return 0, err
	}
	// A listing of history is worth it only where there is something to find.
	if len(u.branches) <= keptBranches || u.o.Now().Sub(u.branches[0].at) <= history.BranchAge {
		return 0, nil
	}
	gone, err := u.rotateBranches(ctx, u.last.ID.BranchOf())
	u.branches = slices.DeleteFunc(u.branches, func(b storedBranch) bool { return slices.Contains(gone, b.id) })
	return len(gone), err
}

// rotateOthers is the rotation of all writers' branches by the one that publishes:
// after its first snapshot on top of another, then once a day, since it costs a
// listing. It returns what could not be done.
func (u *Uploader) rotateOthers(ctx context.Context, prev *history.Manifest) (untidy string) {
	now := u.o.Now()
	if prev == nil || !u.rotated.IsZero() && now.Sub(u.rotated) < history.BranchAge {
		return ""
	}
	gone, err := u.rotateBranches(ctx, "")
	if len(gone) > 0 {
		u.o.Log.Info("old branches removed", "removed", gone)
	}
	if err != nil {
		u.o.Log.Warn("old branches could not be removed; the next snapshot tries again", "error", err)
		return err.Error()
	}
	u.rotated = now
	return ""
}

// rotateBranches removes the old branches of a writer, "" for all, each pending
// meanwhile, and returns those that are gone.
func (u *Uploader) rotateBranches(ctx context.Context, writer string) (gone []history.ID, err error) {
	old, err := u.o.Catalog.OldBranches(ctx, u.o.Now(), writer, keptBranches)
	if err != nil {
		return nil, err
	}
	for _, id := range old {
		if u.last != nil && u.last.ID == id {
			continue
		}
		if err := u.o.Queue.AddPending(string(id)); err != nil {
			return gone, err
		}
		if err := u.removePending(ctx, id); err != nil {
			return gone, err
		}
		gone = append(gone, id)
	}
	return gone, nil
}

// equals reports whether a snapshot of the plan would hold what m does.
func (p *plan) equals(m *history.Manifest) bool {
	if len(p.items) != len(m.Entries) {
		return false
	}
	for i := range p.items {
		if have := m.Entries[i]; have.Path != p.items[i].rec.Path || differs(have, p.items[i].rec) {
			return false
		}
	}
	return true
}

// copyFrom makes a branch the source of what it has no less of than the base.
func (p *plan) copyFrom(m *history.Manifest) {
	records := make(map[string]tree.Record, len(m.Entries))
	for _, r := range m.Entries {
		records[r.Path] = r
	}
	for i := range p.items {
		it := &p.items[i]
		r, ok := records[it.rec.Path]
		if !ok || r.Type != tree.File || it.rec.Type != tree.File || r.ETag == "" {
			continue
		}
		other := *it
		other.base, other.source = r, objstore.Object{Key: history.ObjectKey(m.ID, r.Path), Size: r.Size, ETag: r.ETag}
		if other.copies() >= it.copies() {
			*it = other
		}
	}
}

// copies counts the parts that can be copied from the source.
func (it *item) copies() (n int) {
	if it.source.Key != "" && it.rec.SameContent(it.base) {
		return len(it.rec.Parts) + 1
	}
	for i := range it.rec.Parts {
		if it.hasPart(i) {
			n++
		}
	}
	return n
}
