package reconcile

import (
	"errors"
	"fmt"
	"slices"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// Sentinels, for errors.Is.
var (
	// ErrRefused: the table refuses; nothing was touched.
	ErrRefused = errors.New("refused")
	// ErrNothing: there is no snapshot to restore.
	ErrNothing = errors.New("the store has no snapshot")
)

// Refusal says which row refused, and what the two sides are. It is ErrRefused.
type Refusal struct {
	Decision
	Dir, Address string // of DIR and the store, for people
	Local        Local
	Store        Store
	Flags        Flags
	NoBranch     error // why what is local could not be stored as a branch, where that was tried
}

// Error implements error: what is the matter, then both sides.
func (e *Refusal) Error() string {
	msg := e.what()
	if e.Store.Err != nil {
		return fmt.Sprintf("%s: %v", msg, e.Store.Err)
	}
	return fmt.Sprintf("%s: %s is %s; %s holds %s", msg, e.Dir, e.Local.describe(), e.Address, e.Store.describe())
}

func (e *Refusal) what() string {
	switch {
	case e.offlineImpossible():
		return string(e.Row) + ", and --offline has no whole local copy to serve"
	case e.Action.Restores():
		return string(e.Row) + "; this command does not replace the local copy"
	case e.losesLocal():
		if e.NoBranch != nil {
			return string(e.Row) + ", which could not be stored as a branch (" + e.NoBranch.Error() + "), and --no-local-backup would lose it"
		}
		return string(e.Row) + ", and --no-local-backup would lose what is local"
	}
	return string(e.Row)
}

func (e *Refusal) offlineImpossible() bool {
	return e.Flags.Offline && (e.Row == RowUnavailable || e.Row == RowRefused)
}

// losesLocal reports whether what stands in the way is that the local copy would
// neither be kept nor is in the store.
func (e *Refusal) losesLocal() bool {
	switch e.Row {
	case RowDiverged, RowUnknown, RowDirty:
		return e.Flags.NoLocalBackup && e.Action == Refuse
	}
	return false
}

// Is makes the error ErrRefused.
func (e *Refusal) Is(target error) bool { return target == ErrRefused }

// Unwrap returns what the store said.
func (e *Refusal) Unwrap() []error {
	return slices.DeleteFunc([]error{e.Store.Err, e.NoBranch}, func(err error) bool { return err == nil })
}

// ExitCode returns the code of DESIGN §9.
func (e *Refusal) ExitCode() int {
	switch e.Row {
	case RowUnavailable, RowRefused:
		if code := exitcode.Of(e.Store.Err); code != exitcode.Failed {
			return code
		}
		return exitcode.Store
	case RowHeadLost, RowUnpublished:
		return exitcode.Integrity
	}
	return exitcode.Conflict
}

// Hint returns the choices.
func (e *Refusal) Hint() string {
	switch e.Row {
	case RowUnavailable, RowRefused:
		if hint := exitcode.Hint(e.Store.Err); hint != "" && e.Row == RowRefused {
			return hint
		}
		if e.Local.Empty || e.Local.Unfinished || e.Flags.Offline {
			return "nothing was touched; check the address, the credentials and the network, and try again"
		}
		return "nothing was touched; check the address, the credentials and the network, or serve the local copy without the store: mount --offline"
	case RowHeadLost:
		if hint := exitcode.Hint(e.Store.Err); hint != "" {
			return hint
		}
		return "nothing was touched; make a whole snapshot the newest again: chromafs history adopt ID"
	case RowUnpublished:
		return "nothing was touched; a crash came between storing and publishing it. To make it the newest: chromafs history adopt " + e.Store.Unpublished
	case RowForeign:
		return "nothing was touched. Either name the store that " + e.Dir + " belongs to (--store); or, to let this store have its way, move " +
			e.Dir + "/.chromafs/journal.db away and mount again: the store's newest snapshot is then served and the local copy kept in backups, " +
			"or with --prefer-local the other way round"
	case RowUnknown:
		if e.losesLocal() {
			return "nothing was touched. Either leave --no-local-backup out: the store's snapshot is served and the local copy kept in backups; " +
				"or keep the local copy and publish it: mount --prefer-local; or empty " + e.Dir
		}
	case RowDiverged, RowDirty:
		if e.losesLocal() && e.NoBranch != nil {
			return "nothing local was touched. Either see that the store takes what is local, and try again; or leave --no-local-backup out: " +
				"the store's snapshot is served and the local copy kept in backups; or move what is local away yourself and mount on an empty " + e.Dir
		}
		if e.losesLocal() {
			return "nothing was touched. Either leave --no-local-backup out: the store's snapshot is served and the local copy kept in backups; " +
				"or move what is local away yourself and mount on an empty " + e.Dir
		}
	}
	return "nothing was touched; bring " + e.Dir + " up to date first: chromafs sync or chromafs restore"
}

// describe says what is local in a few words.
func (l Local) describe() string {
	switch {
	case l.Unfinished:
		return "in the middle of a restore"
	case l.Empty:
		return "empty"
	case l.Fresh || !l.Published:
		return "a directory that was never published from here"
	}
	state := "unchanged"
	if l.Dirty {
		state = "with changes that are not in the store"
	}
	return fmt.Sprintf("based on snapshot %s (lineage %.8s, sequence %d), %s", l.BaseID, l.Lineage, l.Sequence, state)
}

func (s Store) describe() string {
	if s.Kind == NoBackup {
		return "no snapshot"
	}
	return fmt.Sprintf("snapshot %s as its newest (lineage %.8s, sequence %d)", s.Newest, s.Lineage, s.Sequence)
}
