package uploader

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/journal"
)

// Takeover makes this process the writer of the store (W1): it replaces the head
// that the caller read by one with the next epoch, on condition that it is still
// that one, and creates it where there is none (etag ""). The list and the newest
// snapshot stay. Where someone else came first, the error is the catalog's
// *StaleError or *FencedError: read again, decide again. Unless KnowCurrent told that
// `current` follows the newest snapshot, that is looked at once.
func (u *Uploader) Takeover(ctx context.Context, head history.Head, etag string) (history.Head, error) {
	if err := u.takeTurn(ctx); err != nil {
		return history.Head{}, err
	}
	defer u.leaveTurn()
	if err := u.takeover(ctx, head, etag); err != nil {
		return history.Head{}, fmt.Errorf("take over the store: %w", err)
	}
	if err := u.doubtCurrent(); err != nil {
		return history.Head{}, fmt.Errorf("take over the store: %w", err)
	}
	return u.head, nil
}

func (u *Uploader) takeover(ctx context.Context, head history.Head, etag string) error {
	if err := u.ready(ctx); err != nil {
		return err
	}
	nonce, err := history.NewNonce(u.o.Rand)
	if err != nil {
		return err
	}
	s := u.o.Queue.State()
	next := head
	next.History = slices.Clone(head.History)
	next.Format, next.Epoch, next.Writer, next.Nonce = history.Format, head.Epoch+1, s.Writer, nonce
	if next.Lineage == "" {
		if next.Lineage, err = history.NewNonce(u.o.Rand); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("uploader/takeover"); err != nil {
		return err
	}
	newETag, err := u.o.Catalog.SwapHead(ctx, next, etag)
	if err != nil {
		return err
	}
	u.head, u.etag, u.attached, u.took = next, newETag, true, next
	if u.o.TookOver != nil {
		u.o.TookOver(next)
	}
	if err := failpoint.Hit("uploader/taken-over"); err != nil {
		return err
	}
	if s.Intent != nil && !next.Lists(history.ID(s.Intent.ID)) { // it cannot come true any more: its ETag is gone
		if err := u.o.Queue.ClearIntent(); err != nil {
			return err
		}
	}
	if s.Published && s.Lineage != next.Lineage {
		return nil // a restore is about to give the journal another base, and the epoch with it
	}
	return u.o.Queue.SetEpoch(next.Lineage, next.Epoch)
}

// ready is asked before the first write to the store.
func (u *Uploader) ready(ctx context.Context) error {
	if u.o.Ready == nil {
		return nil
	}
	return u.o.Ready(ctx)
}

// confirm finds out whether this is still the writer, before anything is cut or
// sent, and learns the list as it is now.
func (u *Uploader) confirm(ctx context.Context) error {
	if err := u.aside(); err != nil {
		return err
	}
	if err := u.readHead(ctx); err != nil {
		return err
	}
	if err := u.completeIntent(ctx); err != nil {
		return err
	}
	if u.attached {
		return u.annulIntent(ctx)
	}
	if err := u.compareBase(); err != nil {
		return err
	}
	if u.o.Queue.State().Intent != nil { // a takeover is what ends it for good
		return u.attach(ctx)
	}
	return nil
}

// readHead learns the head as it is now. Where another writer has replaced it, this
// one is fenced.
func (u *Uploader) readHead(ctx context.Context) error {
	head, etag, err := u.o.Catalog.Head(ctx)
	if err != nil && !errors.Is(err, history.ErrNoBackup) {
		return err
	}
	switch {
	case !u.attached || etag == u.etag:
	case etag == "":
		return exitcode.New(exitcode.Conflict, fmt.Errorf("%w: the store was emptied while this writer had it", ErrDiverged),
			"what is local is untouched; bring the store's objects back, or stop and mount again to be shown the choices")
	case head.Lineage != u.took.Lineage || head.Epoch != u.took.Epoch || head.Writer != u.took.Writer:
		return u.fence(&history.FencedError{Head: head})
	}
	u.head, u.etag = head, etag
	return nil
}

// compareBase lets an uploader that has not taken over (an offline snapshot, a
// mount that began without a store) go on only if the store is where its journal
// left it. Otherwise what is local and what is published have diverged, and stay so
// until the next mount decides.
func (u *Uploader) compareBase() error {
	s := u.o.Queue.State()
	if u.head.Newest == nil && !s.Published || u.basedOnNewest() {
		return nil
	}
	return u.fence(fmt.Errorf("%w: %s, not %s", ErrDiverged, orNone(string(newestID(u.head))), orNone(s.ID)))
}

// attach takes the store over where that was not done before, once there is
// something to publish: looking fences nobody.
func (u *Uploader) attach(ctx context.Context) error {
	if u.attached {
		return nil
	}
	err := u.takeover(ctx, u.head, u.etag)
	if errors.Is(err, history.ErrFenced) || errors.Is(err, history.ErrStale) {
		return fmt.Errorf("another writer took the store over at the same moment: %w", err)
	}
	return err
}

func orNone(id string) string {
	if id == "" {
		return "none"
	}
	return id
}

// annulIntent ends an intent that is not in the list: a write of the head whose
// answer never came could still arrive. Replacing the head by itself under another
// nonce takes the ETag away that it waits for.
func (u *Uploader) annulIntent(ctx context.Context) error {
	i := u.o.Queue.State().Intent
	if i == nil {
		return nil
	}
	next := u.head
	var err error
	if next.Nonce, err = history.NewNonce(u.o.Rand); err != nil {
		return err
	}
	etag, err := u.o.Catalog.SwapHead(ctx, next, u.etag)
	switch {
	case errors.Is(err, history.ErrFenced):
		return u.fence(err)
	case err != nil:
		return fmt.Errorf("annul the publication of %s: %w", i.ID, err)
	}
	now, nowETag, err := u.o.Catalog.Head(ctx)
	if err != nil && !errors.Is(err, history.ErrNoBackup) {
		return err
	}
	if now.Nonce != next.Nonce || nowETag != etag {
		return fmt.Errorf("annul the publication of %s: %w", i.ID, history.ErrStale)
	}
	u.head, u.etag, u.unacked = next, etag, nil
	return u.o.Queue.ClearIntent()
}

// completeIntent acknowledges a snapshot that was published although nobody saw
// the answer: the journal's intent is in the list (step 7).
func (u *Uploader) completeIntent(ctx context.Context) error {
	if p := u.unacked; p != nil && u.head.Lists(history.ID(p.ID)) {
		u.o.Log.Info("the last snapshot was published after all", "id", p.ID)
		return u.acknowledge()
	}
	_, err := CompleteIntent(ctx, u.o.Catalog, u.o.Queue, u.head)
	return err
}

// CompleteIntent acknowledges the snapshot of the journal's intent if head lists
// it, and reports whether it did. The marks that precede its cut are cleared, the
// others stay (J2); stats are not known any more, so the journal's next scan reads
// every file.
func CompleteIntent(ctx context.Context, c *history.Catalog, q Queue, head history.Head) (bool, error) {
	i := q.State().Intent
	if i == nil || !head.Lists(history.ID(i.ID)) {
		return false, nil
	}
	sum := ""
	if head.Newest != nil && head.Newest.ID == history.ID(i.ID) {
		sum = head.Newest.ManifestSHA256
	}
	m, err := c.Manifest(ctx, history.ID(i.ID), sum)
	if err != nil {
		return false, fmt.Errorf("finish the publication of %s: %w", i.ID, err)
	}
	err = q.Acknowledge(journal.Published{Lineage: m.Lineage, Sequence: m.Sequence, Epoch: head.Epoch,
		ID: i.ID, Cut: i.Cut, Records: m.Entries})
	return err == nil, err
}
