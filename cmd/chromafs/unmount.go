package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/internal/control"
)

type unmountOptions struct{ log logOptions }

func (o *unmountOptions) AddFlags(flags *pflag.FlagSet) { o.log.AddFlags(flags) }

func unmountCommand() command {
	return command{
		name:  "unmount",
		args:  "MOUNTPOINT|DIR",
		short: "take a final snapshot, then unmount",
		long: `Returns when the mount is gone. Exits with 3 if something could not be stored;
it stays marked and is stored after the next mount. Exits with 4 if another mount
has taken the store over; what this one holds is stored as a branch then, and the
message says how to restore it.`,
		setup: func(flags *pflag.FlagSet) runner {
			var o unmountOptions
			o.AddFlags(flags)
			return func(ctx context.Context, e *env, args arguments) error { return runUnmount(ctx, e, o, args) }
		},
	}
}

func runUnmount(ctx context.Context, e *env, o unmountOptions, args arguments) error {
	words, err := args.take("unmount", 1, 1)
	if err != nil {
		return err
	}
	if err := o.log.apply(e); err != nil {
		return err
	}
	client, _, err := connect(ctx, e, words[0])
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	defer client.Close()
	return client.Unmount(ctx)
}

// connect reaches the mount that a path belongs to.
func connect(ctx context.Context, e *env, path string) (*control.Client, control.Target, error) {
	target, err := control.Find(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = usage(err.Error(), "name the directory or the mountpoint of a mount")
		}
		return nil, target, err
	}
	client, err := control.Connect(ctx, target, control.Folders(os.Geteuid(), e.getenv))
	return client, target, err
}
