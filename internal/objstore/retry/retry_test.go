package retry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/objstore/retry"
	"github.com/chromafs/chromafs/internal/objstore/storetest"
)

// clock is a time that passes by waiting only.
type clock struct {
	mu    sync.Mutex
	now   time.Time
	waits []time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Wait(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.waits = append(c.waits, d)
	return ctx.Err()
}

func (c *clock) total() (sum time.Duration) {
	for _, d := range c.waits {
		sum += d
	}
	return sum
}

// longest draws the end of the range that it is to draw from.
func longest(n int64) int64 { return n - 1 }

var policy = retry.Policy{Time: time.Minute, Attempts: 50, First: 100 * time.Millisecond, Most: 5 * time.Second}

func newRepeater(c *clock, p retry.Policy) *retry.Repeater {
	return retry.New(retry.Options{Policy: p, Now: c.Now, Wait: c.Wait, Rand: longest})
}

func unavailable(change ...func(*objstore.Error)) error {
	e := &objstore.Error{Op: "ask", Store: "mem://", Kind: objstore.ErrUnavailable, Err: errors.New("down")}
	for _, c := range change {
		c(e)
	}
	return e
}

// It is a store as any other while nothing fails.
func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) objstore.Store {
		return newRepeater(&clock{}, policy).Over(memstore.New())
	})
}

// T2: the waits double up to the longest one, and are drawn from the whole range.
func TestBackoff(t *testing.T) {
	c := &clock{}
	fails := 8
	err := newRepeater(c, policy).Do(t.Context(), "ask", func() error {
		if fails--; fails >= 0 {
			return unavailable()
		}
		return nil
	})
	want := []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond,
		1600 * time.Millisecond, 3200 * time.Millisecond, 5 * time.Second, 5 * time.Second}
	if err != nil || !slices.Equal(c.waits, want) {
		t.Errorf("%v: waited %v, want %v", err, c.waits, want)
	}
	lowest := retry.New(retry.Options{Policy: policy, Now: c.Now, Wait: c.Wait, Rand: func(int64) int64 { return 0 }})
	c.waits, fails = nil, 3
	err = lowest.Do(t.Context(), "ask", func() error {
		if fails--; fails >= 0 {
			return unavailable()
		}
		return nil
	})
	if err != nil || c.total() != 0 || len(c.waits) != 3 {
		t.Errorf("%v: waited %v", err, c.waits)
	}
}

// T3: the budget is used up to its end, in time or in attempts, and the last error
// stands, with all that it says.
func TestBudget(t *testing.T) {
	for _, test := range []struct {
		name     string
		policy   retry.Policy
		attempts int
		took     time.Duration
	}{
		{"time", policy, 7 + 11, time.Minute},
		{"attempts", retry.Policy{Time: time.Hour, Attempts: 4, First: time.Second, Most: time.Minute}, 4, 7 * time.Second},
		{"once", retry.Policy{Attempts: 4, First: time.Second, Most: time.Minute}, 1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &clock{}
			asked := 0
			err := newRepeater(c, test.policy).Do(t.Context(), "ask", func() error {
				asked++
				return unavailable(func(e *objstore.Error) { e.Next = "plug it in" })
			})
			if objstore.KindOf(err) != objstore.ErrUnavailable || exitcode.Of(err) != exitcode.Store || exitcode.Hint(err) != "plug it in" {
				t.Errorf("%v, kind %v, hint %q", err, objstore.KindOf(err), exitcode.Hint(err))
			}
			if asked > test.attempts || asked < test.attempts-1 || c.total() != test.took {
				t.Errorf("asked %d times in %v, want %d in %v", asked, c.total(), test.attempts, test.took)
			}
			if said := strings.Contains(err.Error(), fmt.Sprintf("asked %d times in %v", asked, test.took)); said != (asked > 1) {
				t.Errorf("%v", err)
			}
		})
	}
}

