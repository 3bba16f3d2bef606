package history

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// What can be asked of an error with errors.Is.
var (
	// ErrNoBackup: the store proved that nothing was ever published in it (R4).
	ErrNoBackup = errors.New("no backup")
	// ErrHeadLost: manifest.json is missing or unreadable, but history is not empty.
	ErrHeadLost = errors.New("manifest.json is lost")
	// ErrFenced: another writer has taken the store over (W1).
	ErrFenced = errors.New("another writer has taken over")
	// ErrStale: the list changed under its own writer, who merges and repeats.
	ErrStale = errors.New("the list of snapshots has changed")
	// ErrIntegrity: bytes do not match what was recorded of them (R1).
	ErrIntegrity = errors.New("integrity check failed")
	// ErrGone: the snapshot was rotated away.
	ErrGone = errors.New("the snapshot is no longer there")
	// ErrNoSpace: the disk has no room for a restore.
	ErrNoSpace = errors.New("no space")
	// ErrNewerFormat: written by a newer chromafs.
	ErrNewerFormat = errors.New("written by a newer version of chromafs")
	// ErrForeign: the prefix holds what is not chromafs's.
	ErrForeign = errors.New("the prefix holds something else")
	// ErrUnknownID: no listed snapshot has this id.
	ErrUnknownID = errors.New("no such snapshot")
)

// NoBackupError says that a well-formed listing proved the store to hold no
// published snapshot (R4).
type NoBackupError struct {
	Store string
	// Unpublished is a whole snapshot that was stored and then never published,
	// which a crash right before the very first publication leaves. Where the
	// local copy is lost too it is the only copy left: do not start empty, say
	// UnpublishedError instead. "" where there is none.
	Unpublished ID
	Branches    []ID // complete ones: what fenced writers held before anything was published
}

// Error implements error.
func (e *NoBackupError) Error() string { return e.Store + ": " + ErrNoBackup.Error() }

// Is makes errors.Is(err, ErrNoBackup) true.
func (e *NoBackupError) Is(target error) bool { return target == ErrNoBackup }

// HeadLostError says that manifest.json cannot be used though there is history.
type HeadLostError struct {
	Store     string
	Newest    ID    // the newest whole snapshot; "" where none is whole
	Snapshots int   // folders in history
	Cause     error // nil: manifest.json is missing
}

// Error implements error.
func (e *HeadLostError) Error() string {
	what := "is missing"
	if e.Cause != nil {
		what = "cannot be read (" + e.Cause.Error() + ")"
	}
	newest := "none of them is whole"
	if e.Newest != "" {
		newest = "the newest whole one is " + string(e.Newest)
	}
	return fmt.Sprintf("%s: manifest.json %s, but history holds %d snapshots; %s", e.Store, what, e.Snapshots, newest)
}

// Is makes errors.Is(err, ErrHeadLost) true.
func (e *HeadLostError) Is(target error) bool { return target == ErrHeadLost }

// Unwrap returns why manifest.json cannot be read.
func (e *HeadLostError) Unwrap() error { return e.Cause }

// ExitCode implements exitcode's convention.
func (e *HeadLostError) ExitCode() int { return exitcode.Integrity }

// Hint implements exitcode's convention.
func (e *HeadLostError) Hint() string {
	if e.Newest == "" {
		return "look at the store; nothing in it can be adopted, and nothing was touched"
	}
	return fmt.Sprintf("to make it the newest again: chromafs history adopt --store %s %s", e.Store, e.Newest)
}

// FencedError says that another writer has taken over; nothing was published.
type FencedError struct{ Head Head }

// Error implements error.
func (e *FencedError) Error() string {
	return fmt.Sprintf("%v: epoch %d, writer %s", ErrFenced, e.Head.Epoch, e.Head.Writer)
}

// Is makes errors.Is(err, ErrFenced) true.
func (e *FencedError) Is(target error) bool { return target == ErrFenced }

// ExitCode implements exitcode's convention.
func (e *FencedError) ExitCode() int { return exitcode.Conflict }

// StaleError says that the list was changed under its own writer's epoch (by
// history clear, which keeps the epoch): merge the list and swap again.
type StaleError struct {
	Head Head   // what is there now
	ETag string // of it
}

// Error implements error.
func (e *StaleError) Error() string { return ErrStale.Error() }

// Is makes errors.Is(err, ErrStale) true.
func (e *StaleError) Is(target error) bool { return target == ErrStale }

// IntegrityError says which bytes do not match. Path "" means the manifest.
type IntegrityError struct {
	ID   ID
	Path string
	Part int   // from 0; -1: not one part
	Err  error // what was found, of each copy that was tried

	Offer ID   // the newest older snapshot that looks whole: see OfferOlder; "": none does
	Asked bool // OfferOlder has looked for one
}

// Error implements error.
func (e *IntegrityError) Error() string {
	switch {
	case e.Path == "":
		return fmt.Sprintf("%v: snapshot %s: manifest: %v", ErrIntegrity, e.ID, e.Err)
	case e.Part < 0:
		return fmt.Sprintf("%v: snapshot %s: file %q: %v", ErrIntegrity, e.ID, e.Path, e.Err)
	}
	return fmt.Sprintf("%v: snapshot %s: file %q, part %d: %v", ErrIntegrity, e.ID, e.Path, e.Part+1, e.Err)
}

