package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/retry"
	"github.com/chromafs/chromafs/journal"
	"github.com/chromafs/chromafs/uploader"
)

// Env is what Run and RestoreAt work on.
type Env struct {
	Dir     *datadir.Dir // locked, not mounted
	Journal *journal.Journal
	Catalog *history.Catalog
	Flags   Flags
	Backups int // how many replaced local copies are kept

	// Takeover makes this process the writer, as a mount has to be before it serves;
	// (*uploader.Uploader).Takeover fits. nil for commands: an uploader that has not
	// taken over does when it has something to publish, and looking fences nobody.
	Takeover func(ctx context.Context, head history.Head, etag string) (history.Head, error)
	// Branch stores DIR as it lies there as a branch and returns its id, "" where the
	// journal's base is all that it holds; (*uploader.Uploader).Branch of a view of DIR
	// fits. nil: no branch can be stored.
	Branch func(ctx context.Context) (history.ID, error)
	// HandOver waits until whoever holds the store by that head has handed it over, or
	// need not be waited for, and reports whether it has waited: then the store is read
	// again. It is called before Takeover, once per holder. nil: nobody is asked.
	HandOver func(ctx context.Context, head history.Head) (waited bool, err error)
	// LocalOnly refuses what would replace the local copy (an offline snapshot).
	LocalOnly bool

	StoreTimeout time.Duration // how long an unavailable store is asked again
	Now          func() time.Time
	Log          *slog.Logger
}

// Result says what was decided and done.
type Result struct {
	Decision
	Head     history.Head           // as taken over or read; zero where the store did not answer
	Offline  bool                   // the local copy is served without the store
	Restored *history.RestoreResult // nil: nothing was restored
	Branch   history.ID             // holds what was local; "" for none
	Snapshot history.ID             // that DIR is based on now; "" for none
}

// Run brings DIR to where DESIGN §7 wants it, having taken the store over first
// where Env says how. On a *Refusal neither DIR nor the store was touched. Where a
// snapshot is damaged the error names an older one that looks whole.
func Run(ctx context.Context, e Env) (Result, error) {
	r := &runner{Env: e}
	res, err := r.run(ctx)
	return res, e.Catalog.OfferOlder(ctx, err)
}

func (r *runner) run(ctx context.Context) (Result, error) {
	if err := r.begin(ctx); err != nil {
		return Result{}, err
	}
	taken := r.Takeover == nil
	for {
		d, local, err := r.decide(ctx)
		if err != nil {
			return Result{}, err
		}
		if d.Action == Refuse || r.LocalOnly && d.Action.Restores() {
			return Result{Decision: d}, r.refusal(d, local)
		}
		if d.Action == Fork {
			if err := r.fork(ctx, d, local); err != nil {
				return Result{Decision: d}, err
			}
		}
		if !taken && d.Action != ServeOffline {
			if taken, err = r.becomeWriter(ctx); err != nil {
				return Result{}, err
			}
			continue
		}
		r.Log.Info("decided", "row", d.Row, "action", d.Action.String(), "local", local.describe(), "store", r.store.describe())
		restored, err := r.carryOut(ctx, d)
		if errors.Is(err, history.ErrGone) {
			if err := r.newestMoved(ctx, err); err != nil {
				return Result{}, err
			}
			continue
		}
		if err != nil {
			return Result{}, err
		}
		if restored == nil && d.Action != ServeOffline { // what an interrupted restore fetched will not be asked for
			if err := history.DiscardPartial(r.Dir); err != nil {
				return Result{}, err
			}
		}
		return r.result(d, restored), nil
	}
}

// runner is one run: what is known of the store, and what was found out once.
type runner struct {
	Env
	head    history.Head
	etag    string
	store   Store
	scanned bool
	content *comparison  // with the newest snapshot; nil: not compared
	asked   *holder      // who was asked to hand over last; nil: nobody
	was     string       // the lineage that the journal knew before this run
	aside   []history.ID // branches in a store where nothing was published
	forked  bool         // it was tried to store DIR as a branch
	branch  history.ID   // "" where that failed, or there was no need to
	saved   bool         // nothing is lost with DIR: the store has it, as a branch or otherwise
}

// holder is the writer that a head names.
type holder struct {
	writer string
	epoch  uint64
}

// begin reads the store, and forgets what a restore was asked for that never began.
func (r *runner) begin(ctx context.Context) error {
	r.was = r.Journal.State().Lineage
	unfinished, err := history.Unfinished(r.Dir)
	if err != nil {
		return err
	}
	if unfinished == nil {
		if err := r.dropGoal(); err != nil {
			return err
		}
	}
	return r.readStore(ctx)
}