// T3: an operation that ran long before it failed has its whole budget.
func TestBudgetBeginsWithTheFirstFailure(t *testing.T) {
	c := &clock{}
	fails := 2
	err := newRepeater(c, policy).Do(t.Context(), "ask", func() error {
		if fails--; fails >= 0 {
			c.now = c.now.Add(50 * time.Second)
			return unavailable()
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// T1: what is permanent is asked once.
func TestPermanent(t *testing.T) {
	for _, err := range []error{objstore.ErrNotFound, objstore.ErrPrecondition, objstore.ErrNotModified, objstore.ErrRange, objstore.ErrRefused,
		objstore.ErrUnsupported, objstore.ErrDamaged, errors.New("the caller's own"), context.DeadlineExceeded,
		fmt.Errorf("%w: %w", objstore.ErrUnavailable, objstore.ErrNoUpload), fmt.Errorf("%w: %w", objstore.ErrUnavailable, unix.ENOSPC)} {
		asked := 0
		got := newRepeater(&clock{}, policy).Do(t.Context(), "ask", func() error { asked++; return err })
		if asked != 1 || !errors.Is(got, err) {
			t.Errorf("%v: asked %d times, %v", err, asked, got)
		}
	}
}

// One policy above another does not multiply the budget.
func TestNested(t *testing.T) {
	c := &clock{}
	r := newRepeater(c, policy)
	err := r.Do(t.Context(), "outer", func() error {
		return fmt.Errorf("outer: %w", r.Do(t.Context(), "inner", func() error { return unavailable() }))
	})
	if c.total() != policy.Time || objstore.KindOf(err) != objstore.ErrUnavailable {
		t.Errorf("%v after %v", err, c.total())
	}
}

// T2: what the store asks for is waited for, in full, or the operation ends at once.
func TestRetryAfterAndBusy(t *testing.T) {
	ask := func(err error) (*clock, error) {
		c := &clock{}
		asked := 0
		return c, newRepeater(c, policy).Do(t.Context(), "ask", func() error {
			if asked++; asked == 1 {
				return err
			}
			return nil
		})
	}
	c, err := ask(unavailable(func(e *objstore.Error) { e.RetryAfter = 30 * time.Second }))
	if err != nil || c.total() < 30*time.Second || c.total() > 31*time.Second {
		t.Errorf("Retry-After 30 s: %v after %v", err, c.total())
	}
	c, err = ask(unavailable(func(e *objstore.Error) { e.RetryAfter = time.Hour }))
	if err == nil || c.total() != 0 || objstore.RetryAfter(err) != time.Hour {
		t.Errorf("Retry-After of an hour: %v after %v", err, c.total())
	}
	c, err = ask(unavailable(func(e *objstore.Error) { e.Busy = true }))
	if err != nil || c.total() != time.Second {
		t.Errorf("SlowDown: %v after %v", err, c.total())
	}
}

// T4: the end of the caller's context ends a wait at once, and is of no kind.
func TestContextEnds(t *testing.T) {
	gone := errors.New("nobody waits any more")
	ctx, cancel := context.WithCancelCause(t.Context())
	asked := 0
	r := retry.New(retry.Options{Policy: retry.Policy{Time: time.Hour, Attempts: 9, First: time.Hour, Most: time.Hour}, Rand: longest})
	done := make(chan error)
	go func() {
		done <- r.Do(ctx, "ask", func() error { asked++; return unavailable() })
	}()
	time.AfterFunc(20*time.Millisecond, func() { cancel(gone) })
	select {
	case err := <-done:
		if !errors.Is(err, gone) || objstore.KindOf(err) != nil || !strings.Contains(err.Error(), "down") || asked != 1 {
			t.Errorf("asked %d times: %v", asked, err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on")
	}
	asked = 0
	if err := r.Do(ctx, "ask", func() error { asked++; return unavailable() }); !errors.Is(err, gone) || asked != 1 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}

func TestWithBudget(t *testing.T) {
	for _, test := range []struct{ outer, inner, want time.Duration }{
		{time.Hour, 5 * time.Second, 5 * time.Second}, {5 * time.Second, time.Hour, 5 * time.Second}, {time.Hour, time.Hour, policy.Time}, {time.Hour, 0, 0},
	} {
		c := &clock{}
		ctx := retry.WithBudget(retry.WithBudget(t.Context(), test.outer), test.inner)
		err := newRepeater(c, policy).Do(ctx, "ask", func() error { return unavailable() })
		if objstore.KindOf(err) != objstore.ErrUnavailable || c.total() != test.want {
			t.Errorf("%+v: %v after %v", test, err, c.total())
		}
	}
}

// An observer sees trouble while it lasts.
func TestWithObserver(t *testing.T) {
	c := &clock{now: time.Unix(1000, 0)}
	var seen []string
	ctx := retry.WithObserver(t.Context(), func(err error, since time.Time) {
		seen = append(seen, fmt.Sprint(err != nil, " ", since.Unix() == 1000))
	})
	fails := 2
	err := newRepeater(c, policy).Do(ctx, "ask", func() error {
		if fails--; fails >= 0 {
			return unavailable()
		}
		return nil
	})
	if want := []string{"true true", "true true", "false false"}; err != nil || !slices.Equal(seen, want) {
		t.Errorf("%v: seen %v", err, seen)
	}
}

// Every operation is repeated, and does what it is to do once the store answers.
func TestEveryOperation(t *testing.T) {
	inner := memstore.New()
	s := newRepeater(&clock{}, policy).Over(inner)
	fails := map[string]int{}
	var mu sync.Mutex
	inner.Fail = func(op memstore.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if !op.After && fails[op.Kind] < 2 {
			fails[op.Kind]++
			return errors.New("down")
		}
		return nil
	}
	ctx := t.Context()
	check := func(what string, err error) {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	src, err := s.Put(ctx, "a", strings.NewReader("content"), 7, objstore.PutOptions{})
	check("put", err)
	_, err = s.Copy(ctx, "b", src, objstore.CopyOptions{})
	check("copy", err)
	up, err := s.NewUpload(ctx, "c")
	check("new upload", err)
	check("put part", up.PutPart(ctx, 1, strings.NewReader("content"), 0, 7))
	check("copy part", up.CopyPart(ctx, 2, src, 0, 7))
	_, err = up.Complete(ctx)
	check("complete", err)
	body, _, err := s.Get(ctx, "c", objstore.GetOptions{Offset: 7})
	check("get", err)
	if got, err := io.ReadAll(body); string(got) != "content" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	other, err := s.NewUpload(ctx, "d")
	check("new upload", err)
	pending, err := s.Uploads(ctx, "")
	check("uploads", err)
	if len(pending) != 1 {
		t.Errorf("pending: %v", pending)
	}
	check("abort upload", s.AbortUpload(ctx, pending[0]))
	check("abort", other.Abort(ctx))
	n := 0
	for _, err := range s.List(ctx, "") {
		check("list", err)
		n++
	}
	if n != 3 {
		t.Errorf("listed %d objects", n)
	}
	check("delete", s.Delete(ctx, []string{"a", "b", "c"}))
	for _, kind := range []string{"get", "put", "copy", "new-upload", "put-part", "copy-part", "complete", "abort", "list", "delete", "uploads", "abort-upload"} {
		if fails[kind] != 2 {
			t.Errorf("%s failed %d times", kind, fails[kind])
		}
	}
}

// A write whose bytes arrive damaged is sent again, not for ever.
func TestDamagedOnTheWay(t *testing.T) {
	inner := memstore.New()
	c := &clock{}
	s := newRepeater(c, policy).Over(inner)
	asked, bad := 0, 2
	inner.Fail = func(op memstore.Op) error {
		if op.After {
			return nil
		}
		if asked++; asked <= bad {
			return objstore.ErrDamaged
		}
		return nil
	}
	if _, err := s.Put(t.Context(), "a", strings.NewReader("x"), 1, objstore.PutOptions{}); err != nil || asked != 3 {
		t.Errorf("asked %d times: %v", asked, err)
	}
	asked, bad = 0, 1000
	if _, err := s.Put(t.Context(), "a", strings.NewReader("x"), 1, objstore.PutOptions{}); objstore.KindOf(err) != objstore.ErrDamaged || asked != 4 {
		t.Errorf("asked %d times: %v", asked, err)
	}
	asked = 0
	if _, err := s.Copy(t.Context(), "b", objstore.Object{Key: "a"}, objstore.CopyOptions{}); objstore.KindOf(err) != objstore.ErrDamaged || asked != 1 {
		t.Errorf("a copy: asked %d times: %v", asked, err)
	}
}

// T6: an answer that was lost shows as a precondition that does not hold.
func TestLostAnswer(t *testing.T) {
	inner := memstore.New()
	lost := false
	inner.Fail = func(op memstore.Op) error {
		if op.After && !lost {
			lost = true
			return errors.New("reset")
		}
		return nil
	}
	s := newRepeater(&clock{}, policy).Over(inner)
	_, err := s.Put(t.Context(), "k", strings.NewReader("x"), 1, objstore.PutOptions{IfAbsent: true})
	if objstore.KindOf(err) != objstore.ErrPrecondition || !lost {
		t.Errorf("%v", err)
	}
}
