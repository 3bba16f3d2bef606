// Package integration tests chromafs as people run it: the built binary, a real
// ChromaDB on the mount, and a real S3 server or a folder behind it. Package
// harness has the means; scripts/test integration runs it all.
//
// It is a Go module of its own, so that test servers stay out of the product's
// go.mod; their versions are pinned here, as tools.
package integration
