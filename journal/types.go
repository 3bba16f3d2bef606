package journal

import (
	"io"
	"iter"
	"log/slog"
	"strings"
	"time"

	"github.com/chromafs/chromafs/internal/tree"
)

// Options are what a journal takes from its surroundings. The zero value uses
// the system's clock and randomness and logs nothing.
type Options struct {
	Now  func() time.Time
	Rand io.Reader
	Log  *slog.Logger

	// fault, where a test sets it, may fail the step it is told the name of.
	fault func(step string) error
}

// State is what the journal knows, apart from paths.
type State struct {
	JournalID string // random, made with the journal
	Writer    string // random, new at each Open

	Lineage  string // of the store that the journal belongs to; "" for none yet
	Epoch    uint64 // of the last takeover or snapshot
	ID       string // of the snapshot that the base is; "" for none
	Sequence uint64 // of that snapshot

	Fresh       bool   // belongs to no store yet: nothing is known of DIR
	FreshReason string // why, for a person
	Published   bool   // there is a base
	CleanStop   bool   // the last run ended with Stop, and nothing was marked since
	AllDirty    bool   // everything is marked
	Cut         uint64 // the highest cut number known; the next cut needs a higher one

	Intent  *Intent  // a publication that may have happened unacknowledged
	Pending []string // ids whose objects this writer may have left in the store, or that `current` may not follow yet
}

// Intent says that the snapshot ID is about to be published.
type Intent struct {
	ID       string `json:"id"`
	Nonce    string `json:"nonce"`
	Cut      uint64 `json:"cut"`
	Sequence uint64 `json:"sequence"`
}

// Published is a snapshot that the store now holds.
type Published struct {
	Lineage  string
	Sequence uint64
	Epoch    uint64
	ID       string
	Cut      uint64
	Records  []tree.Record // everything it holds, each with its stat as of the cut
}

// Dirty says what differs, or may differ, from the last published snapshot.
type Dirty struct {
	Since time.Time         // of the oldest mark; zero where there is none
	All   bool              // everything is dirty
	Marks map[string]uint64 // path → number of the last cut before it was touched
}

// Empty reports that nothing is dirty.
func (d Dirty) Empty() bool { return !d.All && len(d.Marks) == 0 }

// Covers reports whether name is dirty: by its own mark or by one on a folder
// above it.
func (d Dirty) Covers(name string) bool {
	if d.All {
		return true
	}
	for p := range selfAndAbove(name) {
		if _, ok := d.Marks[p]; ok {
			return true
		}
	}
	return false
}

// selfAndAbove yields name and every folder above it, "." last.
func selfAndAbove(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for yield(name) && name != "." {
			if i := strings.LastIndexByte(name, '/'); i >= 0 {
				name = name[:i]
			} else {
				name = "."
			}
		}
	}
}

// ScanReport says what Scan did.
type ScanReport struct {
	Checked int // entries looked at
	Hashed  int // files whose content was read, because their stat differed
	Changed int // paths found to differ from what was recorded
}
