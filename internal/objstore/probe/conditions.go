package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/chromafs/chromafs/internal/objstore"
)

// Racing writes: so many at once, so many times.
const (
	rivals         = 4
	rounds         = 2
	thoroughRounds = 8
)

// outcome is how a conditional write went.
type outcome struct {
	won  bool
	made objstore.Object
	why  error // why it was refused; nil where it won
}

// try makes one conditional write. An error says nothing about the store.
func (p *prober) try(ctx context.Context, name string, o objstore.PutOptions) (outcome, error) {
	p.mu.Lock()
	p.bodies++
	data := fmt.Appendf(nil, "%s%d", p.at, p.bodies) // no two alike: their ETags differ
	p.mu.Unlock()
	made, err := p.put(ctx, name, data, o)
	if err == nil {
		return outcome{won: true, made: made}, nil
	}
	if verr := verdict(ctx, err); verr != nil {
		return outcome{}, verr
	}
	if errors.Is(err, objstore.ErrPrecondition) { // it may be refused by what it wrote itself (P3)
		now, there, rerr := p.read(ctx, name)
		if rerr != nil {
			return outcome{}, rerr
		}
		if bytes.Equal(there, data) {
			return outcome{won: true, made: now}, nil
		}
	}
	return outcome{why: err}, nil
}

// read returns a small object, which may be missing.
func (p *prober) read(ctx context.Context, name string) (objstore.Object, []byte, error) {
	body, o, err := p.store.Get(ctx, p.key(name), objstore.GetOptions{})
	if errors.Is(err, objstore.ErrNotFound) {
		return o, nil, nil
	}
	if err != nil {
		return o, nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, 1<<10))
	return o, data, err
}

// conditions finds out whether writes can be conditional.
func (p *prober) conditions(ctx context.Context) error {
	var create, replace string
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		if create, err = p.creates(gctx); create != "" || err != nil {
			return err
		}
		create, err = p.race(gctx, "create-only writes", func(round int) (string, objstore.PutOptions, error) {
			return fmt.Sprintf("race-%d", round), objstore.PutOptions{IfAbsent: true}, nil
		})
		return err
	})
	g.Go(func() (err error) {
		if replace, err = p.replaces(gctx); replace != "" || err != nil {
			return err
		}
		replace, err = p.race(gctx, "writes with If-Match", func(int) (string, objstore.PutOptions, error) {
			now, _, err := p.read(gctx, "replaced")
			return "replaced", objstore.PutOptions{IfMatch: now.ETag}, err
		})
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Lacks.Create, p.report.Lacks.Replace = create, replace
	return nil
}

// creates says what is wrong with create-only writes.
func (p *prober) creates(ctx context.Context) (string, error) {
	first, err := p.try(ctx, "created", objstore.PutOptions{IfAbsent: true})
	if err != nil {
		return "", err
	}
	if !first.won {
		return fmt.Sprintf("a create-only write (If-None-Match: *) of a new key was refused: %v", first.why), nil
	}
	again, err := p.try(ctx, "created", objstore.PutOptions{IfAbsent: true})
	switch {
	case err != nil:
		return "", err
	case again.won:
		return "a create-only write (If-None-Match: *) replaced what was there: the condition is ignored", nil
	case !errors.Is(again.why, objstore.ErrPrecondition):
		return fmt.Sprintf("a create-only write (If-None-Match: *) of a key that is there: %v", again.why), nil
	}
	return "", nil
}

// replaces says what is wrong with writes on condition of an ETag.
func (p *prober) replaces(ctx context.Context) (string, error) {
	first, err := p.try(ctx, "replaced", objstore.PutOptions{})
	if err != nil || !first.won {
		return "", errors.Join(err, first.why)
	}
	second, err := p.try(ctx, "replaced", objstore.PutOptions{IfMatch: first.made.ETag})
	if err != nil {
		return "", err
	}
	if !second.won {
		return fmt.Sprintf("a write with If-Match was refused, though the ETag was the right one: %v", second.why), nil
	}
	stale, err := p.try(ctx, "replaced", objstore.PutOptions{IfMatch: first.made.ETag})
	switch {
	case err != nil:
		return "", err
	case stale.won:
		return "a write with If-Match replaced an object with another ETag: the condition is ignored", nil
	case !errors.Is(stale.why, objstore.ErrPrecondition):
		return fmt.Sprintf("a write with If-Match of an ETag that has passed: %v", stale.why), nil
	}
	return "", nil
}

// race lets writers race for one state, several times, and says where not exactly one
// of them won. A round that nobody won proves nothing.
func (p *prober) race(ctx context.Context, what string, next func(round int) (string, objstore.PutOptions, error)) (string, error) {
	n := rounds
	if p.o.Thorough {
		n = thoroughRounds
	}
	for round := range n {
		name, o, err := next(round)
		if err != nil {
			return "", err
		}
		results := make([]outcome, rivals)
		g, gctx := errgroup.WithContext(ctx)
		for i := range results {
			g.Go(func() (err error) {
				results[i], err = p.try(gctx, name, o)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return "", err
		}
		won := 0
		for _, r := range results {
			if r.won {
				won++
			}
		}
		if won > 1 {
			return fmt.Sprintf("%d of %d racing %s succeeded: they are not atomic", won, rivals, what), nil
		}
	}
	return "", nil
}
