package main

import (
	"context"
	"errors"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/control"
)

var errNotYet = errors.New("not yet")

// origin says how DIR was brought up to date.
type origin struct{ offline bool }

func reconcileMount(ctx context.Context, s *session) (origin, error) { return origin{}, errNotYet }

type workshop struct {
	local   *local
	catalog *history.Catalog
}

func withLocal(ctx context.Context, e *env, path, info string, o *storeOptions, f func(workshop) error) error {
	return errNotYet
}
func (w workshop) restore(ctx context.Context, e *env, o localOptions, at string) (restored, error) {
	return restored{}, errNotYet
}
func printRestore(e *env, path string, r restored) error                 { return nil }
func sync_(ctx context.Context, e *env, w workshop, o syncOptions) error { return errNotYet }
func snapshotOffline(ctx context.Context, e *env, o snapshotOptions, path string) (control.Snapshot, error) {
	return control.Snapshot{}, errNotYet
}

type restored struct{}
