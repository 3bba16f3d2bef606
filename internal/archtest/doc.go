// Package archtest holds the shape of the source: who may import whom, one doc
// comment per package, no file and no function too long to read. It has tests
// only.
//
// The edges are those of docs/architecture.md. A rule that has to give way gets a
// line with a reason in the list of exceptions beside it, so that it is reviewed.
package archtest
