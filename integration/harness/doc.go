// Package harness drives the built chromafs binary against a real ChromaDB and
// real object stores, for the tests of the integration module.
//
// The model: a Store is a bucket (or a folder) of its own per test, whose objects
// can also be seen as plain files. A Mount is one daemon; what it leaves behind
// (a process, a mount) fails the test. Documents are numbered: document i has the
// id ID(i) and the embedding Vector(i), so that any process can check any database
// without being told what was put in: gapless ids, and every one of them found by
// searching for its own vector. A count alone comes from SQLite and proves nothing
// about the vector index.
//
// A missing prerequisite fails the test; it never skips it.
package harness
