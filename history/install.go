package history

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/tree"
)

// rollForward carries an intent to StageInstalled. Each move is a rename; whatever
// was moved before a crash is simply not found again.
func (r *restorer) rollForward(p *intent) error {
	if p.Stage == StageRetire {
		if err := r.retire(p); err != nil {
			return fmt.Errorf("move the old copy away: %w", err)
		}
		p.Stage = StageInstall
		if err := p.write(r); err != nil {
			return err
		}
	}
	if p.Stage == StageInstall {
		if err := r.install(p); err != nil {
			return fmt.Errorf("move the new copy in: %w", err)
		}
		p.Stage = StageInstalled
		if err := p.write(r); err != nil {
			return err
		}
	}
	return removeTree(r.dir.Scratch(), retiredName(p.ID))
}

func (r *restorer) retire(p *intent) error {
	stage, err := openStaged(r.dir, p)
	if err != nil {
		return err // with the old copy whole
	}
	defer stage.Close()
	old, err := r.openOld(p)
	if err != nil {
		return err
	}
	defer old.Close()
	names, err := r.ownNames(r.dir.Root())
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := r.moveAway(name, old); err != nil {
			return err
		}
		if err := r.at("retire-entry"); err != nil {
			return err
		}
	}
	return errors.Join(old.Sync(), r.dir.Root().Sync())
}

func (r *restorer) install(p *intent) error {
	stage, err := openStaged(r.dir, p)
	if err != nil {
		return err
	}
	defer stage.Close()
	names, err := readNames(stage)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := r.moveIn(p, stage, name); err != nil {
			return err
		}
		if err := r.at("install-entry"); err != nil {
			return err
		}
	}
	if err := r.fixModes(p); err != nil {
		return err
	}
	return errors.Join(r.dir.Root().Sync(), stage.Sync())
}

// moveIn moves one new entry into DIR. What somebody put in its place since the
// crash goes the way of the old copy.
func (r *restorer) moveIn(p *intent, stage *os.File, name string) error {
	err := rename(stage, name, r.dir.Root(), name)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if r.foreign(name) {
		return removeTree(stage, name)
	}
	old, err := r.openOld(p)
	if err != nil {
		return err
	}
	defer old.Close()
	r.o.Log.Warn("something appeared in DIR while a restore was interrupted; it is moved away", "name", name)
	if err := r.moveAway(name, old); err != nil {
		return err
	}
	if err := old.Sync(); err != nil {
		return err
	}
	return rename(stage, name, r.dir.Root(), name)
}

// moveAway moves an entry of DIR to the old copy, under another name where that
// has one of this name already.
func (r *restorer) moveAway(name string, old *os.File) error {
	to := name
	for n := 2; ; n++ {
		err := rename(r.dir.Root(), name, old, to)
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
		tail := "~" + strconv.Itoa(n)
		to = name[:min(len(name), maxSegment-len(tail))] + tail
	}
}

// rename moves a name between folders and replaces nothing. A folder that its owner
// may not write cannot be moved by an ordinary user until it can.
func rename(from *os.File, name string, to *os.File, newName string) error {
	move := func() error {
		return unix.Renameat2(int(from.Fd()), name, int(to.Fd()), newName, unix.RENAME_NOREPLACE)
	}
	err := move()
	if err == unix.EACCES {
		if e, ok, serr := tree.Stat(from, name); serr == nil && ok && e.Type == tree.Dir && e.Mode&0o700 != 0o700 {
			if unix.Fchmodat(int(from.Fd()), name, e.Mode|0o700, 0) == nil {
				if err = move(); err == nil {
					err = unix.Fchmodat(int(to.Fd()), newName, e.Mode, 0)
				}
			}
		}
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: name, New: newName, Err: err}
	}
	return nil
}

// fixModes gives top folders their mode again: a crash may have come while one was
// made writable to be moved.
func (r *restorer) fixModes(p *intent) error {
	if r.root {
		return nil
	}
	m, err := p.Manifest(r.dir)
	if err != nil {
		return err
	}
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Type != tree.Dir || parentOf(e.Path) != "" || e.Mode&0o700 == 0o700 {
			continue
		}
		if err := unix.Fchmodat(int(r.dir.Root().Fd()), e.Path, e.Mode, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: e.Path, Err: err}
		}
	}
	return nil
}

// openOld opens the folder that the old copy moves to.
func (r *restorer) openOld(p *intent) (*os.File, error) {
	if p.Backup != "" {
		return openOrMake(r.dir.Backups(), p.Backup)
	}
	return openOrMake(r.dir.Scratch(), retiredName(p.ID))
}

