package reconcile

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
)

// A takeover whose request hangs ends with the time to wait for the store.
func TestTakeoverThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, memstore.New()).start()
		start := time.Now()
		e := m.env()
		e.StoreTimeout = time.Minute
		e.Takeover = func(ctx context.Context, _ history.Head, _ string) (history.Head, error) {
			select {
			case <-ctx.Done():
				return history.Head{}, context.Cause(ctx)
			case <-time.After(time.Hour):
				return history.Head{}, errors.New("the request hung for an hour")
			}
		}
		_, err := Run(t.Context(), e)
		if took := time.Since(start); !errors.Is(err, ErrRefused) || exitcode.Of(err) != exitcode.Store || took != time.Minute {
			t.Errorf("after %v: %v", took, err)
		}
		m.stop()
	})
}
