package uploader

import (
	"errors"
	"fmt"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
)

// Sentinels, for errors.Is.
var (
	// ErrFenced: another writer has taken the store over. It stays so until the
	// next mount.
	ErrFenced = errors.New("another writer has taken the store over")
	// ErrYielded: this writer has handed the store over. Unlike ErrFenced it may end:
	// see Reclaim.
	ErrYielded = errors.New("the store was handed over to another mount")
	// ErrDiverged: the store's newest snapshot is not the one that the local copy
	// is based on.
	ErrDiverged = errors.New("the store's newest snapshot is not the one that the local copy is based on")
	// ErrWiped: DIR holds nothing any more, and that did not happen on the mount.
	ErrWiped = errors.New("the directory was wiped")
	// ErrDamaged: what would have been published is not whole.
	ErrDamaged = errors.New("a database is damaged")
)

// DamagedError says what was found damaged at a cut. It is ErrDamaged.
type DamagedError struct {
	Damage   []string   // each names a file and says what is wrong
	LastGood history.ID // the newest snapshot; "" where there is none
}

// Error implements error.
func (e *DamagedError) Error() string {
	msg := fmt.Sprintf("%v: %s", ErrDamaged, e.Damage[0])
	if n := len(e.Damage) - 1; n > 0 {
		msg += fmt.Sprintf("; and in %d other places", n)
	}
	return msg
}

// Is reports whether target is ErrDamaged.
func (e *DamagedError) Is(target error) bool { return target == ErrDamaged }

// ExitCode returns exitcode.Integrity.
func (e *DamagedError) ExitCode() int { return exitcode.Integrity }

// Hint returns the next step.
func (e *DamagedError) Hint() string {
	const others = "or, for a vector index (a folder), delete its collection in ChromaDB and build it again, " +
		"or publish everything as it is: mount, or snapshot with no mount, with --verify none"
	if e.LastGood == "" {
		return "nothing was published; stop the application and repair the file or put a good copy in its place, " + others
	}
	return fmt.Sprintf("nothing was published, and history keeps its snapshots; stop the application, unmount, and go back with "+
		"chromafs restore --at %s DIR (or an older one, see chromafs history list; the damaged copy is kept in .chromafs/backups), or repair the file, "+others, e.LastGood)
}

// AsideError says that this writer publishes nothing in the list, why, and what
// became of what it holds. It is ErrFenced or ErrYielded.
type AsideError struct {
	Store  string     // as the store calls itself
	Why    error      // ErrFenced or ErrYielded
	Err    error      // how ErrFenced was found out
	Branch history.ID // holds what this writer does; "" where there is none
	Failed error      // why there is none; nil: nothing here differs from what was published
}

// Error implements error.
func (e *AsideError) Error() string {
	msg := fmt.Sprintf("%v: %s", e.Why, e.Store)
	if e.Err != nil {
		msg += ": " + e.Err.Error()
	}
	switch {
	case e.Branch != "":
		return msg + "; what this one holds is stored as the branch " + string(e.Branch)
	case e.Failed != nil:
		return msg + "; what this one holds could not be stored as a branch: " + e.Failed.Error()
	}
	return msg
}

// Unwrap returns why, how that was found out, and why there is no branch.
func (e *AsideError) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.Why, e.Err, e.Failed} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// ExitCode returns exitcode.Conflict: what is published is not what this writer holds.
func (e *AsideError) ExitCode() int { return exitcode.Conflict }

// Hint returns the next step.
func (e *AsideError) Hint() string {
	const next = "this one keeps serving, and the list of snapshots is the other's; let applications use the other mount and stop this one: " +
		"its next mount brings the store's newest snapshot"
	switch {
	case e.Branch != "":
		return next + " and keeps what was written here in .chromafs/backups too. To go on with the branch instead: " +
			restoreCommand(e.Branch) + ", then mount"
	case e.Failed != nil:
		hint := next + ", stores what was written here as a branch and keeps it in .chromafs/backups"
		if own := exitcode.Hint(e.Failed); own != "" {
			hint += "; " + own
		}
		return hint
	}
	return next
}

// leaderGone is what those joined to a snapshot get when the caller that took it
// gave up; they take one themselves.
type leaderGone struct{ error }

func (e leaderGone) Unwrap() error { return e.error }
