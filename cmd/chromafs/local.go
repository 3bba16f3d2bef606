package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/tree"
	"github.com/chromafs/chromafs/journal"
)

// localOptions say what becomes of the local copy where the store has another.
type localOptions struct {
	noLocalBackup bool
	backups       int
	preferLocal   bool          // mount only
	offline       bool          // mount only
	storeTimeout  time.Duration // mount only; others use storeTimeout
}

func (o *localOptions) AddFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&o.noLocalBackup, "no-local-backup", false, "when a snapshot replaces the local copy, do not keep that in DIR/.chromafs/backups")
	flags.IntVar(&o.backups, "keep-local-backups", 1, "how many replaced local copies to keep")
}

func (o *localOptions) validate() error {
	if o.backups < 1 {
		return usageError("--keep-local-backups %d: must be at least 1; --no-local-backup keeps none", o.backups)
	}
	if o.storeTimeout < 0 {
		return usageError("--store-timeout %v: must not be negative", o.storeTimeout)
	}
	return nil
}

// uploadOptions say how snapshots are published.
type uploadOptions struct {
	keep     int
	interval time.Duration // mount only
	settle   time.Duration // mount only
}

func (o *uploadOptions) AddFlags(flags *pflag.FlagSet) {
	flags.IntVar(&o.keep, "keep", 24, "how many snapshots to keep in the store")
}

func (o *uploadOptions) validate() error {
	if o.keep < 1 {
		return usageError("--keep %d: must be at least 1", o.keep)
	}
	return nil
}

// local is a DIR that this process holds: locked, its journal open.
type local struct {
	dir     *datadir.Dir
	journal *journal.Journal
	log     *slog.Logger
}

// openLocal opens, locks and reads what is on local disk. info names the holder to
// others.
func openLocal(path, info string, e *env) (*local, error) {
	dir, err := datadir.Open(path)
	if err != nil {
		return nil, err
	}
	l := &local{dir: dir, log: e.log}
	if err := dir.Lock(info); err != nil {
		return nil, errors.Join(err, l.close())
	}
	l.journal, err = journal.Open(dir.State(), journal.Options{Now: e.now, Log: e.log})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("in %s: %w", path, err), l.close())
	}
	return l, nil
}

func (l *local) close() error {
	var errs []error
	if l.journal != nil {
		errs = append(errs, l.journal.Close())
	}
	errs = append(errs, l.dir.Close())
	l.journal = nil
	return errors.Join(errs...)
}

// skipState leaves the hidden folder out of a walk of DIR.
func skipState(path string) bool { return path == datadir.StateName }

// journalName is the journal's file in DIR/.chromafs.
const journalName = "journal.db"

// hasJournal reports whether DIR has a journal, so that opening it makes none.
func hasJournal(dir *datadir.Dir) (bool, error) {
	_, _, err := tree.Stat(dir.State(), journalName)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
