package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/control"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/journal"
)

type statusOptions struct {
	json, check bool
	log         logOptions
}

func (o *statusOptions) AddFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&o.json, "json", false, "print a JSON object")
	flags.BoolVar(&o.check, "check", false, "exit with 1 if it is not mounted, a snapshot is overdue or the last one failed")
	o.log.AddFlags(flags)
}

func statusCommand() command {
	return command{
		name:  "status",
		args:  "DIR|MOUNTPOINT",
		short: "show a mount: its last snapshot, what is not stored yet, what went wrong",
		setup: func(flags *pflag.FlagSet) runner {
			var o statusOptions
			o.AddFlags(flags)
			return func(ctx context.Context, e *env, args arguments) error { return runStatus(ctx, e, o, args) }
		},
	}
}

func runStatus(ctx context.Context, e *env, o statusOptions, args arguments) error {
	words, err := args.take("status", 1, 1)
	if err != nil {
		return err
	}
	if err := o.log.apply(e); err != nil {
		return err
	}
	st, err := findStatus(ctx, e, words[0])
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	if o.json {
		err = printJSON(e, st)
	} else {
		err = printStatus(e, st)
	}
	if err != nil || !o.check {
		return err
	}
	if trouble := troubles(e, st); len(trouble) > 0 {
		return exitcode.New(exitcode.Failed, fmt.Errorf("check %s: %s", st.Dir, strings.Join(trouble, "; ")), "")
	}
	return nil
}

// findStatus asks the mount, or looks at DIR itself where there is none.
func findStatus(ctx context.Context, e *env, path string) (control.Status, error) {
	client, target, err := connect(ctx, e, path)
	if err == nil {
		defer client.Close()
		return client.Status(ctx)
	}
	if !errors.Is(err, control.ErrNotRunning) || target.OnMount {
		return control.Status{}, err
	}
	return statusOfDir(e, path)
}

// statusOfDir reads a DIR that nobody serves, and makes nothing there.
func statusOfDir(e *env, path string) (st control.Status, err error) {
	dir, err := datadir.OpenReadOnly(path)
	if err != nil {
		return control.Status{}, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	free, err := dir.Free()
	if err != nil {
		return control.Status{}, err
	}
	st = control.Status{Dir: dir.Path(), FreeBytes: free}
	if dir.State() == nil {
		return st, nil // never mounted
	}
	if holder, err := dir.Holder(); err != nil {
		return st, err
	} else if holder != nil {
		return st, holder // it starts, ends, or is stuck
	}
	pending, err := history.Unfinished(dir)
	if err != nil {
		return st, err
	}
	if known, err := hasJournal(dir); err != nil {
		return st, err
	} else if known {
		j, err := journal.Open(dir.State(), journal.Options{Now: e.now, Log: e.log})
		if err != nil {
			return st, fmt.Errorf("in %s: %w", path, err)
		}
		st = localStatus(dir.Path(), j)
		st.FreeBytes = free
		if err := j.Close(); err != nil {
			return st, err
		}
	}
	if pending != nil {
		st.UnfinishedRestore = string(pending.ID)
	}
	return st, nil
}

// troubles lists what --check exits with 1 for.
func troubles(e *env, st control.Status) []string {
	var all []string
	for _, t := range []struct {
		is   bool
		what string
	}{
		{!st.Mounted, "not mounted"},
		{st.Fenced, "another writer has taken the store over; " + describeBranch(st.Branch, e.now())},
		{st.Yielded && !st.Fenced, "the store was handed over to another mount; " + describeBranch(st.Branch, e.now())},
		{st.LastError != "" && st.FailingSince != nil, "the last snapshot failed: " + st.LastError},
		{st.LastError != "" && st.FailingSince == nil, "the last snapshot is stored, but not all of what follows: " + st.LastError},
		{st.Overdue, "a snapshot is overdue"},
	} {
		if t.is {
			all = append(all, t.what)
		}
	}
	return all
}

func printStatus(e *env, st control.Status) error {
	now := e.now()
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s:\t%s\n", name, fmt.Sprintf(format, args...))
	}
	line("directory", "%s", st.Dir)
	if st.Mounted {
		line("mount", "%s (pid %d, %s%s)", st.Mountpoint, st.PID, st.Version, suffix(!st.Writeback, ", without write caching"))
		line("store", "%s%s", st.Store, suffix(st.Offline, " (not reached yet)"))
		if st.SingleWriter {
			line("SINGLE WRITER", "the store does no conditional writes: nothing keeps a second mount from publishing over this one")
		}
		for _, lacking := range st.StoreLacks {
			line("store lacks", "%s", lacking)
		}
	} else if st.Lineage == "" && !st.Dirty && st.UnfinishedRestore == "" {
		line("mount", "not mounted, and nothing of chromafs is known here: if this was a MOUNTPOINT, ask for its DIR")
		return w.Flush()
	} else {
		line("mount", "not mounted")
	}
	if st.Lineage != "" {
		line("lineage", "%s, sequence %d", st.Lineage, st.Sequence)
	}
	line("last snapshot", "%s", describeLast(st.Last, now))
	line("not stored yet", "%s", describeDirty(st, now))
	switch {
	case st.Snapshotting:
		line("next snapshot", "under way")
	case st.NextDue != nil:
		line("next snapshot", "%s", describeDue(st, now))
	}
	if st.UnfinishedRestore != "" {
		line("unfinished", "the restore of %s; the next mount goes on with it", st.UnfinishedRestore)
	}
	if st.Lease != nil {
		line("lease", "%s", describeLease(*st.Lease, now))
	}
	if st.Fenced {
		line("fenced", "another writer has taken the store over; %s", describeBranch(st.Branch, now))
	}
	if st.LastError != "" {
		since := ""
		if st.FailingSince != nil {
			since = fmt.Sprintf(" (failing for %s)", age(now.Sub(*st.FailingSince)))
		}
		line("last error", "%s%s", st.LastError, since)
	}
	if st.ScratchLimit > 0 {
		line("scratch", "%s of at most %s, for the snapshot that is being read", size(st.ScratchBytes), size(st.ScratchLimit))
	}
	line("free space", "%s", size(int64(st.FreeBytes)))
	return w.Flush()
}

