// Package reconcile decides what becomes of the two sides, the local copy and the
// store, before anything is served, and carries it out.
//
// The model: what is known of either side is a value (Local, Store), what the user
// said beforehand another (Flags), and Decide is the table of DESIGN §7 over them,
// a pure function with a name for every row. Run collects the values, decides,
// prepares what the table needs to know more about (an unfinished restore, an
// intent, the content of an unknown copy) until a row asks for a final action,
// takes the store over, decides again on what the takeover read, and only then
// changes DIR. Refusals name both sides and the choices, and touch neither.
//
// What it keeps:
//
//   - R2 DIR is changed by history.Restore alone; the journal follows after, and
//     the restore's intent is removed last.
//   - W2 Local changes that the store has moved on from are stored as a branch before
//     anything takes their place, or, if that fails, kept in backups.
//   - R3 A local copy that the store does not have, or may not have, is never
//     replaced without a backup of it.
//   - R4 "There is no backup" is history's word for it, never an error's.
//   - J4 A local copy counts as clean only after the journal has looked at it.
//
// "Older" is by lineage and sequence; no clock takes part.
package reconcile
