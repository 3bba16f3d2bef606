// Package objstore is what chromafs asks of an object store: the few primitives
// on which snapshots are published (S2, S3), kept (H1) and proven absent (R4).
//
// The model: a store is a flat set of objects below one prefix. A key is relative
// to that prefix, made of slash-separated segments (see CheckKey). An object is
// replaced as a whole or not at all; a reader sees the old or the new one. Each
// state of an object has an ETag, opaque and without quotes; content that differs
// has an ETag that differs, equal content may have an equal one.
//
// What every adapter keeps, and package storetest checks:
//
//   - O1: a write that returned without an error is stored, and its bytes are those
//     that were sent: they were verified on arrival (S2).
//   - O2: of conditional writes racing for one state of a key exactly one wins (S3).
//   - O3: a copy is pinned to the ETag of its source, or it fails (S2).
//   - O4: ErrNotFound is the store's own word for "this key is missing"; a listing
//     is complete and the store's own word, or it ends with an error. So "there is
//     no backup" cannot follow from a wrong address, a wrong key or a server that
//     is down (R4).
//   - O5: a body that breaks off ends with an error, never with io.EOF (R1).
//
// What no adapter promises: that a write which returned an error was not stored.
// Its answer may have been lost. A conditional write whose answer was lost and that
// was tried again shows as ErrPrecondition: read back and look for your own nonce.
//
// Adapters are safe for concurrent use. Package open makes one of a URL.
package objstore
