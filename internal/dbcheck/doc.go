// Package dbcheck looks whether the databases in a frozen directory are whole: its
// SQLite files and ChromaDB's vector indexes.
//
// The model: a view is read as SQLite would find it after a crash. A hot rollback
// journal is rolled back and a WAL is read, in memory: what SQLite writes on the
// way goes to an overlay above the view. A vector index (a segment) is a folder
// with an index_metadata.pickle; its files state how many vectors they hold, and
// have to agree, if the chroma.sqlite3 beside the folder names it: ChromaDB leaves the
// folders of deleted collections behind.
//
// The promises:
//
//   - D1 The view is never written to, and nothing is copied to disk.
//   - D2 What is called damage is damage. What cannot be judged (a journal that
//     needs more memory than it may have, a format that is not known, SQLite
//     itself failing) is a doubt: it says so, and damage it is not. Only a torn
//     segment counts as used where that cannot be read.
//   - D3 Memory is bounded and given back: a page cache of 2 MiB, all that SQLite
//     takes at most 64 MiB outside of Go's heap, the overlay at most 64 MiB.
//   - D4 It ends with its context.
//
// Not promised: that a database which passes is what the application meant. Bytes
// that changed inside of a value are not seen, nor is a full-text index compared
// with its text: the tables that it lies in are checked, the module is not loaded.
package dbcheck