func (r *runner) result(d Decision, restored *history.RestoreResult) Result {
	return Result{Decision: d, Head: r.head, Offline: d.Action == ServeOffline, Restored: restored, Branch: r.branch,
		Snapshot: history.ID(r.Journal.State().ID)}
}

func (r *runner) refusal(d Decision, l Local) *Refusal {
	return &Refusal{Decision: d, Dir: r.Dir.Path(), Address: r.Catalog.Store().String(), Local: l, Store: r.store, Flags: r.Flags}
}

// decide reads the table until it asks for something final, and prepares what it
// asks for before that. Preparing changes the journal, and ends a restore that has
// begun; it changes nothing in the store.
func (r *runner) decide(ctx context.Context) (Decision, Local, error) {
	asking := retry.WithBudget(ctx, r.StoreTimeout) // a restore that has begun is more patient
	for {
		local, err := r.local()
		if err != nil {
			return Decision{}, local, err
		}
		d := Decide(local, r.store, r.Flags)
		switch {
		case d.Action == FinishRestore:
			err = r.finishRestore(ctx)
		case d.Action == FinishIntent:
			r.Log.Info("a snapshot was published before a crash: acknowledging it", "id", local.Intent)
			_, err = uploader.CompleteIntent(asking, r.Catalog, r.Journal, r.head)
		case d.Action == Compare:
			r.content, err = r.compare(asking)
		case !r.scanned && local.Published && !local.Empty && !local.Unfinished && d.Row.needsScan():
			err = r.scan(ctx)
		default:
			return d, local, nil
		}
		if err != nil {
			return Decision{}, local, err
		}
	}
}

// needsScan reports whether a row rests on what changed behind the journal's back
// (J4), or serves a local copy that may have.
func (row Row) needsScan() bool {
	switch row {
	case RowCurrent, RowDirty, RowOlder, RowDiverged, RowUnavailable, RowRefused:
		return true
	}
	return false
}

func (r *runner) scan(ctx context.Context) error {
	if (r.store.Kind == Unavailable || r.store.Kind == Refused) && !r.Flags.Offline {
		r.scanned = true // it is refused whatever a scan would find
		return nil
	}
	start := r.Now()
	report, err := r.Journal.Scan(ctx, r.Dir.Root())
	if err != nil {
		return err
	}
	r.scanned = true
	r.Log.Info("looked for changes made while nobody was watching", "entries", report.Checked,
		"hashed", report.Hashed, "changed", report.Changed, "duration", r.Now().Sub(start))
	return nil
}

// local reads what is known of the local copy.
func (r *runner) local() (Local, error) {
	empty, err := r.Dir.Empty()
	if err != nil {
		return Local{}, err
	}
	unfinished, err := history.Unfinished(r.Dir)
	if err != nil {
		return Local{}, err
	}
	s := r.Journal.State()
	l := Local{Empty: empty, Fresh: s.Fresh, Published: s.Published, Dirty: !r.Journal.Dirty().Empty(), Unfinished: unfinished != nil,
		Lineage: s.Lineage, Sequence: s.Sequence, BaseID: s.ID}
	if !s.Published { // a takeover of this run says nothing of what was there before
		l.Lineage = r.was
	}
	if s.Intent != nil {
		l.Intent = s.Intent.ID
	}
	if r.content != nil && r.content.with == r.store.Newest {
		l.Content = r.content.result()
	}
	return l, nil
}

// becomeWriter takes the store over, having asked its holder. Where that took time,
// and where somebody else was faster, the store was read again, and the caller decides
// again: with another holder in it, that one is asked.
func (r *runner) becomeWriter(ctx context.Context) (taken bool, err error) {
	now := holder{r.head.Writer, r.head.Epoch}
	if r.HandOver != nil && (r.asked == nil || *r.asked != now) {
		r.asked = &now
		waited, err := r.HandOver(ctx, r.head)
		if err != nil {
			return false, err
		}
		if waited {
			return false, r.readStore(ctx)
		}
	}
	return r.takeover(ctx)
}

