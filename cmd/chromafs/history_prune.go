package main

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/objstore/retry"
)

type historyPruneOptions struct {
	store storeOptions
	log   logOptions

	branches, yes bool
}

func (o *historyPruneOptions) AddFlags(flags *pflag.FlagSet) {
	o.store.AddFlags(flags)
	flags.BoolVar(&o.branches, "branches", false, "remove every branch too, of any age")
	flags.BoolVar(&o.yes, "yes", false, "do not ask (with --branches)")
	o.log.AddFlags(flags)
}

func historyPruneCommand() command {
	return command{
		name:  "history prune",
		short: "remove what crashed writers left in the store",
		long: `Removes objects of snapshots that were never published, of branches that were
never completed and uploads that were never finished, once they are a day old.
Listed snapshots stay, and so do branches, which hold what is in no snapshot,
unless --branches is given: it shows them and asks before it removes them all.`,
		setup: func(flags *pflag.FlagSet) runner {
			var o historyPruneOptions
			o.AddFlags(flags)
			return func(ctx context.Context, e *env, args arguments) error { return runHistoryPrune(ctx, e, o, args) }
		},
	}
}

func runHistoryPrune(ctx context.Context, e *env, o historyPruneOptions, args arguments) error {
	if _, err := args.take("history prune", 0, 0); err != nil {
		return err
	}
	if err := o.log.apply(e); err != nil {
		return err
	}
	catalog, err := o.store.open(e, retry.Brief)
	if err != nil {
		return err
	}
	r, err := catalog.Prune(ctx, e.now(), history.DefaultPruneAge)
	if err != nil {
		return fmt.Errorf("prune the history: %w", err)
	}
	e.log.Info("history pruned", keyStore, catalog.Store().String(), keyRemoved, len(r.Removed), keyBytes, r.Bytes)
	fmt.Fprintf(e.stdout, "Removed %s (%s) and %s from %s.\n",
		count(len(r.Removed), "unpublished snapshot"), size(r.Bytes), count(r.Uploads, "unfinished upload"), catalog.Store())
	if r.Probes > 0 {
		fmt.Fprintf(e.stdout, "Removed %s that a killed chromafs had tried the store with.\n", count(r.Probes, "object"))
	}
	if r.Blind != nil {
		fmt.Fprintf(e.stdout, "Unfinished uploads cannot be looked for, or removed: %v\n"+
			"  Grant s3:ListBucketMultipartUploads and s3:AbortMultipartUpload, or let a rule of the bucket abort incomplete uploads.\n", r.Blind)
	}
	if n := len(r.Spared); n > 0 {
		fmt.Fprintf(e.stdout, "Left alone, being younger than %s: %s.\n", age(history.DefaultPruneAge), count(n, "unpublished snapshot"))
	}
	if !o.branches {
		for _, id := range r.Branches {
			fmt.Fprintf(e.stdout, "Left alone, a branch: %s\n", id)
		}
	}
	for _, name := range r.Unknown {
		fmt.Fprintf(e.stdout, "Left alone, not made by chromafs: history/%s\n", name)
	}
	if o.branches {
		return pruneBranches(ctx, e, o, catalog)
	}
	return nil
}

// pruneBranches removes all branches that it has shown, and no other.
func pruneBranches(ctx context.Context, e *env, o historyPruneOptions, catalog *history.Catalog) error {
	branches, err := catalog.Branches(ctx)
	if err != nil {
		return err
	}
	if len(branches) == 0 {
		_, err := fmt.Fprintf(e.stdout, "No branches in %s.\n", catalog.Store())
		return err
	}
	if err := printTable(e, shown(branches)); err != nil {
		return err
	}
	if !o.yes {
		question := fmt.Sprintf("Remove %s from %s? What they hold may be in no snapshot. [y/N] ", count(len(branches), "branch"), catalog.Store())
		if err := confirm(e, question); err != nil {
			return err
		}
	}
	for i, b := range branches {
		if err := catalog.Remove(ctx, b.ID); err != nil {
			return fmt.Errorf("prune the branches after %s: %w", count(i, "removal"), err)
		}
	}
	e.log.Info("branches pruned", keyStore, catalog.Store().String(), keyRemoved, len(branches))
	_, err = fmt.Fprintf(e.stdout, "Removed %s from %s.\n", count(len(branches), "branch"), catalog.Store())
	return err
}
