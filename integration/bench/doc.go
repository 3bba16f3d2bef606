// Package bench measures what chromafs costs: real ChromaDB and SQLite on the bare
// disk, on chromafs and on other FUSE file systems, in turns within one run, so
// that a machine that is slow for a while is slow for all of them. What counts is
// the ratio to the bare disk of the same round.
//
// scripts/bench runs it (build tag bench); docs/benchmarks.md holds results.
package bench
