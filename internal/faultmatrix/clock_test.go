package faultmatrix

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/reconcile"
)

// A clock that is wrong by a day: the store refuses every signature, and what is said
// is the clock, with both times; nothing is touched, and once it is right all goes on.
// The requests are signed in a bubble, whose clock can be set.
func TestClockIsWrong(t *testing.T) {
	server := startServer(t)
	p := newPlace(t, server)
	m := writer(t, p, 2)
	for _, off := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		t.Run(fmt.Sprint(off), func(t *testing.T) {
			m.change(t)
			before := p.objects(t)
			wrong := time.Now().Add(off)
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(wrong)) // of the bubble
				defer p.proxy.Drop()          // connections are goroutines
				m.reopenStore(t, short)
				_, err := m.up.Snapshot(t.Context())
				checkClock(t, err)

				other := newMachine(t, p, 2)
				res, err := other.mount(t)
				var refusal *reconcile.Refusal
				if !errors.As(err, &refusal) || refusal.Row != reconcile.RowRefused {
					t.Errorf("a mount: %s, %v", res.Action, err)
				}
				checkClock(t, err)
				if files := other.files(t); len(files) != 0 {
					t.Errorf("DIR holds %v", files)
				}
			})
			if d := differ(p.objects(t), before); d != nil {
				t.Errorf("the store: %v", d)
			}
			m.reopenStore(t, patient)
			m.snapshot(t)
			m.checkTidy(t)
		})
	}
}

func checkClock(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, objstore.ErrRefused) || exitcode.Of(err) != exitcode.Store ||
		!strings.Contains(fmt.Sprint(err), "the clocks differ too much: here it is "+time.Now().UTC().Format("Mon, 02 Jan 2006")) ||
		!strings.Contains(exitcode.Hint(err), "clock") {
		t.Errorf("%v (exit %d, next: %s)", err, exitcode.Of(err), exitcode.Hint(err))
	}
}
