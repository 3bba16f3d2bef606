// Package retry is the one policy by which requests to an object store are repeated.
//
// The model: a Repeater does something, and does it again while the error says that
// asking again may help (objstore.ErrUnavailable; of a write also ErrDamaged, its
// bytes being verified on arrival). Store puts one over a whole object store;
// adapters below it ask the server once.
//
//   - T1: what is of another kind, or the end of a context, is never repeated. Nor
//     are a full disk and an upload that is gone: waiting ends neither.
//   - T2: the waits double from Policy.First to Policy.Most, each a random part of
//     that (full jitter), so that many clients do not come back at once. Where the
//     store says how long to stay away, it is left alone for that long; where that
//     is longer than what is left of the budget, the operation fails at once.
//   - T3: an operation has a budget, Policy.Time from its first failure on and
//     Policy.Attempts. What makes progress has it anew: a listing with each page, a
//     body with each MiB.
//   - T4: the end of the caller's context ends everything at once. WithBudget makes
//     the budget smaller for what is called with it.
//   - T5: a body that breaks off goes on from where it broke off, pinned to the ETag
//     with which it began. A listing goes on behind the last key it yielded.
//   - T6: a conditional write whose answer was lost and that was repeated is
//     ErrPrecondition, as package objstore says: read back.
//
// Beside its adapter's errors a Store returns those of package objstore only, with a
// word on how long it was asked.
package retry
