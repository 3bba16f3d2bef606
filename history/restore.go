package history

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/tree"
)

// RestoreOptions says what to bring back, and what may happen to what is there.
type RestoreOptions struct {
	Dir            *datadir.Dir // locked by the caller, not mounted
	Manifest       *Manifest
	ManifestSHA256 string // "" where it is not known
	// KeepLocal: the old local copy goes to backups/, of which the newest Backups
	// stay. Without it the old copy is removed once the new one is in place.
	KeepLocal bool
	Backups   int
	// LocalClean: the store has all that the local copy holds. Only then may it be
	// overwritten in place where there is no room for two, and only then is its
	// backup pruned by later restores. That of another copy is named "…-unsaved".
	LocalClean bool
	Parallel   int // reads under way; 0 means 8
	Now        func() time.Time
	Log        *slog.Logger

	step func(name string) error // tests: called at every step
}

// RestoreResult says what was brought back.
type RestoreResult struct {
	Files   int
	Bytes   int64
	Fetched int64        // bytes that came from the store; the rest was local
	Backup  string       // path of the old local copy; "" where none was kept
	InPlace bool         // the old copy was overwritten, for want of room
	Entries []tree.Entry // what is on disk now
}

// Restore makes DIR what the manifest says. It goes through stages, each durable
// before the next (R2), and finishes what an interrupted one began:
//
//	staged   the new copy grows in scratch/, every part checked (R1); DIR is as it was
//	retire   the old entries are moved to backups/ or, to be removed, to scratch/
//	install  the new entries are moved in
//	done     the intent stays until FinishRestore, which the caller calls when the
//	         journal knows of it
//
// Where there is no room for two copies and the store has the local one, DIR is
// changed in place instead, marked as interrupted from before the first byte.
//
// Errors: ErrGone (start again with the newest), ErrIntegrity, ErrNoSpace, the
// store's. After any but an in-place one the old copy is whole, or the new one is
// and Unfinished says so.
func Restore(ctx context.Context, c *Catalog, o RestoreOptions) (RestoreResult, error) {
	if o.Parallel <= 0 {
		o.Parallel = parallel
	}
	r := &restorer{c: c, o: o, m: o.Manifest, dir: o.Dir, root: os.Geteuid() == 0}
	start := o.Now()
	res, err := r.run(ctx)
	res.Fetched = r.fetched.Load()
	if err != nil {
		return res, fmt.Errorf("restore %s to %s: %w", r.m.ID, r.dir.Path(), err)
	}
	o.Log.Info("restored", "id", r.m.ID, "dir", r.dir.Path(), "files", res.Files, "bytes", res.Bytes,
		"fetched", res.Fetched, "backup", res.Backup, "in_place", res.InPlace, "duration", o.Now().Sub(start))
	return res, nil
}

type restorer struct {
	c       *Catalog
	o       RestoreOptions
	m       *Manifest
	dir     *datadir.Dir
	root    bool // running as root: owners are restored too
	fetched atomic.Int64
	chowned atomic.Bool // that owners cannot be set was logged
}

// at is a named instant, for tests to stop at.
func (r *restorer) at(name string) error {
	if err := failpoint.Hit("history/restore-" + name); err != nil {
		return err
	}
	if r.o.step != nil {
		return r.o.step(name)
	}
	return nil
}

func (r *restorer) run(ctx context.Context) (RestoreResult, error) {
	if err := r.m.validate(); err != nil {
		return RestoreResult{}, &IntegrityError{ID: r.m.ID, Part: -1, Err: err}
	}
	p, err := readIntent(r.dir)
	if err != nil {
		return RestoreResult{}, err
	}
	if p != nil && p.Stage != StageInPlace {
		if err := r.rollForward(p); err != nil {
			return RestoreResult{}, err
		}
		if p.ID == r.m.ID {
			return r.result(p)
		}
		r.o.Log.Info("an interrupted restore was finished first", "id", p.ID)
	}
	if err := r.discardOthers(p); err != nil {
		return RestoreResult{}, err
	}
	next, err := r.bring(ctx, p != nil && p.Stage == StageInPlace)
	if err != nil {
		return RestoreResult{}, err
	}
	if err := r.rollForward(next); err != nil {
		return RestoreResult{}, err
	}
	return r.result(next)
}

// bring makes the new copy whole, beside the old one or in its place, and returns
// the intent that says how it goes on.
func (r *restorer) bring(ctx context.Context, resumeInPlace bool) (*intent, error) {
	if resumeInPlace {
		return r.inPlace(ctx)
	}
	room, err := r.room()
	if err != nil {
		return nil, err
	}
	if room.fits() {
		next, err := r.stage(ctx)
		if !isNoSpace(err) {
			return next, err
		}
		if err := r.makeRoom(room, err); err != nil {
			return nil, err
		}
	} else if err := room.refuse(r.o.LocalClean, nil); err != nil {
		return nil, err
	}
	r.o.Log.Warn("no room for two copies: restoring in place, without a local backup; the store has the local copy")
	if err := removeTree(r.dir.Scratch(), stageName(r.m.ID)); err != nil {
		return nil, err
	}
	return r.inPlace(ctx)
}

