package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/internal/objstore/retry"
)

type historyClearOptions struct {
	store storeOptions
	log   logOptions
	yes   bool
}

func (o *historyClearOptions) AddFlags(flags *pflag.FlagSet) {
	o.store.AddFlags(flags)
	o.store.AddWriteFlags(flags)
	flags.BoolVar(&o.yes, "yes", false, "do not ask")
	o.log.AddFlags(flags)
}

func historyClearCommand() command {
	return command{
		name:  "history clear",
		short: "remove every snapshot but the newest",
		long:  "It may run beside a mount: the newest snapshot, and what a mount is publishing, stay.",
		setup: func(flags *pflag.FlagSet) runner {
			var o historyClearOptions
			o.AddFlags(flags)
			return func(ctx context.Context, e *env, args arguments) error { return runHistoryClear(ctx, e, o, args) }
		},
	}
}

func runHistoryClear(ctx context.Context, e *env, o historyClearOptions, args arguments) error {
	if _, err := args.take("history clear", 0, 0); err != nil {
		return err
	}
	if err := o.log.apply(e); err != nil {
		return err
	}
	catalog, known, err := o.store.openToWrite(e, nil, retry.Brief)
	if err != nil {
		return err
	}
	if !o.yes {
		question := fmt.Sprintf("Remove every snapshot but the newest from %s? [y/N] ", catalog.Store())
		if err := confirm(e, question); err != nil {
			return err
		}
	}
	if err := known.ready(ctx); err != nil {
		return err
	}
	removed, err := catalog.Clear(ctx)
	if err != nil {
		return fmt.Errorf("clear the history after %s: %w", count(removed, "removal"), err)
	}
	_, err = fmt.Fprintf(e.stdout, "Removed %s from %s; the newest is kept.\n", count(removed, "snapshot"), catalog.Store())
	return err
}

// confirm asks on stderr and fails unless the answer is yes.
func confirm(e *env, question string) error {
	fmt.Fprint(e.stderr, question)
	answer, err := bufio.NewReader(e.stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return usage("not confirmed; nothing was removed", "answer y, or give --yes")
}
