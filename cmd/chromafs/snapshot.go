package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/internal/control"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/exitcode"
)

type snapshotOptions struct {
	store  storeOptions
	upload uploadOptions
	log    logOptions
	json   bool
}

func (o *snapshotOptions) AddFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&o.json, "json", false, "print a JSON object")
	o.store.AddFlags(flags)
	o.store.AddWriteFlags(flags)
	o.upload.AddFlags(flags)
	o.log.AddFlags(flags)
}

func snapshotCommand() command {
	return command{
		name:  "snapshot",
		args:  "DIR|MOUNTPOINT",
		short: "take a snapshot now and store it",
		long: `Of a mount: asks it, and goes by its --store, --keep and --verify. Of a DIR that is not mounted: holds
SQLite's locks on its databases meanwhile, and publishes nothing if something
else wrote to it.`,
		setup: func(flags *pflag.FlagSet) runner {
			var o snapshotOptions
			o.AddFlags(flags)
			return func(ctx context.Context, e *env, args arguments) error { return runSnapshot(ctx, e, o, args) }
		},
	}
}

func runSnapshot(ctx context.Context, e *env, o snapshotOptions, args arguments) error {
	words, err := args.take("snapshot", 1, 1)
	if err != nil {
		return err
	}
	if err := errors.Join(o.upload.validate(), o.log.apply(e)); err != nil {
		return err
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	snap, err := snapshot(ctx, e, o, words[0])
	if err != nil {
		return interrupted(ctx, err)
	}
	if o.json {
		return printJSON(e, snap)
	}
	return printSnapshot(e, snap)
}

// snapshot asks the mount for one, or takes it of a DIR that nobody serves.
func snapshot(ctx context.Context, e *env, o snapshotOptions, path string) (control.Snapshot, error) {
	client, target, err := connect(ctx, e, path)
	if err == nil {
		defer client.Close()
		return client.Snapshot(ctx)
	}
	if !errors.Is(err, control.ErrNotRunning) || target.OnMount {
		return control.Snapshot{}, fmt.Errorf("snapshot: %w", err)
	}
	if err := o.store.validate(); err != nil {
		return control.Snapshot{}, err
	}
	if err := worthASnapshot(path); err != nil {
		return control.Snapshot{}, err
	}
	return snapshotOffline(ctx, e, o, path)
}

// worthASnapshot refuses, before anything is made there, what is no DIR or most
// likely none: a mistyped path, a mountpoint whose mount is gone.
func worthASnapshot(path string) (err error) {
	dir, err := datadir.OpenReadOnly(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	empty, err := dir.Empty()
	if err == nil && empty && dir.State() == nil {
		return exitcode.New(exitcode.Failed, fmt.Errorf("snapshot %s: it is empty and was never mounted", path),
			"if it is a mountpoint, its mount is gone: mount again, or name DIR")
	}
	return err
}

func printSnapshot(e *env, s control.Snapshot) error {
	if s.ID == "" {
		_, err := fmt.Fprintln(e.stdout, "There is nothing to take a snapshot of yet.")
		return err
	}
	text := fmt.Sprintf("%s: %s, %s, %s uploaded in %s, %s", s.ID, count(s.Files, "file"), size(s.Bytes),
		size(s.BytesUploaded), time.Duration(s.DurationMS)*time.Millisecond, s.Consistency)
	if s.Removed > 0 {
		text += fmt.Sprintf("; %s removed", count(s.Removed, "old snapshot"))
	}
	_, err := fmt.Fprintln(e.stdout, text)
	return err
}
