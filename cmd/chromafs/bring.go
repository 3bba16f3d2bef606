package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/control"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/dirview"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore/retry"
	"github.com/chromafs/chromafs/internal/reconcile"
	"github.com/chromafs/chromafs/internal/sqlitelock"
	"github.com/chromafs/chromafs/uploader"
)

const (
	// commandStoreTimeout is how long a command asks a store that is unavailable; a
	// mount has --store-timeout.
	commandStoreTimeout = 10 * time.Second
	// freezeTimeout is how long an offline snapshot waits for transactions to end.
	freezeTimeout = 5 * time.Second
	// commandInterval satisfies the uploader; no command lets it wait.
	commandInterval = time.Hour
)

// workshop is a DIR that nobody serves, in the hands of a command, and the store.
type workshop struct {
	env     *env
	local   *local
	catalog *history.Catalog
	known   *knowledge // of the store
}

// withLocal opens DIR and the store for f, and closes DIR again. name is what
// others are told who want DIR meanwhile.
func withLocal(ctx context.Context, e *env, path, name string, store *storeOptions, f func(workshop) error) error {
	if err := store.apartFrom(path); err != nil {
		return err
	}
	catalog, known, err := store.openToWrite(e, nil, retry.Patient)
	if err != nil {
		return err
	}
	l, err := openLocal(ctx, path, "chromafs "+name, e)
	if err != nil {
		return err
	}
	known.state = l.dir.State()
	err = f(workshop{e, l, catalog, known})
	l.noteSpace(err)
	return errors.Join(err, l.close())
}

// reconciling returns what package reconcile works on. Branches go by what is said of
// snapshots.
func (w workshop) reconciling(o localOptions, up uploadOptions) reconcile.Env {
	return reconcile.Env{
		Dir: w.local.dir, Journal: w.local.journal, Catalog: w.catalog,
		Flags:   reconcile.Flags{NoLocalBackup: o.noLocalBackup, PreferLocal: o.preferLocal, Offline: o.offline},
		Branch:  func(ctx context.Context) (history.ID, error) { return w.branch(ctx, up) },
		Backups: o.backups, StoreTimeout: o.storeTimeout, Now: w.env.now, Log: w.env.log,
	}
}

// restore brings a snapshot back.
func (w workshop) restore(ctx context.Context, o localOptions, at string) (reconcile.Result, error) {
	var id history.ID
	if at != "" {
		choice, err := w.catalog.Resolve(ctx, at, w.env.now())
		if err != nil {
			return reconcile.Result{}, err
		}
		if err := announce(w.env, at, choice); err != nil {
			return reconcile.Result{}, err
		}
		id = choice.ID
	}
	return reconcile.RestoreAt(ctx, w.reconciling(o, uploadOptions{}), id)
}

// announce says which snapshot was chosen where that was not named in full.
func announce(e *env, text string, c history.Choice) error {
	made := c.ID.Time().In(e.now().Location())
	switch {
	case text == string(c.ID) || text == "":
		return nil
	case c.At.IsZero():
		_, err := fmt.Fprintf(e.stdout, "%q is snapshot %s, of %s.\n", text, c.ID, made.Format(time.DateTime))
		return err
	}
	_, err := fmt.Fprintf(e.stdout, "The newest snapshot not after %s is %s, of %s.\n",
		c.At.In(made.Location()).Format(time.DateTime), c.ID, made.Format(time.DateTime))
	return err
}

// snapshot takes and publishes a snapshot of DIR as it lies there. Unless mayReplace
// it first makes sure that the store has nothing newer.
func (w workshop) snapshot(ctx context.Context, o uploadOptions, r localOptions, mayReplace bool) (reconcile.Result, uploader.Result, error) {
	var none uploader.Result
	view := &lateView{dir: w}
	o.interval = commandInterval
	up, err := newUploader(w.env, w.local, w.catalog, w.known, o, view.cut, nil, nil)
	if err != nil {
		return reconcile.Result{}, none, err
	}
	// The store is not taken over yet: where there is nothing to publish, whoever
	// serves elsewhere goes on as the writer.
	env := w.reconciling(r, o)
	env.LocalOnly = !mayReplace
	decided, err := reconcile.Run(ctx, env)
	if err != nil {
		return decided, none, err
	}
	locks, err := w.freeze(ctx)
	if err != nil {
		return decided, none, err
	}
	snap, err := w.publish(ctx, up, view)
	return decided, snap, errors.Join(err, locks.Close())
}

