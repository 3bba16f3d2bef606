package main

import (
	"context"
	"os"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/control"
	"github.com/chromafs/chromafs/internal/objstore/retry"
	"github.com/chromafs/chromafs/journal"
	"github.com/chromafs/chromafs/uploader"
)

// handler answers the control socket of a session.
type handler struct{ s *session }

// snapshotPatience is how long a store that does not answer is asked while a person
// waits for a snapshot. What was stored by then need not be sent again.
const snapshotPatience = 30 * time.Second

// Snapshot implements control.Handler.
func (h handler) Snapshot(ctx context.Context) (control.Snapshot, error) {
	r, err := h.s.uploader.Snapshot(retry.WithBudget(ctx, snapshotPatience))
	if err != nil {
		return control.Snapshot{}, err
	}
	return snapshotOf(r), nil
}

// Unmount implements control.Handler.
func (h handler) Unmount(ctx context.Context) error {
	h.s.askedOnce.Do(func() { close(h.s.asked) })
	select {
	case <-h.s.gone:
		return h.s.result
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Status implements control.Handler.
func (h handler) Status(context.Context) (control.Status, error) {
	s := h.s
	free, err := s.local.dir.Free()
	if err != nil {
		return control.Status{}, err
	}
	now, up, info := s.env.now(), s.uploader.Status(), s.fs.Info()
	st := localStatus(s.local.dir.Path(), s.local.journal)
	st.Mounted, st.Mountpoint, st.PID, st.Version = true, s.place.mountpoint, os.Getpid(), version()
	st.Writeback, st.FreeBytes = info.Writeback, free
	st.Store, st.Offline = s.catalog.Store().String(), s.origin.Offline && up.Last == nil
	lacks, _ := s.known.adapted.Lacks()
	st.SingleWriter, st.StoreLacks = lacks.Conditions() != "", describeLacks(s.known.adapted)
	if up.Last != nil && string(up.Last.ID) != "" {
		st.Last = &control.LastSnapshot{ID: string(up.Last.ID), Created: up.Last.Created, Files: up.Last.Files,
			Bytes: up.Last.Bytes, Consistency: up.Last.Consistency}
	}
	if b := up.Branch; b != nil {
		st.Branch = &control.Branch{ID: string(b.ID), Created: b.Created, Files: b.Files, Bytes: b.Bytes}
	}
	st.NextDue, st.FailingSince = optional(up.NextDue), optional(up.FailingSince)
	st.LastError, st.Fenced, st.Snapshotting = up.LastError, up.Fenced, up.Running
	st.Yielded, st.Lease = up.Yielded, s.handover.status()
	cuts := s.fs.CutStats()
	st.Cuts = &control.Cuts{Count: cuts.Cuts, Abandoned: cuts.Abandoned, LastWaitUS: cuts.LastWait.Microseconds(),
		LongestHoldUS: cuts.LongestHold.Microseconds(), LongestWaitUS: cuts.LongestWait.Microseconds()}
	st.ScratchBytes, st.ScratchLimit = s.fs.Scratch()
	st.Overdue = overdue(up, s.options.upload, now)
	return st, nil
}

// overdue reports whether a snapshot should have been begun by now: it was due, the
// time to wait for a quiet moment has passed too, and a minute more.
func overdue(up uploader.Status, o uploadOptions, now time.Time) bool {
	if up.NextDue.IsZero() || up.Running {
		return false
	}
	// What was written is not older than the oldest mark.
	due := up.NextDue
	if up.DirtySince.After(due) {
		due = up.DirtySince
	}
	return now.After(due.Add(o.interval/10 + min(o.interval, time.Minute)))
}

// localStatus is what the journal of a DIR says.
func localStatus(path string, j *journal.Journal) control.Status {
	state, dirty := j.State(), j.Dirty()
	st := control.Status{
		Dir: path, Lineage: state.Lineage, Sequence: state.Sequence,
		Dirty: !dirty.Empty(), DirtySince: optional(dirty.Since), DirtyPaths: len(dirty.Marks), AllDirty: dirty.All,
	}
	if state.ID != "" {
		st.Last = &control.LastSnapshot{ID: state.ID, Created: history.ID(state.ID).Time()}
	}
	return st
}

func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// snapshotOf is what people and scripts get to see of a snapshot.
func snapshotOf(r uploader.Result) control.Snapshot {
	return control.Snapshot{
		ID: string(r.ID), Sequence: r.Sequence, Created: r.Created, Consistency: r.Consistency,
		Files: r.Files, Bytes: r.Bytes, BytesUploaded: r.BytesUploaded, Removed: r.Removed,
		DurationMS: r.Duration.Milliseconds(),
	}
}
