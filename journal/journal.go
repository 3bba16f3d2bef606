// Package journal is the durable record of what differs between a folder and
// the last snapshot of it that was published.
//
// The model: a snapshot is taken at a cut, and cuts are numbered. Before a
// path is changed for the first time after a cut, it is marked with the number
// of that cut. Publishing the snapshot of cut k clears the marks with a number
// below k and no other, so whatever changed after the cut stays marked, however
// long the upload took. A mark on a folder covers everything below it, one on
// "." everything. Besides the marks the journal holds the base: what the last
// published snapshot held, path by path, with the hash of every part; and the
// stat of every file from when its content was last known.
//
// All of it is kept in memory; bbolt, in DIR/.chromafs/journal.db, makes it
// durable. Where a transaction fails (a full disk), a preallocated block beside
// it, DIR/.chromafs/reserve, takes a mark on "." in place of it, and the
// application goes on. The file is written anew from memory as soon as there is
// room. Beside it, DIR/.chromafs/stored.<id> lists what an attempt at a snapshot has
// put into the store, for the next attempt. A journal.db that was copied here from elsewhere is set aside, one that
// is damaged is an error: what it says is never half believed.
//
// The promises (docs: design, section 1):
//
//   - J1 Mark returns after its marks are on disk.
//   - J2 Acknowledge(cut k) never clears a mark made after cut k.
//   - J3 After any crash the reopened journal holds at least every path marked
//     since the last acknowledged snapshot.
//   - J4 Scan finds what changed while nobody was watching: size, mtime, ctime
//     and inode of every file are compared with the recorded ones, what differs
//     is hashed, and only differing content is marked.
//
// Not promised: a change made behind the journal's back that leaves size,
// mtime, ctime and inode as they were is not seen.
package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/chromafs/chromafs/internal/tree"
)

// Journal is safe for concurrent use.
//
// Lock order: commitMu, then storedMu, then mu. commitMu is held over a whole change, disk
// included, so there is one at a time. mu guards memory only and is never held
// over I/O: a path that is marked already waits for no disk. What mu guards
// changes with both held; reading it takes either.
type Journal struct {
	now    func() time.Time
	log    *slog.Logger
	dir    *os.File // DIR/.chromafs
	writer string

	commitMu sync.Mutex
	store    *store   // guarded by commitMu
	reserve  *reserve // guarded by commitMu

	storedMu sync.Mutex // held over reading and writing a file of stored.go

	mu      sync.RWMutex
	content content // as on disk
	all     *mark   // the mark on "." in the reserve block; nil for none
	unsure  bool    // writing the block failed: it may hold all, or not
	next    *batch  // marks waiting for the running commit; guarded by mu alone
	closed  bool
}

// batch is a set of marks that become durable together. Whoever takes commitMu
// first commits it; the others that asked for a part of it find it done.
type batch struct {
	marks map[string]uint64 // guarded by Journal.mu until taken, then by commitMu
	done  bool              // guarded by commitMu
	err   error             // guarded by commitMu
}

// Mark makes durable that paths may differ from the published snapshot from the
// cut of that number on; when it returns nil they may be changed (J1). A mark on
// a folder covers everything below, one on "." everything. Paths that a mark of
// the same or a newer cut covers already cost no I/O. Calls that wait at the same
// time share a transaction. Where the transaction fails, everything is marked in
// the reserve block instead, and only if that fails too is there an error.
func (j *Journal) Mark(cut uint64, paths ...string) error {
	for _, p := range paths {
		if p != "." && !cleanPath(p) {
			return fmt.Errorf("mark %q: %w", p, ErrPath)
		}
	}
	if j.allCovered(cut, paths) {
		return nil
	}
	j.mu.Lock()
	if j.next == nil {
		j.next = &batch{marks: map[string]uint64{}}
	}
	b := j.next
	for _, p := range paths {
		p = storablePath(p)
		b.marks[p] = max(b.marks[p], cut)
	}
	j.mu.Unlock()

	j.commitMu.Lock()
	defer j.commitMu.Unlock()
	if !b.done {
		j.commitNextLocked()
	}
	return b.err
}

func (j *Journal) allCovered(cut uint64, paths []string) bool {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return !j.closed && !slices.ContainsFunc(paths, func(p string) bool { return !j.coveredLocked(p, cut) })
}

// coveredLocked reports whether name has a durable mark of that cut or newer.
func (j *Journal) coveredLocked(name string, cut uint64) bool {
	if j.all != nil && j.all.cut >= cut && !j.unsure {
		return true
	}
	_, ok := j.content.covered(name, cut)
	return ok
}

// maxKey is below what bbolt takes as a key.
const maxKey = 32000

// storablePath returns name or, where that is too long for a key, the nearest
// folder above that is not: a mark on it covers more, never less.
func storablePath(name string) string {
	for p := range selfAndAbove(name) {
		if len(p) <= maxKey {
			return p
		}
	}
	return "."
}