// makeRoom removes a partial copy that the disk did not hold, having noted what it
// held of it: with a quota that is the only way to know.
func (r *restorer) makeRoom(room *room, cause error) error {
	if err := room.measureAgain(r); err != nil {
		return errors.Join(cause, err)
	}
	if p, err := readIntent(r.dir); err != nil || p != nil && p.ID == r.m.ID {
		return errors.Join(cause, err) // the intent may be durable: the copy is needed, the next try goes on
	}
	r.o.Log.Warn("the disk is full", "need", room.need, "free", room.free, "staged", room.staged, "local", room.local, "error", cause)
	if err := errors.Join(removeTree(r.dir.Scratch(), stageName(r.m.ID)), removeTree(r.dir.Scratch(), manifestName(r.m.ID))); err != nil {
		return errors.Join(cause, err)
	}
	return room.refuse(r.o.LocalClean, cause)
}

// stage brings the new copy beside the old one.
func (r *restorer) stage(ctx context.Context) (*intent, error) {
	stage, err := r.openStage()
	if err != nil {
		return nil, err
	}
	defer stage.Close()
	if err := r.fill(ctx, stage, r.dir.Root()); err != nil {
		return nil, fmt.Errorf("stage the new copy: %w", err)
	}
	if err := r.at("staged"); err != nil {
		return nil, err
	}
	if err := r.saveManifest(); err != nil {
		return nil, err
	}
	next := r.newIntent(StageRetire)
	if r.o.KeepLocal && r.o.Backups > 0 || r.o.KeepLocal && !r.o.LocalClean {
		if next.Backup, err = r.backupName(); err != nil {
			return nil, err
		}
	}
	return next, next.write(r)
}

// openStage opens the folder where the new copy grows. What an interrupted restore
// left there is used again if an ordinary user can still read all of it.
func (r *restorer) openStage() (*os.File, error) {
	stage, err := openOrMake(r.dir.Scratch(), stageName(r.m.ID))
	if err != nil {
		return nil, err
	}
	if _, _, err = tree.Walk(stage, nil); err == nil {
		return stage, nil
	}
	err = errors.Join(stage.Close(), removeTree(r.dir.Scratch(), stageName(r.m.ID)))
	if err != nil {
		return nil, err
	}
	return openOrMake(r.dir.Scratch(), stageName(r.m.ID))
}

// inPlace makes DIR itself the new copy. The intent that says so comes first.
func (r *restorer) inPlace(ctx context.Context) (*intent, error) {
	if err := r.saveManifest(); err != nil {
		return nil, r.full(err)
	}
	next := r.newIntent(StageInPlace)
	if err := next.write(r); err != nil {
		return nil, r.full(err)
	}
	if err := r.fill(ctx, r.dir.Root(), nil); err != nil {
		return nil, r.full(err)
	}
	next.InPlace = true
	next.Stage = StageInstalled
	return next, next.write(r)
}

// full explains an error of the disk while DIR is changed in place.
func (r *restorer) full(err error) error {
	if !isNoSpace(err) {
		return err
	}
	free, ferr := r.dir.Free()
	return &NoSpaceError{Need: r.need(), Free: free, InPlace: true, Err: errors.Join(err, ferr)}
}

// result describes what is installed.
func (r *restorer) result(p *intent) (RestoreResult, error) {
	if err := r.pruneBackups(p); err != nil {
		return RestoreResult{}, err
	}
	entries, _, err := tree.Walk(r.dir.Root(), r.foreign)
	if err != nil {
		return RestoreResult{}, fmt.Errorf("look at what was restored: %w", err)
	}
	res := RestoreResult{InPlace: p.InPlace, Entries: entries}
	res.Files, res.Bytes = r.m.Files()
	if res.Backup, err = r.backupPath(p); err != nil {
		return RestoreResult{}, err
	}
	return res, nil
}

// foreign reports whether an entry of DIR is none of a snapshot's: chromafs's own
// folder, and the lost+found of a volume's root.
func (r *restorer) foreign(path string) bool {
	return path == datadir.StateName || path == "lost+found" && isLostAndFound(r.dir.Root())
}

// isLostAndFound tells mkfs's folder from one of the same name by owner and mode.
func isLostAndFound(root *os.File) bool {
	e, ok, err := tree.Stat(root, "lost+found")
	return err == nil && ok && e.Type == tree.Dir && e.UID == 0 && e.Mode&0o077 == 0
}

func isNoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
