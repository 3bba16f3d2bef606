// Package dirview shows a plain directory, served by nobody, as a view that a
// snapshot can be made of: `chromafs snapshot DIR` without a mount.
//
// The model: New walks the directory once; Open reads what lies there now. So the
// view is one instant of the directory (S1) only while nothing writes to it. The
// caller keeps writers out as far as it can (SQLite's locks), and Verify looks at
// every entry again after the last byte was read: if one was touched meanwhile, it
// fails, and nothing of the view may be published.
//
// Everything is reached through the descriptor of the directory, never through a
// path string, and no symbolic link is followed.
package dirview

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/superjournal"
	"github.com/chromafs/chromafs/internal/tree"
)

// ErrChanged: something wrote to the directory while it was being read.
var ErrChanged = errors.New("the directory was written to while its snapshot was being taken")

// ChangedError names what changed. It is an ErrChanged.
type ChangedError struct {
	Paths []string // a few of them
	More  int      // how many others
}

// Error implements error.
func (e *ChangedError) Error() string {
	msg := fmt.Sprintf("%v: %s", ErrChanged, strings.Join(e.Paths, ", "))
	if e.More > 0 {
		msg += fmt.Sprintf(" and %d more", e.More)
	}
	return msg
}

// Is reports whether target is ErrChanged.
func (e *ChangedError) Is(target error) bool { return target == ErrChanged }

// Hint returns the next step.
func (e *ChangedError) Hint() string {
	return "nothing was published; stop what writes to the directory, or mount it with chromafs, whose snapshots need nothing stopped"
}

// named is how many paths a ChangedError names.
const named = 5

// Options are what New needs.
type Options struct {
	Root   *os.File               // the directory; the view keeps using it
	Number uint64                 // of the cut
	Skip   func(path string) bool // leaves out what is no part of a snapshot, with all below it
	Now    func() time.Time       // when the cut was taken
	Log    *slog.Logger
}

// View is a directory as New found it. It is safe for concurrent use.
type View struct {
	o       Options
	created time.Time
	entries []tree.Entry
	special []string
	byPath  map[string]tree.Entry // all that lies there, as it does
}

// New walks the directory.
func New(ctx context.Context, o Options) (*View, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	v := &View{o: o, created: o.Now(), byPath: map[string]tree.Entry{}}
	var err error
	if v.entries, v.special, err = tree.Walk(o.Root, o.Skip); err != nil {
		return nil, err
	}
	for _, e := range v.entries {
		v.byPath[e.Path] = e
	}
	if v.entries, err = superjournal.Undecide(v.entries, v.Open, o.Log); err != nil {
		return nil, err
	}
	return v, nil
}

// Number returns the number of the cut.
func (v *View) Number() uint64 { return v.o.Number }

// Created returns when the cut was taken.
func (v *View) Created() time.Time { return v.created }

// Consistency is quiescent: a directory that nothing writes to is at rest.
func (v *View) Consistency() string { return "quiescent" }

// Entries returns what is in the directory, sorted by path. A file ends where its entry
// says: see package superjournal. The caller must not change it.
func (v *View) Entries() []tree.Entry { return v.entries }

// Special returns the paths that are no file, folder or symbolic link, and so no
// part of the view.
func (v *View) Special() []string { return v.special }

// Open opens a file of the view. It fails with a *ChangedError where the path is
// no longer the file that was found.
func (v *View) Open(path string) (tree.Reader, error) {
	want, ok := v.byPath[path]
	if !ok || want.Type != tree.File {
		return nil, &os.PathError{Op: "open", Path: path, Err: unix.ENOENT}
	}
	f, err := tree.OpenBeneath(v.o.Root, path, unix.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
		return nil, &ChangedError{Paths: []string{path}}
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if got, ok := tree.FromStat(path, &st); !ok || !got.SameStat(want) {
		f.Close()
		return nil, &ChangedError{Paths: []string{path}}
	}
	return f, nil
}

// Verify looks at the whole directory again and fails with a *ChangedError unless
// every entry is as New found it.
func (v *View) Verify(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	now, _, err := tree.Walk(v.o.Root, v.o.Skip)
	if err != nil {
		return fmt.Errorf("look again: %w", err)
	}
	var changed ChangedError
	note := func(path string) {
		if len(changed.Paths) < named {
			changed.Paths = append(changed.Paths, path)
		} else {
			changed.More++
		}
	}
	seen := 0
	for _, e := range now {
		old, ok := v.byPath[e.Path]
		if ok {
			seen++
		}
		if !ok || !same(old, e) {
			note(e.Path)
		}
	}
	if seen < len(v.byPath) {
		still := make(map[string]bool, len(now))
		for _, e := range now {
			still[e.Path] = true
		}
		for _, path := range slices.Sorted(maps.Keys(v.byPath)) {
			if !still[path] {
				note(path)
			}
		}
	}
	if len(changed.Paths) > 0 {
		return &changed
	}
	return nil
}

// same is SameStat and what a change of leaves no trace in the times, should the
// clock be coarse: the mode and a link's target. A folder's own times move when a
// temporary file comes and goes in it, which SQLite does even when it only reads;
// what the folder holds is compared entry by entry.
func same(old, now tree.Entry) bool {
	if old.Type == tree.Dir && now.Type == tree.Dir {
		return old.Inode == now.Inode && old.Mode == now.Mode
	}
	return old.SameStat(now) && old.Mode == now.Mode && old.Target == now.Target
}

// Close implements the view of package uploader; the directory stays open.
func (v *View) Close() error { return nil }