// commitNextLocked commits the batch that waits; commitMu is held.
func (j *Journal) commitNextLocked() {
	j.mu.Lock()
	b := j.next
	j.next = nil
	closed := j.closed
	j.mu.Unlock()
	b.done = true
	if closed {
		b.err = fmt.Errorf("mark: %w", ErrClosed)
		return
	}
	u := newUpdate(j.content.head)
	u.head.CleanStop = false
	now, highest := j.now().UnixNano(), uint64(0)
	for p, cut := range b.marks {
		if j.coveredLocked(p, cut) {
			continue
		}
		u.marks[p] = j.raised(p, cut, now)
		highest = max(highest, cut)
	}
	if len(u.marks) > 0 {
		u.head.Cut = max(u.head.Cut, highest)
		b.err = j.commitMarksLocked("mark", u, highest)
	}
}

// raised returns the mark that path gets at cut.
func (j *Journal) raised(path string, cut uint64, now int64) *mark {
	m := mark{cut: cut, first: now, at: now}
	if old, ok := j.content.marks[path]; ok {
		m.first, m.cut = old.first, max(old.cut, cut)
	}
	return &m
}

// commitMarksLocked makes the marks of u durable, or else the one in the reserve
// that covers them all, with the number highest.
func (j *Journal) commitMarksLocked(op string, u update, highest uint64) error {
	err := j.commitLocked(op, u)
	if err == nil {
		return nil
	}
	now := j.now().UnixNano()
	all := mark{cut: highest, first: now, at: now}
	if j.all != nil {
		all.first, all.cut = j.all.first, max(j.all.cut, highest)
	}
	if rerr := j.writeReserveLocked(&all); rerr != nil {
		return fmt.Errorf("%s: %w", op, errors.Join(err, rerr))
	}
	j.log.Warn("a mark could not be stored: everything counts as changed until the next snapshot", "error", err)
	return nil
}

func (j *Journal) writeReserveLocked(m *mark) error {
	err := j.store.step("reserve-before")
	if err == nil {
		err = j.reserve.write(m)
	}
	if err == nil {
		err = j.store.step("reserve-after")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.unsure = err != nil
	if err != nil {
		return fmt.Errorf("write %s: %w", reserveName, err)
	}
	j.all = m
	return nil
}

// commitLocked makes u durable and then visible; commitMu is held.
func (j *Journal) commitLocked(op string, u update) error {
	if j.closed {
		return ErrClosed
	}
	return j.store.commit(op, &j.content, u, func(change func()) {
		j.mu.Lock()
		defer j.mu.Unlock()
		change()
	})
}

// State returns what the journal knows, apart from paths.
func (j *Journal) State() State {
	j.mu.RLock()
	defer j.mu.RUnlock()
	h := j.content.head
	s := State{
		JournalID: h.JournalID, Writer: j.writer,
		Lineage: h.Lineage, Epoch: h.Epoch, ID: h.ID, Sequence: h.Sequence,
		Fresh: h.Lineage == "", FreshReason: h.FreshReason,
		Published: h.Published, CleanStop: h.CleanStop, AllDirty: j.allDirtyLocked(), Cut: h.Cut,
		Pending: slices.Clone(h.Pending),
	}
	if j.all != nil {
		// A mark that only the reserve block could take ended the clean state too.
		s.CleanStop = s.CleanStop && j.all.cut <= h.Cut
		s.Cut = max(s.Cut, j.all.cut)
	}
	if h.Intent != nil {
		intent := *h.Intent
		s.Intent = &intent
	}
	return s
}

func (j *Journal) allDirtyLocked() bool {
	_, marked := j.content.marks["."]
	return marked || j.all != nil
}

// Dirty returns what is marked.
func (j *Journal) Dirty() Dirty {
	j.mu.RLock()
	defer j.mu.RUnlock()
	d := Dirty{All: j.allDirtyLocked(), Marks: make(map[string]uint64, len(j.content.marks))}
	since := int64(0)
	older := func(t int64) {
		if since == 0 || t < since {
			since = t
		}
	}
	for p, m := range j.content.marks {
		d.Marks[p] = m.cut
		older(m.first)
	}
	if j.all != nil {
		older(j.all.first)
	}
	if since != 0 {
		d.Since = time.Unix(0, since)
	}
	return d
}

// Base returns what the last published snapshot holds at path.
func (j *Journal) Base(path string) (tree.Record, bool) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	r, ok := j.content.base[path]
	return r, ok
}

// BaseRecords returns what the last published snapshot holds, sorted by path.
func (j *Journal) BaseRecords() []tree.Record {
	j.mu.RLock()
	defer j.mu.RUnlock()
	records := make([]tree.Record, 0, len(j.content.base))
	for _, p := range slices.Sorted(maps.Keys(j.content.base)) {
		records = append(records, j.content.base[p])
	}
	return records
}

// Close closes the files. It neither records a clean stop nor clears anything.
func (j *Journal) Close() error {
	j.commitMu.Lock()
	defer j.commitMu.Unlock()
	j.storedMu.Lock()
	defer j.storedMu.Unlock()
	j.mu.Lock()
	was := j.closed
	j.closed = true
	j.mu.Unlock()
	if was {
		return nil
	}
	if err := j.closeFiles(); err != nil {
		return fmt.Errorf("close the journal: %w", err)
	}
	return nil
}

func (j *Journal) closeFiles() error {
	err := j.store.close()
	if j.reserve != nil {
		err = errors.Join(err, j.reserve.f.Close())
	}
	return errors.Join(err, j.dir.Close())
}
