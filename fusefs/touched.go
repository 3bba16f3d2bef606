package fusefs

import (
	"sync"

	"github.com/chromafs/chromafs/internal/tree"
)

const (
	// touchedUnit is what is told apart in a file. Snapshots hash whole parts, of this
	// size or a multiple of it, so that finer units would spare no reading.
	touchedUnit = tree.MinPartSize
	// touchedUnits is how many of a file's are told apart (8 TiB); what lies beyond
	// counts as touched if anything in the file is.
	touchedUnits = 1 << 20
	// touchedWords bounds what is remembered, in words of 8 bytes; above that
	// everything counts as touched until the next snapshot.
	touchedWords  = 2 << 20
	wordsPerTouch = 16 // of a file, besides its bitmap
)

// touchTracker remembers which units of which files were touched since the cut of
// the last snapshot that was acknowledged, so that the next one need not read the
// others (S4). It lives in memory: what happened before this process's first
// acknowledged snapshot is not known, and then Touched says so.
//
// A mutation is noted inside the gate before it is applied, so it belongs to the
// time before a cut or after it, never to both. There are two generations: what
// was touched since the last cut, and what was between the base and that cut. A
// cut adds the first to the second. Acknowledged alone drops the second, and makes
// its view the base. So after a snapshot that failed, was given up or was never
// acknowledged, all that it would have held still counts as touched.
//
// A file is its inode: the base knows which inode each path led to. A path that
// leads to another one now (renamed, replaced, linked, new) is not known. The
// number of an inode that is removed may come to mean a new file, so a file that
// loses a name counts as touched in all of it.
//
// mu is the last in the lock order: nothing is taken or waited for under it.
type touchTracker struct {
	mu    sync.Mutex
	base  *reference  // nil: no snapshot was acknowledged yet
	since *generation // from the base to the last cut
	now   *generation // since the last cut
}

// reference is what a cut showed at each path. Only files of more than one unit are
// worth knowing.
type reference struct {
	cut    uint64
	inodes map[string]inodeKey
}

func newTouchTracker() *touchTracker { return &touchTracker{now: newGeneration()} }

// before notes what a mutation is about to change.
func (t *touchTracker) before(m *mutation) {
	switch m.kind {
	case mutateWrite, mutateCopy, mutateAllocate:
		t.touch(m.node, m.off, m.off+m.length)
	case mutateTruncate: // what it adds are zeros after the old end, in a part that is longer then
		t.touch(m.node, m.length, maxOffset)
	case mutateUnlink, mutateRename:
		t.touch(m.replaced, 0, maxOffset)
	}
}

func (t *touchTracker) touch(n *inode, off, end int64) {
	if n == nil || !n.isFile() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now.add(n.key, off, end)
}

// cut ends a generation. It runs with the gate held.
func (t *touchTracker) cut() *generation {
	t.mu.Lock()
	defer t.mu.Unlock()
	ended := t.now
	t.now = newGeneration()
	return ended
}

// assembled tells a view what was touched before its cut. Nobody reads the last
// view any more.
func (t *touchTracker) assembled(v *View) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.base != nil {
		t.since.merge(v.ended)
	}
	v.ended = nil
	v.base, v.since = t.base, t.since
}

// Touched tells, of a file of the view, which ranges may differ from what it held
// at the cut numbered since. It is not known where no snapshot of that cut was
// Acknowledged last, or where the path led to another file then. What it returns
// is for use before the view is closed.
func (v *View) Touched(path string, since uint64) (touched func(off, length int64) bool, known bool) {
	if v.base == nil || v.base.cut != since || v.since.lost {
		return nil, false
	}
	was, ok := v.base.inodes[path]
	if key, here := v.index[path]; !ok || !here || key != was {
		return nil, false
	}
	// Where layers of an overlay are on several file systems, a file's number changes
	// with its first write, and so would its identity.
	if was.dev != v.s.rootNode.key.dev {
		return nil, false
	}
	set := v.since.files[was]
	return func(off, length int64) bool { return set != nil && set.has(off, length) }, true
}

// Acknowledged says that the journal has the snapshot of this view as its base now.
// What changed before its cut is no news to the next one.
func (v *View) Acknowledged() {
	t := v.s.touch
	t.mu.Lock()
	defer t.mu.Unlock()
	if v.number != v.s.cutNumber.Load() {
		return // there was another cut since: what it ended is not told apart any more
	}
	t.base, t.since = v.own, newGeneration()
}

// generation is what was touched in some time.
type generation struct {
	files map[inodeKey]*touchedSet
	words int
	lost  bool // too much to remember
}

func newGeneration() *generation { return &generation{files: map[inodeKey]*touchedSet{}} }

func (g *generation) add(key inodeKey, off, end int64) {
	if g.lost || off == end {
		return
	}
	set := g.setOf(key)
	if set == nil {
		return
	}
	g.grow(set.add(off, end))
}

// setOf returns what is known of a file, making it; nil if there is no room.
func (g *generation) setOf(key inodeKey) *touchedSet {
	set := g.files[key]
	if set == nil && g.grow(wordsPerTouch) {
		set = &touchedSet{from: touchedUnits}
		g.files[key] = set
	}
	return set
}

// grow counts memory; above the bound everything is forgotten.
func (g *generation) grow(words int) bool {
	g.words += words
	if g.words > touchedWords {
		g.files, g.lost = nil, true
	}
	return !g.lost
}

func (g *generation) merge(o *generation) {
	if o.lost {
		g.grow(touchedWords + 1)
	}
	for key, set := range o.files {
		if g.lost {
			return
		}
		if mine := g.setOf(key); mine != nil {
			g.grow(mine.merge(set))
		}
	}
}

// touchedSet is a set of units of one file.
type touchedSet struct {
	units bitmap
	from  int64 // each unit from this one on is in the set too
}

// add adds the units of [off, end) and returns by how many words it grew.
func (s *touchedSet) add(off, end int64) (words int) {
	first, last := off/touchedUnit, (end-1)/touchedUnit
	if end < off || last >= touchedUnits { // also where the sum of offset and length overflows
		s.from = min(s.from, max(first, 0))
		return 0
	}
	return s.grow(func() { s.units.set(first, last+1) })
}

func (s *touchedSet) merge(o *touchedSet) (words int) {
	s.from = min(s.from, o.from)
	return s.grow(func() { s.units.union(o.units) })
}

func (s *touchedSet) grow(f func()) (words int) {
	before := len(s.units)
	f()
	return len(s.units) - before
}

// has reports whether any unit of [off, off+length) is in the set.
func (s *touchedSet) has(off, length int64) bool {
	first, last := off/touchedUnit, (off+length-1)/touchedUnit
	return last >= s.from || s.units.skip(false, first, last+1) <= last
}