func describeBranch(b *control.Branch, now time.Time) string {
	if b == nil {
		return "what is written here goes to no list of snapshots, and none of it is stored yet"
	}
	return fmt.Sprintf("what is written here goes to no list of snapshots, but to branches: %s, %s ago, %s, %s",
		b.ID, age(now.Sub(b.Created)), count(b.Files, "file"), size(b.Bytes))
}

func suffix(is bool, text string) string {
	if is {
		return text
	}
	return ""
}

func describeLast(last *control.LastSnapshot, now time.Time) string {
	if last == nil {
		return "none"
	}
	text := fmt.Sprintf("%s, %s ago", last.ID, age(now.Sub(last.Created)))
	if last.Consistency != "" {
		text += fmt.Sprintf(", %s, %s, %s", count(last.Files, "file"), size(last.Bytes), last.Consistency)
	}
	return text
}

func describeDirty(st control.Status, now time.Time) string {
	if !st.Dirty {
		return "nothing"
	}
	text := count(st.DirtyPaths, "path")
	if st.AllDirty {
		text = "everything"
	}
	if st.DirtySince != nil {
		text += fmt.Sprintf(", changed since %s ago", age(now.Sub(*st.DirtySince)))
	}
	return text
}

func describeLease(l control.Lease, now time.Time) string {
	var text string
	switch l.State {
	case "lost":
		text = "lost to " + orAnother(l.Holder)
	case "yielding":
		text = "yielding to " + orAnother(l.Waiter)
	case "yielded":
		text = "yielded to " + orAnother(l.Waiter)
	default:
		text = fmt.Sprintf("%s by this mount", l.State)
	}
	return fmt.Sprintf("%s for %s (epoch %d)", text, age(now.Sub(l.Since)), l.Epoch)
}

func orAnother(party string) string {
	if party == "" {
		return "another mount"
	}
	return party
}

func describeDue(st control.Status, now time.Time) string {
	switch wait := st.NextDue.Sub(now); {
	case st.Overdue:
		return fmt.Sprintf("overdue for %s", age(-wait))
	case wait <= 0:
		return "at the next quiet moment"
	default:
		return fmt.Sprintf("in %s", age(wait))
	}
}