// freeze keeps SQLite from writing, and says so if someone may write all the same.
func (w workshop) freeze(ctx context.Context) (*sqlitelock.Locks, error) {
	root := w.local.dir.Root()
	databases, err := sqlitelock.Find(root, datadir.Outside(root))
	if err != nil {
		return nil, err
	}
	warnOfUsers(w.local, w.env.log)
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	locks, err := sqlitelock.Freeze(ctx, root, databases)
	if err != nil {
		return nil, fmt.Errorf("hold the databases still: %w", err)
	}
	return locks, nil
}

// publish takes the snapshot.
func (w workshop) publish(ctx context.Context, up *uploader.Uploader, late *lateView) (uploader.Result, error) {
	if err := late.look(ctx); err != nil {
		return uploader.Result{}, err
	}
	r, err := up.Snapshot(ctx)
	if err != nil {
		return r, err
	}
	return r, w.local.journal.Stop(late.view.Entries())
}

// branch stores DIR as it lies there as a branch, for package reconcile, and leaves
// the journal as it is. The uploader is one of its own: it publishes nothing else.
func (w workshop) branch(ctx context.Context, o uploadOptions) (id history.ID, err error) {
	view := &lateView{dir: w}
	o.interval = commandInterval
	up, err := newUploader(w.env, w.local, w.catalog, w.known, o, view.cut, nil, nil)
	if err != nil {
		return "", err
	}
	locks, err := w.freeze(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, locks.Close()) }()
	if err := view.look(ctx); err != nil {
		return "", err
	}
	r, err := up.Branch(ctx)
	return r.ID, err
}

// lateView is the cut of an uploader that was needed before the cut was taken.
type lateView struct {
	dir  workshop
	view *dirview.View
}

// look takes it. DIR is walked before the journal looks for changes, and looked at
// again after the last byte was read: what changes between the two is either found by
// the journal or ends the snapshot.
func (l *lateView) look(ctx context.Context) error {
	w := l.dir
	view, err := dirview.New(ctx, dirview.Options{
		Root: w.local.dir.Root(), Number: w.local.journal.State().Cut + 1, Skip: datadir.Outside(w.local.dir.Root()), Now: w.env.now, Log: w.env.log,
	})
	if err != nil {
		return err
	}
	for _, path := range view.Special() {
		w.env.log.Warn("not part of the snapshot: neither file, folder nor symbolic link", keyPath, path)
	}
	l.view = view
	_, err = w.local.journal.Scan(ctx, w.local.dir.Root())
	return err
}

func (l *lateView) cut(context.Context) (uploader.View, error) {
	if l.view == nil {
		return nil, errors.New("asked for a cut before it was taken")
	}
	return l.view, nil
}

// snapshotOffline takes a snapshot of a DIR that is not mounted.
func snapshotOffline(ctx context.Context, e *env, o snapshotOptions, path string) (snap control.Snapshot, err error) {
	err = withLocal(ctx, e, path, "snapshot", &o.store, func(w workshop) error {
		local := localOptions{storeTimeout: commandStoreTimeout}
		_, r, err := w.snapshot(ctx, o.upload, local, false)
		snap = snapshotOf(r)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	})
	return snap, err
}

// printRestored tells what a restore brought.
func printRestored(e *env, w workshop, r reconcile.Result) error {
	if r.Restored == nil {
		_, err := fmt.Fprintf(e.stdout, "%s is at %s already.\n", w.local.dir.Path(), r.Snapshot)
		return err
	}
	fmt.Fprintf(e.stdout, "%s restored: %s, %s (%s fetched).\n", w.local.dir.Path(),
		count(r.Restored.Files, "file"), size(r.Restored.Bytes), size(r.Restored.Fetched))
	if r.Restored.Backup != "" {
		fmt.Fprintf(e.stdout, "What was there before is in %s.\n", r.Restored.Backup)
	}
	if r.Branch != "" {
		fmt.Fprintf(e.stdout, "It had changes that no snapshot has; the store keeps it as the branch %s.\n", r.Branch)
	}
	return nil
}

// reconcileMount brings DIR up to date for a mount and takes the store over.
func (s *session) reconcile(ctx context.Context) error {
	w := workshop{s.env, s.local, s.catalog, s.known}
	env := w.reconciling(s.options.local, s.options.upload)
	s.handover.join(&env)
	var err error
	s.origin, err = reconcile.Run(ctx, env)
	return err
}

// noteSpace logs how much room there is where an error says that it was not enough.
func (l *local) noteSpace(err error) {
	if err == nil || codeOf(err) != exitcode.NoSpace {
		return
	}
	free, freeErr := l.dir.Free()
	attrs := []any{keyDir, l.dir.Path(), keyFree, free}
	var needed *history.NoSpaceError
	if errors.As(err, &needed) {
		attrs = append(attrs, keyNeeded, needed.Need)
	}
	if freeErr != nil {
		attrs = append(attrs, keyError, freeErr)
	}
	l.log.Error("no space left", attrs...)
}
