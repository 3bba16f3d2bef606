package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore/retry"
)

type historyVerifyOptions struct {
	store storeOptions
	log   logOptions
}

func (o *historyVerifyOptions) AddFlags(flags *pflag.FlagSet) {
	o.store.AddFlags(flags)
	o.log.AddFlags(flags)
}

func historyVerifyCommand() command {
	return command{
		name:  "history verify",
		args:  "[ID]",
		short: "read a snapshot (the newest) back and check every byte",
		setup: func(flags *pflag.FlagSet) runner {
			var o historyVerifyOptions
			o.AddFlags(flags)
			return func(ctx context.Context, e *env, args arguments) error { return runHistoryVerify(ctx, e, o, args) }
		},
	}
}

func runHistoryVerify(ctx context.Context, e *env, o historyVerifyOptions, args arguments) error {
	words, err := args.take("history verify", 0, 1)
	if err != nil {
		return err
	}
	if err := o.log.apply(e); err != nil {
		return err
	}
	catalog, err := o.store.open(e, retry.Patient)
	if err != nil {
		return err
	}
	id, err := catalog.Resolve(ctx, first(words))
	if err != nil {
		return err
	}
	r, err := catalog.Verify(ctx, id)
	if err != nil {
		return fmt.Errorf("verify %s: %w", id, err)
	}
	if len(r.Damaged) > 0 {
		errs := make([]error, len(r.Damaged))
		for i, d := range r.Damaged {
			errs[i] = d
		}
		return exitcode.New(exitcode.Integrity,
			fmt.Errorf("snapshot %s in %s: %s damaged: %w", id, catalog.Store(), count(len(r.Damaged), "file"), errors.Join(errs...)),
			"check the others (chromafs history list, chromafs history verify ID); a mount that still has the data makes a whole new one: chromafs snapshot DIR")
	}
	_, err = fmt.Fprintf(e.stdout, "Snapshot %s is whole: %s, %s.\n", id, count(r.Files, "file"), size(r.Bytes))
	return err
}

// first returns the first word, "" where there is none.
func first(words []string) string {
	if len(words) == 0 {
		return ""
	}
	return words[0]
}