// ownNames lists DIR without what is none of a snapshot's.
func (r *restorer) ownNames(root *os.File) ([]string, error) {
	names, err := readNames(root)
	return slices.DeleteFunc(names, r.foreign), err
}

// backupPattern knows the names in backups/: when it was made; "-unsaved" where it
// holds what the store does not have; a number where the name was taken.
var backupPattern = regexp.MustCompile(`^\d{8}T\d{6}\.\d{3}Z(-unsaved)?(-\d+)?$`)

const unsaved = "-unsaved"

// backupName returns a free name for the old copy, "" if there is none to keep.
func (r *restorer) backupName() (string, error) {
	names, err := r.ownNames(r.dir.Root())
	if err != nil || len(names) == 0 {
		return "", err
	}
	base := r.o.Now().UTC().Format(idTime)
	if !r.o.LocalClean {
		base += unsaved
	}
	taken, err := readNames(r.dir.Backups())
	name := base
	for n := 2; slices.Contains(taken, name); n++ {
		name = base + "-" + strconv.Itoa(n)
	}
	return name, err
}

func (r *restorer) backupPath(p *intent) (string, error) {
	if p.Backup == "" {
		return "", nil
	}
	names, err := readNames(r.dir.Backups())
	if err != nil || !slices.Contains(names, p.Backup) {
		return "", err
	}
	return r.dir.Path() + "/" + datadir.StateName + "/" + datadir.BackupsName + "/" + p.Backup, nil
}

// pruneBackups keeps the newest of the local copies that restores replaced, the one
// just made among them whatever the clock says. Those that are not in the store,
// and what has another name, stay (R3).
func (r *restorer) pruneBackups(p *intent) error {
	names, err := readNames(r.dir.Backups())
	if err != nil {
		return fmt.Errorf("look at the local backups: %w", err)
	}
	var ours []string
	for _, name := range names {
		if m := backupPattern.FindStringSubmatch(name); m != nil && m[1] == "" {
			ours = append(ours, name)
		}
	}
	slices.SortFunc(ours, func(a, b string) int { // newest first, the one just made before all
		if a == p.Backup || b == p.Backup {
			return cmp.Compare(b2i(b == p.Backup), b2i(a == p.Backup))
		}
		return cmp.Compare(b, a)
	})
	for _, name := range ours[min(len(ours), max(r.o.Backups, 0)):] {
		if err := removeTree(r.dir.Backups(), name); err != nil {
			return fmt.Errorf("remove an old local backup: %w", err)
		}
		r.o.Log.Info("old local backup removed", "name", name)
	}
	return nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// openStaged opens the new copy that an intent speaks of.
func openStaged(dir *datadir.Dir, p *intent) (*os.File, error) {
	return tree.OpenBeneath(dir.Scratch(), stageName(p.ID), unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// openOrMake opens a folder, making it durably where it is missing.
func openOrMake(parent *os.File, name string) (*os.File, error) {
	switch err := unix.Mkdirat(int(parent.Fd()), name, 0o700); err {
	case nil:
		if err := parent.Sync(); err != nil {
			return nil, err
		}
	case unix.EEXIST:
	default:
		return nil, &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return tree.OpenBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// readNames lists a folder through a descriptor of its own, because reading moves
// a descriptor's position.
func readNames(dir *os.File) ([]string, error) {
	again, err := tree.OpenBeneath(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer again.Close()
	names, err := again.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// removeTree removes a name and all below it, by descriptors: nothing outside is
// reached through a link. A missing name is fine.
func removeTree(parent *os.File, name string) error {
	err := unix.Unlinkat(int(parent.Fd()), name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	dir, err := openWritable(parent, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, below := range names {
		if err := removeTree(dir, below); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR); err != nil {
		return &os.PathError{Op: "rmdir", Path: name, Err: err}
	}
	return nil
}

// openWritable opens a folder and sees that its owner can change what is in it.
func openWritable(parent *os.File, name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY
	dir, err := tree.OpenBeneath(parent, name, flags, 0)
	if errors.Is(err, unix.EACCES) {
		if e, ok, serr := tree.Stat(parent, name); serr == nil && ok && e.Type == tree.Dir {
			if err := unix.Fchmodat(int(parent.Fd()), name, 0o700, 0); err != nil {
				return nil, &os.PathError{Op: "chmod", Path: name, Err: err}
			}
			dir, err = tree.OpenBeneath(parent, name, flags, 0)
		}
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err == nil && st.Mode&0o700 != 0o700 {
		if err := dir.Chmod(0o700); err != nil {
			return nil, errors.Join(err, dir.Close())
		}
	}
	return dir, nil
}
