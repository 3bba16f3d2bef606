package uploader

import (
	"context"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/tree"
	"github.com/chromafs/chromafs/journal"
)

// View is one frozen instant of DIR. Entries are sorted by path and not changed by
// anyone; Open is for files, safe for concurrent use, and its readers are too. A
// view that cannot hold its instant (the scratch space ran out, something wrote
// behind its back) fails from then on.
type View interface {
	Number() uint64 // marks with a lower number precede the cut
	Created() time.Time
	Consistency() string
	Entries() []tree.Entry
	Open(path string) (tree.Reader, error)
	Close() error
}

// verifier is a View that has to look again before what was read may be published.
type verifier interface {
	Verify(ctx context.Context) error
}

// tracker is a View that knows which parts of its files may have changed since the
// cut of the last snapshot that it was told was acknowledged: the others need not be
// read. What it does not know for sure it does not claim to.
type tracker interface {
	// Touched returns, for a file, which ranges may differ from what it held at the
	// cut numbered since; known is false if that is not known.
	Touched(path string, since uint64) (touched func(off, length int64) bool, known bool)
	// Acknowledged says that the journal's base is this view from now on.
	Acknowledged()
}

// CheckFunc looks whether what a view holds is whole, and says what is not, file by
// file. It need not look where changed is false for all files of a database, present
// or gone: they are as in the previous snapshot. An error says nothing about the
// view.
type CheckFunc func(ctx context.Context, view View, changed func(path string) bool) (damage []string, err error)

// Queue is what the uploader needs of *journal.Journal. All of it is durable when
// it returns.
type Queue interface {
	State() journal.State
	Dirty() journal.Dirty
	Base(path string) (tree.Record, bool)
	BaseRecords() []tree.Record
	AddPending(id string) error
	DropPending(id string) error
	SetIntent(journal.Intent) error
	ClearIntent() error
	SetEpoch(lineage string, epoch uint64) error
	Acknowledge(journal.Published) error
	// AddStored, SyncStored and Stored are about hints; AddStored may be forgotten
	// after a power cut unless SyncStored followed.
	AddStored(id string, s ...journal.Stored) error
	SyncStored(id string) error
	Stored(id string) ([]journal.Stored, error)
}

// Result describes a snapshot that the store holds.
type Result struct {
	ID            history.ID // "" where there is nothing to have a snapshot of
	Sequence      uint64
	Created       time.Time // of its cut
	Consistency   string
	Files         int           // files it holds
	Bytes         int64         // bytes they hold
	Changed       int           // entries whose content, name or mode is not the previous one's, and those gone
	BytesUploaded int64         // bytes that went over the wire; 0 where nothing was published
	Duration      time.Duration // from the cut until the last step
	Removed       int           // snapshots taken off the list and deleted
	Published     bool          // false: it was the newest before, nothing differs from it
	Aside         bool          // this writer stands aside: ID is a branch, "" where nothing differs from the journal's base
	// Untidy says what could not be finished once the snapshot was safe: `current`
	// or the removal of old ones. It is tried again with the next one. "" mostly.
	Untidy string
}

// Status is for people and for `chromafs status`.
type Status struct {
	Last       *Result   // the last snapshot that this process took or found unchanged
	Branch     *Result   // the last branch that it stored or found unchanged
	LastCut    time.Time // when this process last took a snapshot; zero: never
	DirtySince time.Time // zero: nothing is dirty
	DirtyPaths int       // how many marks there are
	AllDirty   bool
	NextDue    time.Time // when Run takes the next one at the earliest; zero: nothing is dirty
	Running    bool

	LastError    string    // of the last attempt, or of a request of the one that runs; "" if all went well
	FailingSince time.Time // zero: the last attempt went well
	Failures     int       // attempts in a row
	Fenced       bool
	Yielded      bool // the store was handed over, and not taken back
}
