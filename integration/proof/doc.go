// Package proof shows that every snapshot of a busy ChromaDB is one instant (S1).
//
// The model: several writers add, update, upsert and delete documents of several
// collections, each operation with the time it was sent and the time it was
// acknowledged (History). Meanwhile snapshots are taken. Every single one is
// restored, opened by SQLite and by a real ChromaDB, and compared with that
// history. It is whole if
//
//  1. SQLite finds no fault, and every document that is listed is complete: text,
//     metadata and vector are of one version, and its own vector finds it.
//  2. Everything acknowledged before the snapshot was asked for is in it, and
//     nothing that was sent after it was there. An update is in it as its new
//     version, a deleted document is gone.
//  3. There is one instant that explains it: no operation is missing that was
//     acknowledged before another one that is there was sent. No operation is
//     there in part.
//
// The same checker looks at copies that other programs make of a bare
// directory (Peers), and every mechanism that makes a cut one instant can be
// left out (TestEachMechanismIsMissed), to see that the proof then fails.
package proof
