package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/tree"
)

// Scan marks what changed in root, which is DIR, while nobody was watching (J4).
// Whatever is marked already stays so unread. Of the rest, new and vanished
// paths, other types, modes and link targets are marked, and files whose stat is
// not the recorded one are hashed by parts: those of the same content get the new
// stat recorded, the others are marked. Without a base everything is marked.
//
// It is for a DIR that nothing writes to: before a mount serves it, or offline.
func (j *Journal) Scan(ctx context.Context, root *os.File) (ScanReport, error) {
	entries, _, err := tree.Walk(root, datadir.Outside(root))
	if err != nil {
		return ScanReport{}, fmt.Errorf("scan: %w", err)
	}
	s := scan{j: j, root: root, refreshed: map[string]refresh{}}
	s.report.Checked = len(entries)
	if j.State().Published {
		err = s.compare(ctx, entries)
	} else if len(entries) > 0 {
		s.report.Changed = len(entries)
		s.changed = []string{"."}
	}
	if err == nil {
		err = s.commit()
	}
	if err != nil {
		return s.report, fmt.Errorf("scan: %w", err)
	}
	return s.report, nil
}

type scan struct {
	j         *Journal
	root      *os.File
	report    ScanReport
	changed   []string // paths to mark
	refreshed map[string]refresh
}

type refresh struct{ old, new stat }

// known is what the journal says of one path.
type known struct {
	base      tree.Record
	published bool
	stat      stat
	recorded  bool // there is a stat
	dirty     bool
}

func (j *Journal) known(path string) (k known) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	k.base, k.published = j.content.base[path]
	k.stat, k.recorded = j.content.stats[path]
	k.dirty = j.all != nil || j.coveredLocked(path, 0)
	return k
}

func (s *scan) compare(ctx context.Context, entries []tree.Entry) error {
	stopped := s.j.State().CleanStop
	here := make(map[string]bool, len(entries))
	for _, e := range entries {
		here[e.Path] = true
		k := s.j.known(e.Path)
		if k.dirty {
			// Dirty anyway; after a clean stop its stat tells whether it changed since.
			if stopped && k.recorded && e.Type == tree.File && k.stat != statOf(e) {
				s.report.Changed++
			}
			continue
		}
		same, err := s.same(ctx, e, k)
		if err != nil {
			return err
		}
		if !same {
			s.changed = append(s.changed, e.Path)
		}
	}
	for _, r := range s.j.BaseRecords() {
		if !here[r.Path] && !s.j.known(r.Path).dirty {
			s.changed = append(s.changed, r.Path)
		}
	}
	s.report.Changed += len(s.changed)
	return nil
}

// same reports whether e is what the base holds at its path.
func (s *scan) same(ctx context.Context, e tree.Entry, k known) (bool, error) {
	b := k.base
	if !k.published || e.Type != b.Type || e.Mode != b.Mode || e.Target != b.Target || e.Size != b.Size {
		return false, nil
	}
	if e.Type != tree.File || k.stat == statOf(e) {
		return true, nil
	}
	s.report.Hashed++
	seen, same, err := s.sameContent(ctx, e.Path, b)
	switch {
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case err != nil:
		// What cannot be read cannot be shown to be unchanged. The snapshot will
		// say more, if it cannot be read then either.
		s.j.log.Warn("a file whose stat changed could not be compared: it counts as changed", "path", e.Path, "error", err)
		return false, nil
	case same:
		s.refreshed[e.Path] = refresh{old: k.stat, new: statOf(seen)}
	}
	return same, nil
}

// sameContent compares the file's parts with those of b, and returns the stat
// that the file had from before the first byte was read to after the last.
func (s *scan) sameContent(ctx context.Context, path string, b tree.Record) (tree.Entry, bool, error) {
	f, err := tree.OpenBeneath(s.root, path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return tree.Entry{}, false, err
	}
	defer f.Close()
	before, err := fstat(f, path)
	if err != nil || before.Type != tree.File || before.Size != b.Size {
		return tree.Entry{}, false, err
	}
	for i, want := range b.Parts {
		if ctx.Err() != nil {
			return tree.Entry{}, false, context.Cause(ctx)
		}
		off, length := tree.PartRange(b.Size, b.PartSize, i)
		sum, err := tree.HashPart(f, off, length)
		if err != nil || sum != want {
			return tree.Entry{}, false, err
		}
	}
	after, err := fstat(f, path)
	return after, err == nil && after.SameStat(before), err
}

func fstat(f *os.File, path string) (tree.Entry, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return tree.Entry{}, &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	e, _ := tree.FromStat(path, &st)
	return e, nil
}

// commit marks and refreshes in one transaction. The marks get the highest
// number known, so that finishing a publication that was cut earlier leaves them
// alone (J2).
func (s *scan) commit() error {
	j := s.j
	j.commitMu.Lock()
	defer j.commitMu.Unlock()
	u := newUpdate(j.content.head)
	cut, now := u.head.Cut, j.now().UnixNano()
	slices.SortFunc(s.changed, strings.Compare) // folders before what they hold
	for _, p := range s.changed {
		p = storablePath(p)
		if !j.coveredLocked(p, cut) && !coveredBy(u.marks, p) {
			u.marks[p] = j.raised(p, cut, now)
		}
	}
	for p, r := range s.refreshed {
		if j.content.stats[p] == r.old && !coveredBy(u.marks, p) {
			u.stats[p] = &r.new
		}
	}
	if len(u.marks) == 0 && len(u.stats) == 0 {
		return nil
	}
	if len(u.marks) == 0 {
		// Nothing is lost with a refresh but time at the next scan.
		if err := j.commitLocked("scan", u); errors.Is(err, ErrClosed) {
			return err
		} else if err != nil {
			j.log.Warn("the stats of unchanged files could not be recorded", "error", err)
		}
		return nil
	}
	u.head.Cut = cut
	return j.commitMarksLocked("scan", u, cut)
}

func coveredBy(marks map[string]*mark, path string) bool {
	for p := range selfAndAbove(path) {
		if marks[p] != nil {
			return true
		}
	}
	return false
}