// Is makes errors.Is(err, ErrIntegrity) true.
func (e *IntegrityError) Is(target error) bool { return target == ErrIntegrity }

// Unwrap returns what was found.
func (e *IntegrityError) Unwrap() error { return e.Err }

// ExitCode implements exitcode's convention.
func (e *IntegrityError) ExitCode() int { return exitcode.Integrity }

// Hint implements exitcode's convention.
func (e *IntegrityError) Hint() string {
	switch {
	case e.Offer != "":
		const read = "all its objects are there with the right sizes, and it is right where this one is damaged; its other bytes were not read"
		return fmt.Sprintf("the newest older snapshot that looks whole is %s (%s): read them with chromafs history verify %s, "+
			"then go back to it with chromafs restore --at %s DIR, while DIR is not mounted", e.Offer, read, e.Offer, e.Offer)
	case e.Asked:
		return "no older snapshot looks whole either; chromafs history verify --all reads every byte of those there are"
	}
	return "check the others with chromafs history verify ID, then bring a whole one back with chromafs restore --at ID"
}

// NoSpaceError says that a restore does not fit. The old copy is whole unless
// InPlace says that it was already being overwritten.
type NoSpaceError struct {
	Need, Free uint64
	InPlace    bool
	Unsaved    bool  // the local copy has changes that the store does not have
	Err        error // nil: found before a byte was fetched
}

// Error implements error.
func (e *NoSpaceError) Error() string {
	s := fmt.Sprintf("%v for the restore: it needs %d bytes and %d are free", ErrNoSpace, e.Need, e.Free)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Is makes errors.Is(err, ErrNoSpace) true.
func (e *NoSpaceError) Is(target error) bool { return target == ErrNoSpace }

// Unwrap returns the failed operation.
func (e *NoSpaceError) Unwrap() error { return e.Err }

// ExitCode implements exitcode's convention.
func (e *NoSpaceError) ExitCode() int { return exitcode.NoSpace }

// Hint implements exitcode's convention.
func (e *NoSpaceError) Hint() string {
	switch {
	case e.InPlace:
		return "free some space and start again: the restore goes on where it stopped"
	case e.Unsaved:
		return "the local copy was not touched; it holds changes that are not in the store, so it cannot make room: free some space, or snapshot or move it away first"
	}
	return "the local copy was not touched: free some space, or use a bigger disk"
}

// NewerFormatError says that a newer chromafs wrote this.
type NewerFormatError struct{ Found int }

// Error implements error.
func (e *NewerFormatError) Error() string {
	return fmt.Sprintf("%v: format %d, this one reads up to %d", ErrNewerFormat, e.Found, Format)
}

// Is makes errors.Is(err, ErrNewerFormat) true.
func (e *NewerFormatError) Is(target error) bool { return target == ErrNewerFormat }

// Hint implements exitcode's convention.
func (e *NewerFormatError) Hint() string {
	return "install the chromafs that wrote it, or a newer one; nothing was touched"
}

// ForeignError says that a prefix without a backup is not empty either.
type ForeignError struct{ Store, Key string }

// Error implements error.
func (e *ForeignError) Error() string {
	return fmt.Sprintf("%s: %v: %q, and neither manifest.json nor history", e.Store, ErrForeign, e.Key)
}

// Is makes errors.Is(err, ErrForeign) true.
func (e *ForeignError) Is(target error) bool { return target == ErrForeign }

// ExitCode implements exitcode's convention.
func (e *ForeignError) ExitCode() int { return exitcode.Store }

// Hint implements exitcode's convention.
func (e *ForeignError) Hint() string {
	return "name a prefix of its own for chromafs in --store; if a backup was here, bring its manifest.json or history back"
}

// UnknownIDError says that a text names no snapshot, or several.
type UnknownIDError struct {
	Text       string
	Candidates []ID      // the ids that begin with it, where there are several
	At         time.Time // the time that it is; zero: it is none
	Oldest     ID        // where that time is before all; "" where there is no snapshot
}

// Error implements error.
func (e *UnknownIDError) Error() string {
	switch {
	case len(e.Candidates) > 0:
		shown, more := e.Candidates, ""
		if n := len(shown) - 10; n > 0 {
			shown, more = shown[n:], fmt.Sprintf(" and %d older ones", n)
		}
		names := make([]string, len(shown))
		for i, id := range shown {
			names[i] = string(id)
		}
		return fmt.Sprintf("%q begins the ids of %d snapshots: %s%s", e.Text, len(e.Candidates), strings.Join(names, ", "), more)
	case e.Oldest != "":
		return fmt.Sprintf("%v as old as %q (%s): the oldest is %s", ErrUnknownID, e.Text, e.At.Format(time.RFC3339), e.Oldest)
	}
	return fmt.Sprintf("%v: %q", ErrUnknownID, e.Text)
}

// Is makes errors.Is(err, ErrUnknownID) true.
func (e *UnknownIDError) Is(target error) bool { return target == ErrUnknownID }

// ExitCode implements exitcode's convention.
func (e *UnknownIDError) ExitCode() int { return exitcode.Usage }

// Hint implements exitcode's convention.
func (e *UnknownIDError) Hint() string {
	return "name an id, its beginning or a time (2026-11-24, \"2026-11-24 15:04\", 2026-11-24T15:04:05Z, 2h, 3d); chromafs history list shows the ids"
}
