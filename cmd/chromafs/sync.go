package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"
)

type syncOptions struct {
	store  storeOptions
	local  localOptions
	upload uploadOptions
	log    logOptions
}

func (o *syncOptions) AddFlags(flags *pflag.FlagSet) {
	o.store.AddFlags(flags)
	o.store.AddWriteFlags(flags)
	o.upload.AddFlags(flags)
	o.local.AddFlags(flags)
	flags.BoolVar(&o.local.preferLocal, "prefer-local", false, "where it is not known which side is newer, keep the local copy and not the store's")
	o.log.AddFlags(flags)
}

func syncCommand() command {
	return command{
		name:  "sync",
		args:  "DIR",
		short: "bring a DIR that is not mounted and the store to the same state",
		long: `Restores where the store is newer, takes a snapshot where the local copy is, as
a mount would, and refuses where it would.`,
		setup: func(flags *pflag.FlagSet) runner {
			var o syncOptions
			o.AddFlags(flags)
			return func(ctx context.Context, e *env, args arguments) error { return runSync(ctx, e, o, args) }
		},
	}
}

func runSync(ctx context.Context, e *env, o syncOptions, args arguments) error {
	words, err := args.take("sync", 1, 1)
	if err != nil {
		return err
	}
	if err := errors.Join(o.store.validate(), o.upload.validate(), o.local.validate(), o.log.apply(e)); err != nil {
		return err
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	o.local.storeTimeout = commandStoreTimeout
	err = withLocal(ctx, e, words[0], "sync", &o.store, func(w workshop) error {
		decided, snap, err := w.snapshot(ctx, o.upload, o.local, true)
		if err != nil {
			return fmt.Errorf("sync %s: %w", words[0], err)
		}
		if decided.Restored != nil {
			return printRestored(e, w, decided)
		}
		return printSnapshot(e, snapshotOf(snap))
	})
	return interrupted(ctx, err)
}
