// Package writers shows what becomes of a store that several mounts share (W1, W2).
//
// The model: two to four machines, each with a disk, a mount and a clock that is
// wrong, share one prefix of a real S3 server. Round by round one of them, chosen
// at random, writes, takes a snapshot, is mounted, stopped, killed, killed or slow at
// a failpoint, or stands still (SIGSTOP) and goes on later; what takes time goes on
// beside the rounds that follow. What is written are tokens: lines that are
// appended to one file and synced, no two alike. So what a snapshot holds is a set
// of tokens, and the sets say who came from whom.
//
// After every round (oracle):
//
//  1. manifest.json only ever moves on: lineage the same, epoch and sequence never
//     back, the list extended at its end and shortened at its beginning.
//  2. The chain is linear: each listed snapshot holds all tokens of the one before.
//  3. What `snapshot` acknowledged with 0 is in the newest snapshot, for ever.
//
// After the last round everything is stopped and every disk mounted once more. Then:
//
//  4. Every token that was ever synced is in the newest snapshot, or in a branch that
//     can be restored from the store.
//  5. Every snapshot and branch passes `history verify`.
package writers
