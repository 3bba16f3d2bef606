// Package faultmatrix fails every request of a snapshot and of a restore in every way
// that a network and a store have, one at a time: adapter, catalog, uploader, journal
// and reconciliation as they are, before a real S3 server behind package faultproxy.
//
// A dry run counts the requests; then, for each of them and each kind of fault:
//
//  1. Where the snapshot failed, the one before is published, else it is itself; each
//     listed one verifies to the last byte (S2, S3).
//  2. A restore leaves the old files or the new ones, whole (R2), and never takes what
//     went wrong for an empty store (R4).
//  3. No fault fences the writer, and what passes by itself is reported as ErrUnavailable.
//  4. The next run without faults succeeds, in the same process or after a crash, and
//     leaves nothing behind: no object, upload, pending id, intent or scratch file.
//  5. A slow answer is not a fault.
//
// Each world goes on with what the case before left, so that states grow old.
//
// scripts/test runs a part that holds every request and every kind;
// CHROMAFS_TEST_FAULTS=all runs all of it, CHROMAFS_TEST_SEED repeats a run.
package faultmatrix
