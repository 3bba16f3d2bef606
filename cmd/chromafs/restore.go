package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"
)

type restoreOptions struct {
	store storeOptions
	local localOptions
	log   logOptions
	at    string
	skip  bool
}

func (o *restoreOptions) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.at, "at", "", "the `SNAPSHOT` or branch: its id, the beginning of it, or a time, which means the newest not after it (2026-11-24, \"2026-11-24 15:04\", RFC 3339, or 2h and 3d ago); by default the newest")
	o.store.AddFlags(flags)
	o.local.AddFlags(flags)
	flags.BoolVar(&o.skip, "skip-backup", false, "the same as --no-local-backup")
	o.log.AddFlags(flags)
}

func restoreCommand() command {
	return command{
		name:  "restore",
		args:  "DIR",
		short: "bring a snapshot back to a DIR that is not mounted",
		long: `The local copy that it replaces is kept in DIR/.chromafs/backups. After the
restore of an older snapshot the next mount serves that, and its next snapshot
publishes it as the newest.`,
		setup: func(flags *pflag.FlagSet) runner {
			var o restoreOptions
			o.AddFlags(flags)
			return func(ctx context.Context, e *env, args arguments) error { return runRestore(ctx, e, o, args) }
		},
	}
}

func runRestore(ctx context.Context, e *env, o restoreOptions, args arguments) error {
	words, err := args.take("restore", 1, 1)
	if err != nil {
		return err
	}
	o.local.noLocalBackup = o.local.noLocalBackup || o.skip
	if err := errors.Join(o.store.validate(), o.local.validate(), o.log.apply(e)); err != nil {
		return err
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	o.local.storeTimeout = commandStoreTimeout
	err = withLocal(ctx, e, words[0], "restore", &o.store, func(w workshop) error {
		r, err := w.restore(ctx, o.local, o.at)
		if err != nil {
			return fmt.Errorf("restore %s: %w", words[0], err)
		}
		return printRestored(e, w, r)
	})
	return interrupted(ctx, err)
}