// takeover makes this process the writer, trying for StoreTimeout while the store
// is unavailable. Where another one was faster the store is read again; where it
// does not answer, or refuses, that is what is known of it. The caller decides
// again either way.
func (r *runner) takeover(ctx context.Context) (bool, error) {
	timed, cancel := r.timed(ctx)
	defer cancel()
	for wait := firstRetry; ; wait = min(2*wait, maxRetry) {
		head, err := r.Takeover(timed, r.head, r.etag)
		if err == nil {
			r.head, r.store = head, storeOf(head)
			return true, nil
		}
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		err = r.noAnswer(timed, err)
		switch {
		case errors.Is(err, history.ErrFenced), errors.Is(err, history.ErrStale):
			r.Log.Info("another writer came between reading the store and taking it over: deciding again", "error", err)
			return false, r.readStore(ctx)
		case errors.Is(err, objstore.ErrUnavailable):
			r.Log.Warn("the store is unavailable", "error", err, "asked_again_for", r.StoreTimeout)
		case errors.Is(err, objstore.ErrRefused):
			r.head, r.etag, r.store = history.Head{}, "", r.answer(err)
			return false, nil
		default:
			return false, err
		}
		if !r.again(timed, wait) {
			r.head, r.etag, r.store = history.Head{}, "", r.answer(err)
			return false, objstore.Ended(ctx)
		}
	}
}

// newestMoved reads the store again after the snapshot to be restored was rotated
// away (H2). That it is still the newest one is damage, not rotation.
func (r *runner) newestMoved(ctx context.Context, gone error) error {
	was := r.store.Newest
	r.Log.Info("the snapshot was rotated away meanwhile: starting again from the newest", "id", was)
	if err := r.readStore(ctx); err != nil {
		return err
	}
	if r.store.Kind == Snapshots && r.store.Newest == was {
		return gone
	}
	return nil
}

// Backoff while the store is unavailable.
const (
	firstRetry = 500 * time.Millisecond
	maxRetry   = 10 * time.Second
)

// errNoAnswer is why a question that took all of StoreTimeout ended.
var errNoAnswer = errors.New("no answer in time")

// timed returns the context of a question that may take StoreTimeout in all, each
// request of it asked once: who asks, asks again by itself. Where StoreTimeout is 0
// it is asked once and without a limit.
func (r *runner) timed(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx = retry.WithBudget(ctx, 0)
	if r.StoreTimeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, r.StoreTimeout, errNoAnswer)
}

// noAnswer makes the error of a question whose time was up one of a store that is
// unavailable.
func (r *runner) noAnswer(timed context.Context, err error) error {
	if timed.Err() == nil || err == nil || objstore.KindOf(err) != nil {
		return err
	}
	return &objstore.Error{Op: "ask", Store: r.Catalog.Store().String(), Kind: objstore.ErrUnavailable, Err: context.Cause(timed)}
}

// again waits and reports whether there is time for another question.
func (r *runner) again(timed context.Context, wait time.Duration) bool {
	if r.StoreTimeout <= 0 {
		return false
	}
	select {
	case <-timed.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// readStore asks what the store holds, again and again while it is unavailable,
// for StoreTimeout; once where that is 0. It fails only when ctx ends: everything
// else is an answer.
func (r *runner) readStore(ctx context.Context) error {
	timed, cancel := r.timed(ctx)
	defer cancel()
	for wait := firstRetry; ; wait = min(2*wait, maxRetry) {
		var err error
		r.head, r.etag, err = r.Catalog.Head(timed)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err = r.noAnswer(timed, err)
		r.store = r.answer(err)
		if r.store.Kind != Unavailable {
			return nil
		}
		r.Log.Warn("the store is unavailable", "error", err, "asked_again_for", r.StoreTimeout)
		if !r.again(timed, wait) {
			return objstore.Ended(ctx)
		}
	}
}

// answer classifies what Head returned.
func (r *runner) answer(err error) Store {
	var empty *history.NoBackupError
	switch {
	case err == nil:
		return storeOf(r.head)
	case errors.As(err, &empty):
		r.aside = empty.Branches
		return Store{Kind: NoBackup, Lineage: r.head.Lineage, Unpublished: string(empty.Unpublished)}
	case errors.Is(err, history.ErrHeadLost):
		return Store{Kind: HeadLost, Err: err}
	case errors.Is(err, objstore.ErrUnavailable):
		return Store{Kind: Unavailable, Err: err}
	}
	return Store{Kind: Refused, Err: err}
}

func storeOf(h history.Head) Store {
	s := Store{Kind: NoBackup, Lineage: h.Lineage}
	if h.Newest == nil {
		return s
	}
	s.Kind, s.Sequence, s.Newest = Snapshots, h.Sequence, string(h.Newest.ID)
	for _, id := range h.History {
		s.History = append(s.History, string(id))
	}
	return s
}
