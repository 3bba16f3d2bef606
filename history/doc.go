// Package history knows what is in the bucket: the names of objects, the
// manifests, the list of published snapshots, its rotation, and the way back to
// local disk.
//
// The model: a snapshot is the folder history/<id>/, whole files and a manifest,
// written once. One small object, manifest.json (the Head), lists the published
// snapshots in the order of their sequence; replacing it on condition of its ETag
// is the only act that publishes, and the fence between writers. What no head
// lists is litter, or the branch of a fenced writer. The rest of the prefix,
// "current", follows the newest snapshot for people and other tools; nothing here
// ever relies on it but as another copy of the same bytes.
//
// What it keeps of DESIGN §1:
//
//   - S2, S3: SwapHead is one conditional write; an answer that was lost is looked
//     for, never guessed. Copies are pinned to the ETag in the manifest.
//   - H1: a manifest is create-only and nothing under a listed id is written again.
//   - H2: Rotate keeps the newest by sequence; no function removes the newest.
//   - H3: Remove refuses what the head lists: off the list first, then the objects.
//   - W2: a branch is complete when its manifest is there, which is stored last and
//     removed first. Rotation takes none that any clock says to be younger than a day.
//   - R1: Restore checks every byte against the manifest, tries the other copy,
//     then names file and part.
//   - R2: Restore stages beside the old copy and moves it in under a durable
//     intent; in place only where the store has all that is overwritten, marked as
//     interrupted from the first byte on.
//   - R3: a local copy with unsaved changes is never overwritten in place, and its
//     backup is not one of those that later restores prune.
//   - R4: ErrNoBackup follows from a complete listing only. Lost or unreadable
//     heads, foreign objects and newer formats are errors of their own.
//
// What comes out of a store is not trusted: a manifest is validated as a whole
// before anything is done with it, and a restore reaches DIR through descriptors
// only, so nothing outside can be written whatever it says.
//
// What it does not keep: the fence, on a store that does no conditional writes (package
// adapt looks instead); "current" is no snapshot (no store can fence a copy), hard
// links come back as separate files, and paths beyond 4,095 bytes are none.
package history
