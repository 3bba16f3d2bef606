package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/fusefs"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/dbcheck"
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
	verify   string
	maxFile  string
	interval time.Duration // mount only
	settle   time.Duration // mount only
}

func (o *uploadOptions) AddFlags(flags *pflag.FlagSet) {
	flags.IntVar(&o.keep, "keep", 24, "how many snapshots to keep in the store")
	flags.StringVar(&o.verify, "verify", string(dbcheck.Quick), "check the databases that changed before a snapshot is published: none, quick or full")
	flags.StringVar(&o.maxFile, "max-file-size", "64GiB", "take no snapshot with a file above this `size` that is mostly holes, and would fill the store with zeros; dense files may have any size; 0: no limit")
}

func (o *uploadOptions) validate() error {
	if o.keep < 1 {
		return usageError("--keep %d: must be at least 1", o.keep)
	}
	if _, err := dbcheck.ParseMode(o.verify); err != nil {
		return usageError("--verify: %v", err)
	}
	if n, ok := parseSize(o.maxFile); !ok || n < 0 {
		return usageError("--max-file-size %q: want %s, less than 8 EiB; 0 for no limit", o.maxFile, sizeForms)
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
func openLocal(ctx context.Context, path, info string, e *env) (*local, error) {
	dir, err := datadir.Open(path)
	if err != nil {
		return nil, err
	}
	l := &local{dir: dir, log: e.log}
	if err := fusefs.ClearDeadSelftests(dir); err != nil {
		return nil, errors.Join(err, l.close())
	}
	if err := lock(ctx, dir, info); err != nil {
		return nil, errors.Join(err, l.close())
	}
	if err := fusefs.Recover(dir, e.log); err != nil {
		return nil, errors.Join(err, l.close())
	}
	l.journal, err = journal.Open(dir.State(), journal.Options{Now: e.now, Log: e.log})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("in %s: %w", path, err), l.close())
	}
	return l, nil
}

// A killed holder lets go of the lock when the kernel is done with it.
const (
	lockTimeout = 5 * time.Second
	lockRetry   = 10 * time.Millisecond
)

// lock takes DIR's lock, and waits for a holder that is dying.
func lock(ctx context.Context, dir *datadir.Dir, info string) error {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	for {
		err := dir.Lock(info)
		var locked *datadir.LockedError
		if !errors.As(err, &locked) || locked.PID == 0 || !isDying(locked.PID) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(lockRetry):
		}
	}
}

// isDying reports whether a process was killed and has not ended yet.
func isDying(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	// "pid (name) state …"; the name may hold anything.
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 || end+2 >= len(stat) {
		return false
	}
	return stat[end+2] == 'Z' || stat[end+2] == 'X' || pendingKill(pid)
}

// pendingKill reports whether SIGKILL waits for a process.
func pendingKill(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && mask&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
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
