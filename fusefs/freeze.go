package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/tree"
)

// recording lists the tree before a cut, so that the cut itself need only look
// again at what changed since the recording began: folders in which names changed
// and inodes that were written. Folders are known by inode, so that moving one
// moves all below it.
//
// Locks: mu guards what mutations add from inside the gate; the rest belongs to
// the goroutine that cuts.
type recording struct {
	s *fsys

	mu      sync.Mutex
	folders map[*inode]struct{} // names in them changed; held by references
	touched map[*inode]struct{} // attributes or content changed; held by references

	outside  func(path string) bool // names at the root that are in no view
	listings map[inodeKey][]listed
	stats    map[inodeKey]unix.Stat_t // of what was touched, as of the cut
}

// listed is a name in a folder. Its entry's path is the name.
type listed struct {
	tree.Entry
	key inodeKey
}

// before takes note of what a mutation is about to change.
func (r *recording) before(m *mutation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range []*inode{m.node, m.replaced, m.dir, m.newDir} {
		r.addLocked(r.touched, n)
	}
	r.addLocked(r.folders, m.dir)
	r.addLocked(r.folders, m.newDir)
	if m.kind == mutateRmdir || m.kind == mutateRename {
		// A folder that is removed may leave its inode number to a new one.
		r.addLocked(r.folders, m.replaced)
	}
}

func (r *recording) addLocked(set map[*inode]struct{}, n *inode) {
	if n == nil {
		return
	}
	if _, ok := set[n]; !ok {
		r.s.ref(n)
		set[n] = struct{}{}
	}
}

// end drops the references.
func (r *recording) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, set := range []map[*inode]struct{}{r.folders, r.touched} {
		for n := range set {
			delete(set, n)
			r.s.unref(n, 1)
		}
	}
}

// walk lists everything as it is. It may see a change half done; whatever changes
// is looked at again in refresh.
func (r *recording) walk(ctx context.Context) error {
	r.listings = map[inodeKey][]listed{}
	root := int(r.s.root.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return &os.PathError{Op: "stat", Path: r.s.root.Name(), Err: err}
	}
	return r.list(ctx, root, ".", keyOf(&st), true)
}

// refresh brings the listing up to date. It runs with the gate held.
func (r *recording) refresh() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := range r.folders {
		if !n.isDir() {
			continue
		}
		delete(r.listings, n.key)
	}
	for n := range r.folders {
		if _, done := r.listings[n.key]; done || !n.isDir() {
			continue
		}
		if err := r.list(context.Background(), n.fd, ".", n.key, false); err != nil {
			return err
		}
	}
	r.stats = make(map[inodeKey]unix.Stat_t, len(r.touched))
	for n := range r.touched {
		var st unix.Stat_t
		if errno := n.stat(&st); errno != 0 {
			return fmt.Errorf("stat inode %d: %w", n.key.ino, errno)
		}
		r.stats[n.key] = st
	}
	return nil
}

// list reads the folder parent/name, whose identity is key, and the folders in it
// that are not listed yet. One that vanished is none.
func (r *recording) list(ctx context.Context, parent int, name string, key inodeKey, walking bool) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	fd, errno := openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errno == syscall.ENOENT || (walking && (errno == syscall.ENOTDIR || errno == syscall.ELOOP)) {
		return nil // removed or replaced: the folder above is read again at the cut
	}
	if errno != 0 {
		return fmt.Errorf("list %s: %w", name, errno)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", name, err)
	}
	if keyOf(&st) != key {
		return nil // another folder has the name by now
	}
	names, err := readNames(fd)
	if errors.Is(err, syscall.ENOENT) {
		return nil // removed, and nothing can be in it
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", name, err)
	}
	list := make([]listed, 0, len(names))
	r.listings[key] = list // against coming here twice
	for _, base := range names {
		l, ok, err := lstatName(fd, base)
		if err != nil {
			return fmt.Errorf("stat %s: %w", base, err)
		}
		if !ok || l.key == r.s.state || key == r.s.rootNode.key && r.outside(base) {
			continue
		}
		list = append(list, l)
		if _, known := r.listings[l.key]; l.Type == tree.Dir && !known {
			if err := r.list(ctx, fd, base, l.key, walking); err != nil {
				return err
			}
		}
	}
	r.listings[key] = list
	return nil
}

// lstatName describes a name; ok is false where it is gone, or neither file nor folder
// nor symbolic link.
func lstatName(dir int, name string) (l listed, ok bool, err error) {
	var st unix.Stat_t
	errno := again(func() error { return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if errno == syscall.ENOENT {
		return l, false, nil
	}
	if errno != 0 {
		return l, false, errno
	}
	if l.Entry, ok = tree.FromStat(name, &st); !ok {
		return l, false, nil
	}
	l.key = keyOf(&st)
	if l.Type == tree.Symlink {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, name, buf)
		if err == unix.ENOENT || err == unix.EINVAL {
			return l, false, nil // replaced meanwhile
		}
		if err != nil {
			return l, false, err
		}
		l.Target = string(buf[:n])
	}
	return l, true, nil
}

// freeze records the instant. It runs with the gate held, and copies nothing.
func (s *fsys) freeze(rec *recording, limit int64, consistency string) (*View, error) {
	if err := rec.refresh(); err != nil {
		return nil, err
	}
	v := newView(s)
	v.number = s.cutNumber.Add(1)
	v.created = s.now()
	v.consistency = consistency
	v.limit = limit
	v.needless = s.busy.needless()
	if err := failpoint.Hit("fusefs/frozen"); err != nil {
		return nil, err
	}
	if hook := s.onFreeze.Load(); hook != nil {
		(*hook)()
	}
	v.ended = s.touch.cut()
	s.views.active.Store(v)
	s.views.rec.Store(nil)
	return v, nil
}

// assemble makes the view's entries of what was recorded. It needs no gate: from
// the freeze on, mutations preserve what the view shows.
func (v *View) assemble(rec *recording) {
	v.own = &reference{cut: v.number, inodes: map[string]inodeKey{}}
	index := map[string]inodeKey{}
	sizes := map[inodeKey]int64{}
	type folder struct {
		key  inodeKey
		path string
	}
	root := v.s.rootNode.key
	index["."] = root
	for todo := []folder{{root, ""}}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, l := range rec.listings[dir.key] {
			if _, ok := v.needless[nameKey{dir.key, l.Path}]; ok {
				continue
			}
			e := l.Entry
			if st, ok := rec.stats[l.key]; ok {
				fresh, _ := tree.FromStat(l.Path, &st)
				fresh.Target = e.Target
				e = fresh
			}
			e.Path = path.Join(dir.path, l.Path)
			v.entries = append(v.entries, e)
			index[e.Path] = l.key
			switch e.Type {
			case tree.Dir:
				todo = append(todo, folder{l.key, e.Path})
			case tree.File:
				sizes[l.key] = e.Size
				if e.Size > touchedUnit {
					v.own.inodes[e.Path] = l.key
				}
			}
		}
	}
	tree.Sort(v.entries)
	v.ready(index, sizes)
	v.s.touch.assembled(v)
}
