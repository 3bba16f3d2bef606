package journal

import (
	"fmt"
	"slices"

	"github.com/chromafs/chromafs/internal/tree"
)

// change commits a change of the header alone.
func (j *Journal) change(op string, edit func(h *header) error) error {
	j.commitMu.Lock()
	defer j.commitMu.Unlock()
	u := newUpdate(j.content.head)
	u.head.Pending = slices.Clone(u.head.Pending)
	err := edit(&u.head)
	if err == nil {
		err = u.head.valid() // what the next Open would refuse is not written
	}
	if err == nil {
		err = j.commitLocked(op, u)
	}
	if err != nil {
		return fmt.Errorf("journal: %s: %w", op, err)
	}
	return nil
}

// AddPending records, before anything is stored under it, that objects of the
// snapshot id may be left in the store. An id that is known already is kept once.
func (j *Journal) AddPending(id string) error {
	return j.change("add-pending", func(h *header) error {
		if !slices.Contains(h.Pending, id) {
			h.Pending = append(h.Pending, id)
		}
		return nil
	})
}

// DropPending forgets an id that the store lists, or of which it holds nothing, and
// what was noted as stored for it.
func (j *Journal) DropPending(id string) error {
	err := j.change("drop-pending", func(h *header) error {
		h.Pending = slices.DeleteFunc(h.Pending, func(p string) bool { return p == id })
		return nil
	})
	if err == nil {
		j.forgetStored(id)
	}
	return err
}

// SetIntent records, before the store's manifest is replaced, that it will be.
func (j *Journal) SetIntent(i Intent) error {
	return j.change("set-intent", func(h *header) error {
		h.Intent = &i
		h.Cut = max(h.Cut, i.Cut)
		return nil
	})
}

// ClearIntent forgets an intent that came to nothing.
func (j *Journal) ClearIntent() error {
	return j.change("clear-intent", func(h *header) error {
		h.Intent = nil
		return nil
	})
}

// SetEpoch records a takeover of the store. A journal with a base cannot change
// to another lineage (ErrForeign): the base names objects of its own.
func (j *Journal) SetEpoch(lineage string, epoch uint64) error {
	return j.change("set-epoch", func(h *header) error {
		if h.Published && lineage != h.Lineage {
			return fmt.Errorf("%w: %s, not %s", ErrForeign, h.Lineage, lineage)
		}
		if lineage == "" {
			return fmt.Errorf("%w: an empty lineage", errValue)
		}
		h.Lineage, h.Epoch, h.FreshReason = lineage, epoch, ""
		return nil
	})
}

// Acknowledge records that p is published: it is the base from now on, its stats
// are what Scan compares with, and the marks with a number below p.Cut are
// cleared. Marks made since stay as they are (J2). A record without an inode, as
// a manifest holds it, keeps the stat that is known of the same content. An intent of this id is
// cleared too. All in one transaction.
func (j *Journal) Acknowledge(p Published) error {
	err := j.rebase("acknowledge", p, func(m mark) *mark {
		if m.cut < p.Cut {
			return nil
		}
		m.first = m.at
		return &m
	})
	if err != nil {
		return fmt.Errorf("acknowledge snapshot %s: %w", p.ID, err)
	}
	j.forgetStored(p.ID) // it is no attempt any more
	return nil
}

// Rebase records that DIR holds exactly p, after a restore or an adoption:
// nothing is dirty. An intent is cleared, whichever it is.
func (j *Journal) Rebase(p Published) error {
	if err := j.rebase("rebase", p, func(mark) *mark { return nil }); err != nil {
		return fmt.Errorf("rebase the journal on snapshot %s: %w", p.ID, err)
	}
	return nil
}

// Forget records that DIR and the store hold nothing any more: there is no base
// and no lineage, and nothing is dirty.
func (j *Journal) Forget() error {
	if err := j.rebase("forget", Published{}, func(mark) *mark { return nil }); err != nil {
		return fmt.Errorf("forget the journal's base: %w", err)
	}
	return nil
}

