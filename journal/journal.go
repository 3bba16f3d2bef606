// Package journal is the durable record of what differs between a folder and
// the last snapshot of it that was published.
//
// The model: a snapshot is taken at a cut, and cuts are numbered. Before a
// path is changed for the first time after a cut, it is marked with the number
// of that cut. Publishing the snapshot of cut k clears the marks with a number
// below k and no other, so whatever changed after the cut stays marked, however
// long the upload took. A mark on a folder covers everything below it, one on
// "." everything. Besides the marks the journal holds the base: what the last
// published snapshot held, path by path, with the hash of every part; and the
// stat of every file from when its content was last known.
//
// All of it is kept in memory; bbolt, in DIR/.chromafs/journal.db, makes it
// durable. Where a transaction fails (a full disk), a preallocated block beside
// it, DIR/.chromafs/reserve, takes a mark on "." in place of it, and the
// application goes on. The file is written anew from memory as soon as there is
// room. A journal.db that was copied here from elsewhere is set aside, one that
// is damaged is an error: what it says is never half believed.
//
// The promises (docs: design, section 1):
//
//   - J1 Mark returns after its marks are on disk.
//   - J2 Acknowledge(cut k) never clears a mark made after cut k.
//   - J3 After any crash the reopened journal holds at least every path marked
//     since the last acknowledged snapshot.
//   - J4 Scan finds what changed while nobody was watching: size, mtime, ctime
//     and inode of every file are compared with the recorded ones, what differs
//     is hashed, and only differing content is marked.
//
// Not promised: a change made behind the journal's back that leaves size,
// mtime, ctime and inode as they were is not seen.
package journal
