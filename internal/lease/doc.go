// Package lease is how the mounts of one store hand it over to each other: one
// small object, lease.json, in which a holder says that it is there and a waiter
// asks it to yield.
//
// The model: whoever took the store over (by manifest.json, the only fence) is its
// holder and keeps the lease (Keeper). A mount that is about to take over looks at
// the lease first and, unless there is nobody to ask, waits (Waiter):
//
//	held ── request ──▶ yielding ── final snapshot ──▶ yielded ── takeover by the waiter
//	 ▲                     │ none in time                 │ nobody came
//	 └─────────────────────┴──────────────────────────────┘
//	released: the holder has stopped cleanly
//
// A request is answered by copying its nonce. Requests are alike: a later one
// replaces an earlier one, and every waiter goes by the answer to whichever is
// there, and goes on when the holder has yielded, to whomever. So of several
// waiters the takeover's condition picks one, and the others ask that one.
//
// What is kept:
//
//   - L1 The lease is advice. Nothing is published, and no takeover refused, because
//     of what it says or does not say. One that is missing, damaged or of a newer
//     format is none.
//   - L2 Nobody waits for ever, whatever the other side does: a waiter for one holder
//     no longer than its patience, and no longer than AnswerTimeout for a sign of life.
//   - L3 Times are spans of the own monotonic clock. No time is ever written or read,
//     and none of two machines compared.
//   - L4 A holder asks the store once per LookEvery, by one conditional GET, and writes
//     nothing while nobody asks.
//   - L5 Nobody writes over the lease of a later epoch: a holder that was left behind
//     stays away from that of its successor.
//   - L6 A holder that yielded to a waiter which then did not come takes the store back.
//   - L7 A lease of this very DIR is waited for by nobody: whoever holds DIR's lock
//     knows that its former process is gone.
//   - F4 Trouble with the lease is logged and goes no further.
package lease
