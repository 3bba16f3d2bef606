package journal

import (
	"errors"
	"fmt"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// The sentinels of this package, for errors.Is.
var (
	// ErrDamaged: journal.db is there but cannot be believed.
	ErrDamaged = errors.New("the journal is damaged")
	// ErrNewerFormat: a newer chromafs wrote journal.db.
	ErrNewerFormat = errors.New("the journal was written by a newer chromafs")
	// ErrLocked: another process has journal.db open.
	ErrLocked = errors.New("the journal is in use by another process")
	// ErrClosed: the journal was closed.
	ErrClosed = errors.New("the journal is closed")
	// ErrPath: not a clean path relative to DIR.
	ErrPath = errors.New("not a clean relative path")
	// ErrForeign: the journal belongs to another lineage.
	ErrForeign = errors.New("the journal belongs to another store's lineage")
)

// DamagedError says what is wrong with journal.db. SetAside is the way out.
type DamagedError struct {
	Name string // of the file in DIR/.chromafs
	Err  error  // what is wrong with it
}

// Error implements error.
func (e *DamagedError) Error() string { return fmt.Sprintf("%v: %s: %v", ErrDamaged, e.Name, e.Err) }

// Unwrap makes the error both ErrDamaged and its cause.
func (e *DamagedError) Unwrap() []error { return []error{ErrDamaged, e.Err} }

// ExitCode returns exitcode.Integrity.
func (e *DamagedError) ExitCode() int { return exitcode.Integrity }

// Hint returns the way out.
func (e *DamagedError) Hint() string {
	return "Your files are not affected. Rename .chromafs/" + e.Name + " (keep it for a report) and mount again: every file is then compared with the newest snapshot by its content."
}

// NewerFormatError names the format that this chromafs cannot read.
type NewerFormatError struct{ Format int }

// Error implements error.
func (e *NewerFormatError) Error() string {
	return fmt.Sprintf("%v: format %d, this one reads up to %d", ErrNewerFormat, e.Format, formatVersion)
}

// Is makes the error ErrNewerFormat.
func (e *NewerFormatError) Is(target error) bool { return target == ErrNewerFormat }

// ExitCode returns exitcode.Failed.
func (e *NewerFormatError) ExitCode() int { return exitcode.Failed }

// Hint returns the way out.
func (e *NewerFormatError) Hint() string {
	return "Use the newer chromafs, or rename .chromafs/" + fileName + " and mount again: every file is then compared with the newest snapshot by its content."
}