// rebase makes p the base; left says what is left of a mark.
func (j *Journal) rebase(op string, p Published, left func(mark) *mark) error {
	if p.ID == "" && op != "forget" {
		return fmt.Errorf("%w: a published snapshot without an id", errValue)
	}
	base := make(map[string]tree.Record, len(p.Records))
	for _, r := range p.Records {
		if err := validRecord(r); err != nil {
			return err
		}
		if _, twice := base[r.Path]; twice {
			return fmt.Errorf("%w: two records of %q", errValue, r.Path)
		}
		r.Parts = slices.Clone(r.Parts)
		base[r.Path] = r
	}
	j.commitMu.Lock()
	defer j.commitMu.Unlock()
	c := &j.content
	u := newUpdate(c.head)
	h := &u.head
	h.Lineage, h.Sequence, h.Epoch, h.ID = p.Lineage, p.Sequence, p.Epoch, p.ID
	h.Published, h.FreshReason = p.ID != "", ""
	h.Counts.Base = len(base) // as commitLocked will have it, for valid
	h.Cut = max(h.Cut, p.Cut)
	if h.Intent != nil && (h.Intent.ID == p.ID || op != "acknowledge") {
		h.Intent = nil
	}
	if err := h.valid(); err != nil {
		return err
	}
	for path, m := range c.marks {
		if l := left(m); l == nil || *l != m {
			u.marks[path] = l
		}
	}
	stats := make(map[string]stat, len(base))
	for path, r := range base {
		stats[path] = statOf(r.Entry)
		if old := c.base[path]; r.Inode == 0 && old.SameContent(r) && !j.coveredLocked(path, 0) {
			stats[path] = c.stats[path] // from a manifest, which knows no inodes
		}
	}
	difference(u.base, c.base, base, sameRecord)
	difference(u.stats, c.stats, stats, func(a, b stat) bool { return a == b })
	if err := j.commitLocked(op, u); err != nil {
		return err
	}
	j.releaseReserveLocked(left)
	return nil
}

// releaseReserveLocked clears the mark in the reserve block, or what left leaves
// of it. By now journal.db holds everything durably: after a failed commit it
// was written anew.
func (j *Journal) releaseReserveLocked(left func(mark) *mark) {
	if j.all == nil && !j.unsure {
		return
	}
	var l *mark
	if j.all != nil {
		l = left(*j.all)
	}
	if l != nil && *l == *j.all && !j.unsure {
		return
	}
	// The snapshot is acknowledged either way; a mark too many costs a look at
	// every file, once more.
	if err := j.writeReserveLocked(l); err != nil {
		j.log.Warn("everything still counts as changed: the reserve block could not be cleared", "error", err)
	}
}

func sameRecord(a, b tree.Record) bool {
	return a.Entry == b.Entry && a.ETag == b.ETag && a.PartSize == b.PartSize && slices.Equal(a.Parts, b.Parts)
}

// difference puts into changes what makes from become to.
func difference[V any](changes map[string]*V, from, to map[string]V, same func(a, b V) bool) {
	for k, v := range to {
		if old, ok := from[k]; !ok || !same(old, v) {
			changes[k] = &v
		}
	}
	for k := range from {
		if _, ok := to[k]; !ok {
			changes[k] = nil
		}
	}
}

// Stop records a clean stop. entries is all of DIR as it is left. The stats of
// what is marked are recorded; those of the rest are known, and where one differs
// all the same, something bypassed the mount: then the old one stays, so that
// Scan finds it.
func (j *Journal) Stop(entries []tree.Entry) error {
	j.commitMu.Lock()
	defer j.commitMu.Unlock()
	u := newUpdate(j.content.head)
	u.head.CleanStop = true
	if j.all != nil {
		// journal.db must explain by itself why a stat is not the base's.
		u.head.Cut = max(u.head.Cut, j.all.cut)
		if m, ok := j.content.marks["."]; !ok || m.cut < j.all.cut {
			u.marks["."] = j.all
		}
	}
	for _, e := range entries {
		if !j.coveredLocked(e.Path, 0) {
			continue
		}
		if s := statOf(e); j.content.stats[e.Path] != s {
			u.stats[e.Path] = &s
		}
	}
	if err := j.commitLocked("stop", u); err != nil {
		return fmt.Errorf("record a clean stop: %w", err)
	}
	return nil
}
