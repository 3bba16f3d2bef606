// Package control is how the other commands talk to a running mount: HTTP on a
// Unix socket that is named after the key of DIR.
//
// The model: the daemon that holds DIR's lock listens on <folder>/<key>.sock,
// where <key> is "<dev>-<ino>" of DIR and <folder> is /run/chromafs for root and
// $XDG_RUNTIME_DIR/chromafs for others (where that cannot be, /tmp/chromafs-<uid>). Folder
// and socket belong to that user alone (0700, 0600): who may connect may do
// anything. Find turns whichever path a person gives, DIR, the mountpoint or
// anything on the mount, into the key, without asking the mount itself: the
// commands work where MOUNTPOINT is DIR, and where the daemon is stuck or dead.
//
//	GET  /status    Status
//	POST /snapshot  Snapshot
//	POST /unmount   answered when everything is flushed and the mount is gone
//
// Whatever fails comes back with its message, hint and exit code (RemoteError).
package control

import (
	"context"
	"time"
)

// Handler is what a mount does when it is asked to. Calls may come at the same
// time; ctx ends when the asker hangs up.
type Handler interface {
	// Snapshot takes and publishes a snapshot of this moment.
	Snapshot(ctx context.Context) (Snapshot, error)
	// Status describes the mount. It does not wait for a store.
	Status(ctx context.Context) (Status, error)
	// Unmount flushes, unmounts, and returns when that is done. Asked again, it
	// waits for the same end.
	Unmount(ctx context.Context) error
}

// Snapshot is the result of a snapshot. It is what `chromafs snapshot --json`
// prints.
type Snapshot struct {
	ID            string    `json:"id"`
	Sequence      uint64    `json:"sequence"`
	Created       time.Time `json:"created"`
	Consistency   string    `json:"consistency"`
	Files         int       `json:"files"`
	Bytes         int64     `json:"bytes"`
	BytesUploaded int64     `json:"bytes_uploaded"`
	Removed       int       `json:"removed"` // snapshots that rotation took off the list
	DurationMS    int64     `json:"duration_ms"`
}

// Status describes a DIR and, where it is mounted, its mount. It is what
// `chromafs status --json` prints.
type Status struct {
	Dir        string `json:"dir"`
	Mounted    bool   `json:"mounted"`
	Mountpoint string `json:"mountpoint,omitempty"`
	PID        int    `json:"pid,omitempty"`
	Version    string `json:"version,omitempty"`
	Writeback  bool   `json:"writeback"`

	Store   string `json:"store,omitempty"`
	Offline bool   `json:"offline"` // started with --offline, the store not seen yet
	// SingleWriter: the store does no conditional writes, and --single-writer was given.
	SingleWriter bool     `json:"single_writer"`
	StoreLacks   []string `json:"store_lacks,omitempty"` // and what follows

	Lineage  string `json:"lineage,omitempty"`
	Sequence uint64 `json:"sequence"`

	Last *LastSnapshot `json:"last_snapshot,omitempty"` // nil: none yet

	Dirty      bool       `json:"dirty"`
	DirtySince *time.Time `json:"dirty_since,omitempty"`
	DirtyPaths int        `json:"dirty_paths"`
	AllDirty   bool       `json:"all_dirty"`

	Snapshotting bool       `json:"snapshotting"`       // one is being taken or sent
	NextDue      *time.Time `json:"next_due,omitempty"` // nil: nothing is dirty
	Overdue      bool       `json:"overdue"`
	LastError    string     `json:"last_error,omitempty"`
	FailingSince *time.Time `json:"failing_since,omitempty"`
	Fenced       bool       `json:"fenced"`
	Branch       *Branch    `json:"branch,omitempty"` // the last one that this mount stored; nil: none
	Yielded      bool       `json:"yielded"`          // the store was handed over to another mount
	Lease        *Lease     `json:"lease,omitempty"`  // nil: this mount has not had the store yet

	UnfinishedRestore string `json:"unfinished_restore,omitempty"` // the id it restores
	FreeBytes         uint64 `json:"free_bytes"`
	ScratchBytes      int64  `json:"scratch_bytes"`           // saved of what was overwritten since the cut
	ScratchLimit      int64  `json:"scratch_limit,omitempty"` // only while a snapshot is being read

	Cuts *Cuts `json:"cuts,omitempty"` // nil: not mounted
}

// Lease says who has the store, as far as this mount knows.
type Lease struct {
	State  string    `json:"state"`            // held, yielding, yielded, released or lost
	Epoch  uint64    `json:"epoch"`            // of this mount's takeover
	Holder string    `json:"holder,omitempty"` // who has it now, where that is another mount
	Waiter string    `json:"waiter,omitempty"` // who asked for it last
	Since  time.Time `json:"since"`            // of the state
}

// Cuts says what the cuts of a mount have cost the application so far.
type Cuts struct {
	Count         uint64 `json:"count"`
	Abandoned     uint64 `json:"abandoned"`       // given up while they were read: too much was overwritten
	LastWaitUS    int64  `json:"last_wait_us"`    // microseconds from the request to the instant
	LongestHoldUS int64  `json:"longest_hold_us"` // for which one kept mutations waiting
	LongestWaitUS int64  `json:"longest_wait_us"` // of a single mutation
}

// Branch is what a fenced mount stores instead of snapshots.
type Branch struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Files   int       `json:"files"`
	Bytes   int64     `json:"bytes"`
}

// LastSnapshot is the newest snapshot that DIR is based on.
type LastSnapshot struct {
	ID          string    `json:"id"`
	Created     time.Time `json:"created,omitzero"`
	Files       int       `json:"files,omitempty"`
	Bytes       int64     `json:"bytes,omitempty"`
	Consistency string    `json:"consistency,omitempty"`
}
