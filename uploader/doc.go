// Package uploader decides when to take a snapshot, and publishes it.
//
// The model: a snapshot is a cut of DIR, a view, put into the store as whole
// objects under history/<id>/ and then published by one conditional write of
// manifest.json. The order is fixed, and what each step leaves behind if it is the
// last one that happened is why:
//
//  1. cut; join no more callers.
//  2. plan: what the journal does not mark and holds a base of is unchanged; what
//     is marked is hashed by parts and compared with its base, but for parts that
//     the view knows to be as in the base. A file without a base is hashed when it is
//     sent, part by part from memory, so that it is read once. The journal notes the
//     id as pending: its objects may be in the store.
//  3. objects, each whole: sent, or copied inside the store from the previous
//     snapshot or from what a failed attempt left, pinned to the ETag that the journal
//     recorded. What is sent is noted there, with its hash. Meanwhile the databases
//     that differ from the previous snapshot's are checked: a view with a damaged one
//     goes no further, and one more is cut.
//  4. history/<id>/manifest.json, create-only.
//  5. the journal notes the intent: from here on the id may be published.
//  6. manifest.json, conditional on the ETag last seen: the snapshot is published.
//  7. the journal acknowledges it: marks that precede the cut are cleared. Then the
//     view is told.
//  8. current is refreshed, if this is the writer still; the id is no longer pending.
//  9. pending ids that are on no list are deleted: what rotation took off (noted as
//     pending before step 6) and what earlier failures left.
//
// A pending id that is listed means that step 8 is still to be done for it, one
// that is not listed that step 9 is. So one mechanism finishes or collects
// whatever a failure or a crash left, at the end of the next snapshot. A takeover
// that does not know whether current follows the newest snapshot, another writer's,
// makes that one pending too (current.go).
//
// A writer that is asked to hand the store over yields (yield.go): it publishes
// nothing any more, until it takes the store back.
//
// A writer that another one has taken over from, or whose base the store has moved on
// from, stores branches instead, on the same schedule: steps 1 to 4 under an id that
// no list ever names, with the last branch as a source of copies beside the base. The
// journal is not told: by it DIR has diverged, whatever was stored. A branch is complete
// when its manifest is there. The last complete one stays pending, so that the next
// one, in this process or another, knows what not to send again; no other complete
// one does, and none is deleted for being pending: only half of one is. Rotation
// counts branches by themselves, per writer: the writer's own by itself, all by the one
// that publishes, and never one that any clock says to be younger than a day.
//
// Until then what a failed attempt left is of use to the next one, which has a cut and
// an id of its own (docs/decisions/0012): whole objects are copied, an upload is
// completed under the id for which it was begun, and then copied. Attempts that have
// nothing of what the plan would send, and all but the three that have the most of it,
// are collected between steps 2 and 3.
//
// The promises kept here:
//
//   - S1 Snapshot returns a snapshot whose cut was taken after it was called.
//   - S2 Step 6 comes after every object is stored.
//   - S3 Step 6 is one conditional write. Whatever fails, the store has the
//     snapshot before or the snapshot after.
//   - S4 Bytes that the store has are not sent, those that failed attempts sent
//     included, in this process or an earlier one. Where nothing is dirty, or what is
//     dirty turns out to be the same, nothing is stored and nothing published. Parts
//     that nothing touched are not read.
//   - H2, H3 Rotation is by sequence; an id leaves the list before its objects go.
//   - J2 The acknowledgement carries the number of the cut.
//   - S5 What a check found damaged is not published, and takes nothing off the list.
//   - W1 The epoch of a takeover fences the writer before it, which then publishes
//     nothing, deletes nothing that is listed and says so.
//   - W2 What that writer holds is stored as a branch, whole, and can be restored.
//   - F4 A failed snapshot leaves the marks; Run tries again for ever.
//
// Not promised: that `current` is one instant (DESIGN §4); and W1 on a store without
// conditional writes (package adapt), which Options.Ready lets pass only where a person
// has said that there is one writer.
package uploader
