package reconcile

import "slices"

// Local is what one side of the table says: the local copy.
type Local struct {
	Empty      bool // no entry but .chromafs, whatever the journal says
	Fresh      bool // the journal belongs to no store: there was none, or a copied one
	Published  bool // the journal has a base
	Dirty      bool // something differs, or may differ, from the base
	Unfinished bool // a restore was begun and has not ended

	Lineage  string // of the base; without one, of the store that this was the writer of
	Sequence uint64 // of the base
	BaseID   string // the snapshot that the local copy is based on
	Intent   string // a snapshot whose publication may have happened unacknowledged

	Content Content // how it compares with the newest snapshot, once that was asked for
}

// Content says how the local copy compares with the newest snapshot, byte by byte.
type Content uint8

// What comparing found.
const (
	Unknown Content = iota // not compared yet
	Equal
	Different
)

// StoreKind is what the store answered.
type StoreKind uint8

// The answers.
const (
	NoBackup    StoreKind = iota + 1 // proven to hold nothing (R4)
	Snapshots                        // a head that names a newest snapshot
	HeadLost                         // snapshots, but no head that can be read
	Refused                          // asking again does not help
	Unavailable                      // asking again may help
)

// Store is the other side of the table.
type Store struct {
	Kind     StoreKind
	Lineage  string
	Sequence uint64
	Newest   string   // the newest snapshot
	History  []string // every id that the head lists
	Err      error    // with HeadLost, Refused and Unavailable

	Unpublished string // with NoBackup: a whole snapshot that was stored and never published
}

// Flags are what the user said beforehand.
type Flags struct {
	NoLocalBackup bool
	PreferLocal   bool
	Offline       bool
}

// Action is what a decision asks for.
type Action uint8

// The actions. The first three prepare: after them the table is read again.
const (
	FinishRestore Action = iota + 1 // roll an unfinished restore forward
	FinishIntent                    // acknowledge the snapshot that was published after all
	Compare                         // compare the local copy with the newest snapshot

	StartEmpty   // serve the empty directory
	Nothing      // serve what is there; it is what the store has
	Keep         // serve what is there; what is marked is uploaded soon
	KeepAll      // serve what is there; everything is to be uploaded
	KeepOver     // serve what is there, based on the newest snapshot, which it replaces
	Adopt        // serve what is there; it equals the newest snapshot
	Restore      // bring the newest snapshot; nothing local is in its way
	Update       // bring the newest snapshot; the store has the local copy
	Replace      // bring the newest snapshot; the local copy is kept in backups/
	Fork         // bring the newest snapshot; the local copy is kept as a branch, and in backups/ unless the flags say otherwise
	ServeOffline // serve what is there without a store
	Refuse       // touch nothing
)

var actionNames = map[Action]string{
	FinishRestore: "finish the restore", FinishIntent: "finish the publication", Compare: "compare",
	StartEmpty: "start empty", Nothing: "nothing to do", Keep: "keep the local copy",
	KeepAll: "keep the local copy, all of it to be uploaded", KeepOver: "keep the local copy over the store's",
	Adopt: "adopt the local copy", Restore: "restore", Update: "update", Replace: "restore, keep the local copy in backups",
	Fork:         "restore, keep the local copy as a branch",
	ServeOffline: "serve offline", Refuse: "refuse",
}

// String returns a few words for logs.
func (a Action) String() string { return actionNames[a] }

// Restores reports whether the action puts a snapshot in the place of what is there.
func (a Action) Restores() bool { return a == Restore || a == Update || a == Replace || a == Fork }

// Row names a row of the table in DESIGN §7.
type Row string

// The rows, in the order in which they are looked at.
const (
	RowUnavailable  Row = "the store cannot be reached"
	RowRefused      Row = "the store refused"
	RowHeadLost     Row = "manifest.json is missing or unreadable, but there is history"
	RowUnfinished   Row = "a restore was interrupted"
	RowUnpublished  Row = "no local copy, no backup, but a whole snapshot that was never published"
	RowNewAndEmpty  Row = "no local copy, no backup"
	RowEmpty        Row = "no local copy, but a snapshot"
	RowIntent       Row = "a snapshot was published and not acknowledged"
	RowFirst        Row = "a local copy that was never published, no backup"
	RowUnknownEqual Row = "an unknown local copy that equals the newest snapshot"
	RowUnknown      Row = "an unknown local copy, and a snapshot that differs"
	RowForeign      Row = "the local copy belongs to another store, or is ahead of this one"
	RowCurrent      Row = "the local copy is the newest snapshot"
	RowDirty        Row = "the local copy has changes on top of the newest snapshot"
	RowOlder        Row = "the local copy is an older snapshot"
	RowDiverged     Row = "the local copy has changes on top of an older snapshot, or of none"
)

// Decision is a row of the table and what it asks for.
type Decision struct {
	Row    Row
	Action Action
}

// Decide is the table of DESIGN §7. The first row that matches wins, but
// unreachable, unreadable and unfinished come before all others. A journal that
// never published knows nothing of the store's snapshots: it counts as none.
func Decide(l Local, s Store, f Flags) Decision {
	switch {
	case s.Kind == Unavailable:
		return Decision{RowUnavailable, offline(l, f)}
	case s.Kind == Refused:
		return Decision{RowRefused, offline(l, f)}
	case s.Kind == HeadLost:
		return Decision{RowHeadLost, Refuse}
	case l.Unfinished:
		return Decision{RowUnfinished, FinishRestore}
	case l.Empty && s.Kind == NoBackup && s.Unpublished != "":
		return Decision{RowUnpublished, Refuse}
	case l.Empty && s.Kind == NoBackup:
		return Decision{RowNewAndEmpty, StartEmpty}
	case l.Empty:
		return Decision{RowEmpty, Restore}
	case l.Intent != "" && slices.Contains(s.History, l.Intent):
		return Decision{RowIntent, FinishIntent}
	case (l.Fresh || !l.Published) && s.Kind == NoBackup:
		return Decision{RowFirst, KeepAll}
	case l.Fresh || !l.Published:
		return unknown(l, s, f)
	case s.Kind == NoBackup, l.Lineage != s.Lineage, l.Sequence > s.Sequence,
		l.Sequence == s.Sequence && l.BaseID != s.Newest:
		return Decision{RowForeign, Refuse}
	case l.BaseID == s.Newest && l.Dirty:
		return Decision{RowDirty, Keep}
	case l.BaseID == s.Newest:
		return Decision{RowCurrent, Nothing}
	case !l.Dirty:
		return Decision{RowOlder, Update}
	}
	return Decision{RowDiverged, Fork}
}

// offline is what remains without a store: an existing, whole local copy can be
// served if the user said so.
func offline(l Local, f Flags) Action {
	if f.Offline && !l.Empty && !l.Unfinished {
		return ServeOffline
	}
	return Refuse
}

// unknown decides on a local copy of which no journal tells where it comes from.
func unknown(l Local, s Store, f Flags) Decision {
	switch {
	case l.Content == Unknown:
		return Decision{RowUnknown, Compare}
	case l.Content == Equal:
		return Decision{RowUnknownEqual, Adopt}
	case f.PreferLocal:
		return Decision{RowUnknown, KeepOver}
	case !l.Fresh && l.Lineage != "" && l.Lineage == s.Lineage: // it was the writer once, and another published first
		return Decision{RowDiverged, Fork}
	case f.NoLocalBackup:
		return Decision{RowUnknown, Refuse}
	}
	return Decision{RowUnknown, Replace}
}
