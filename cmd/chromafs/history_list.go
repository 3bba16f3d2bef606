package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/objstore/retry"
)

type historyListOptions struct {
	store storeOptions
	log   logOptions
	json  bool
}

func (o *historyListOptions) AddFlags(flags *pflag.FlagSet) {
	o.store.AddFlags(flags)
	flags.BoolVar(&o.json, "json", false, "print a JSON array")
	o.log.AddFlags(flags)
}

func historyListCommand() command {
	return command{
		name:  "history list",
		short: "list the snapshots in the store, oldest first, and the branches",
		long: `A branch is what a mount held that another one had taken the store over from.
It is no part of the history; chromafs restore --at ID brings it back. In JSON
the branches come first, so that the last element is the newest snapshot.`,
		setup: func(flags *pflag.FlagSet) runner {
			var o historyListOptions
			o.AddFlags(flags)
			return func(ctx context.Context, e *env, args arguments) error { return runHistoryList(ctx, e, o, args) }
		},
	}
}

// listedJSON is one element of what `history list --json` prints.
type listedJSON struct {
	ID          string    `json:"id"`
	Sequence    uint64    `json:"sequence"`
	Created     time.Time `json:"created"`
	Files       int       `json:"files"`
	Bytes       int64     `json:"bytes"`
	Consistency string    `json:"consistency"`
	Branch      bool      `json:"branch,omitempty"` // of a writer that was left behind, in no list
	Writer      string    `json:"writer,omitempty"` // with branch: which writer
	Error       string    `json:"error,omitempty"`  // its manifest cannot be read
}

func runHistoryList(ctx context.Context, e *env, o historyListOptions, args arguments) error {
	if _, err := args.take("history list", 0, 0); err != nil {
		return err
	}
	if err := o.log.apply(e); err != nil {
		return err
	}
	catalog, err := o.store.open(e, retry.Brief)
	if err != nil {
		return err
	}
	listed, err := catalog.List(ctx)
	if err != nil && !errors.Is(err, history.ErrNoBackup) {
		return err
	}
	branched, err := catalog.Branches(ctx)
	if err != nil {
		return err
	}
	branches, snapshots := shown(branched), shown(listed)
	if o.json {
		return printJSON(e, slices.Concat(branches, snapshots))
	}
	return printList(e, catalog.Store().String(), snapshots, branches)
}

func shown(listed []history.Listed) []listedJSON {
	all := make([]listedJSON, 0, len(listed))
	for _, l := range listed {
		one := listedJSON{
			ID: string(l.ID), Sequence: l.Sequence, Created: l.Created, Files: l.Files, Bytes: l.Bytes,
			Consistency: string(l.Consistency), Branch: l.ID.IsBranch(), Writer: l.ID.BranchOf(),
		}
		if l.Err != nil {
			one.Error = l.Err.Error()
		}
		all = append(all, one)
	}
	return all
}

func printList(e *env, store string, snapshots, branches []listedJSON) error {
	if len(snapshots) == 0 {
		if _, err := fmt.Fprintf(e.stdout, "No snapshots in %s.\n", store); err != nil {
			return err
		}
	} else if err := printTable(e, snapshots); err != nil {
		return err
	}
	if len(branches) == 0 {
		return nil
	}
	fmt.Fprintln(e.stdout, "\nBranches, of writers that another one had taken over from; chromafs restore --at ID brings one back:")
	return printTable(e, branches)
}

func printTable(e *env, all []listedJSON) error {
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSEQUENCE\tAGE\tFILES\tSIZE\tCONSISTENCY")
	for _, l := range all {
		if l.Error != "" {
			fmt.Fprintf(w, "%s\t%d\tits manifest cannot be read: %s\n", l.ID, l.Sequence, l.Error)
			continue
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s\t%s\n", l.ID, l.Sequence, age(e.now().Sub(l.Created)), l.Files, size(l.Bytes), l.Consistency)
	}
	return w.Flush()
}

// printJSON prints one value on lines of its own.
func printJSON(e *env, value any) error {
	enc := json.NewEncoder(e.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(value)
}

// age returns a duration as people read it: with its two biggest units.
func age(d time.Duration) string {
	d = max(d, 0).Round(time.Second)
	days, d := d/(24*time.Hour), d%(24*time.Hour)
	hours, minutes, seconds := d/time.Hour, d%time.Hour/time.Minute, d%time.Minute/time.Second
	switch {
	case days > 0:
		return fmt.Sprintf("%dd %dh", days, hours)
	case hours > 0:
		return fmt.Sprintf("%dh %dm", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%dm %ds", minutes, seconds)
	}
	return fmt.Sprintf("%ds", seconds)
}
