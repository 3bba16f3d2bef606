package main

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/internal/objstore/retry"
)

type historyAdoptOptions struct {
	store storeOptions
	log   logOptions
}

func (o *historyAdoptOptions) AddFlags(flags *pflag.FlagSet) {
	o.store.AddFlags(flags)
	o.store.AddWriteFlags(flags)
	o.log.AddFlags(flags)
}

func historyAdoptCommand() command {
	return command{
		name:  "history adopt",
		args:  "ID",
		short: "make a whole snapshot the newest again after manifest.json was lost",
		setup: func(flags *pflag.FlagSet) runner {
			var o historyAdoptOptions
			o.AddFlags(flags)
			return func(ctx context.Context, e *env, args arguments) error { return runHistoryAdopt(ctx, e, o, args) }
		},
	}
}

func runHistoryAdopt(ctx context.Context, e *env, o historyAdoptOptions, args arguments) error {
	words, err := args.take("history adopt", 1, 1)
	if err != nil {
		return err
	}
	if err := o.log.apply(e); err != nil {
		return err
	}
	catalog, known, err := o.store.openToWrite(e, nil, retry.Brief)
	if err != nil {
		return err
	}
	choice, err := catalog.ResolveAdoptable(ctx, words[0], e.now())
	if err != nil {
		return err
	}
	if err := announce(e, words[0], choice); err != nil {
		return err
	}
	id := choice.ID
	if err := known.ready(ctx); err != nil {
		return err
	}
	head, err := catalog.Adopt(ctx, id)
	if err != nil {
		return fmt.Errorf("adopt %s: %w", id, err)
	}
	_, err = fmt.Fprintf(e.stdout, "manifest.json of %s is there again; %s is the newest of %s.\n",
		catalog.Store(), id, count(len(head.History), "snapshot"))
	return err
}
