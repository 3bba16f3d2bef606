package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore/retry"
)

type historyVerifyOptions struct {
	store storeOptions
	log   logOptions
	all   bool
}

func (o *historyVerifyOptions) AddFlags(flags *pflag.FlagSet) {
	o.store.AddFlags(flags)
	flags.BoolVar(&o.all, "all", false, "check every snapshot that is listed, the newest first")
	o.log.AddFlags(flags)
}

func historyVerifyCommand() command {
	return command{
		name:  "history verify",
		args:  "[SNAPSHOT]",
		short: "read a snapshot (the newest) back and check every byte",
		long:  "SNAPSHOT is what restore --at takes: an id, the beginning of one, or a time.",
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
	if o.all && len(words) > 0 {
		return usageError("history verify: --all, or one SNAPSHOT")
	}
	if err := o.log.apply(e); err != nil {
		return err
	}
	catalog, err := o.store.open(e, retry.Patient)
	if err != nil {
		return err
	}
	if o.all {
		return verifyAll(ctx, e, catalog)
	}
	choice, err := catalog.Resolve(ctx, first(words), e.now())
	if err != nil {
		return err
	}
	if err := announce(e, first(words), choice); err != nil {
		return err
	}
	return verifyOne(ctx, e, catalog, choice.ID)
}

// verifyAll goes on after a damaged snapshot: which ones are whole is the question.
func verifyAll(ctx context.Context, e *env, catalog *history.Catalog) error {
	head, _, err := catalog.Head(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for i := len(head.History) - 1; i >= 0; i-- {
		err := verifyOne(ctx, e, catalog, head.History[i])
		switch {
		case errors.Is(err, history.ErrGone): // rotated away meanwhile
		case err != nil && exitcode.Of(err) != exitcode.Integrity:
			return err
		case err != nil:
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func verifyOne(ctx context.Context, e *env, catalog *history.Catalog, id history.ID) error {
	r, err := catalog.Verify(ctx, id)
	if err != nil && (len(r.Damaged) == 0 || !errors.Is(err, history.ErrIntegrity)) {
		return fmt.Errorf("verify %s: %w", id, err)
	}
	if len(r.Damaged) > 0 {
		errs := make([]error, len(r.Damaged))
		for i, d := range r.Damaged {
			errs[i] = d
		}
		return exitcode.New(exitcode.Integrity,
			fmt.Errorf("snapshot %s in %s: damaged in %s: %w", id, catalog.Store(), count(len(r.Damaged), "place"), errors.Join(errs...)),
			"check the others (chromafs history verify --all); a mount that still has the data makes a whole new one: chromafs snapshot DIR")
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
