// Package probe finds out what an object store can do, by doing it on throwaway
// objects: names of providers and versions of servers tell less, and so does an
// answer that says 200.
//
// What counts as being able is what objstore promises: a copy that is whole, and
// that is refused where its source is another; a conditional write that succeeds
// where it should, fails where it should, and of which one wins where several race.
//
//   - P1: a verdict follows from the store's own answers only. A store that is not
//     available, or refuses to store anything at all, is an error and no verdict.
//   - P2: everything is below objstore.ProbePrefix and one random name, and is removed
//     again, whatever was found. What a killed probe left is removed by the next one
//     that is an hour or more younger, by the store's clock.
//   - P3: an answer that was lost and repeated misleads nobody: before a refused
//     write counts as refused, it is looked for.
//
// Not promised: that a store which heeds conditions now and then only is caught. The
// races are few, more of them where Options.Thorough says so.
package probe

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/chromafs/chromafs/internal/objstore"
)

// Options say how a store is probed.
type Options struct {
	Rand io.Reader // names
	// Thorough races more, measures latency, and copies a range out of an object of 5
	// MiB, which it sends: what people ask for and wait for.
	Thorough bool
}

// Report is what was found.
type Report struct {
	Lacks   objstore.Lacks
	Latency time.Duration // of a small read, the median of some; only if Thorough
	// Left names what could not be removed again.
	Left []string
}

const (
	small      = 64        // bytes of an object that only has to be there
	rangeOf    = 5<<20 + 1 // what AWS lets a range be copied out of
	leftover   = time.Hour // younger ones may be those of a probe that is running
	cleanLimit = 30 * time.Second
	reads      = 9
)

// encrypter is an adapter that knows whether what it read last is encrypted as it
// should be.
type encrypter interface{ NotEncrypted() error }

// bulkDeleter is an adapter that does without bulk deletes by itself, and says so.
type bulkDeleter interface{ NoBulkDelete() error }

// Run probes a store. store should be the adapter itself: one that tries again for
// minutes, or does without what is lacking, hides what is to be seen.
func Run(ctx context.Context, store objstore.Store, o Options) (Report, error) {
	var name [8]byte
	if _, err := io.ReadFull(o.Rand, name[:]); err != nil {
		return Report{}, err
	}
	p := &prober{store: store, o: o, at: objstore.ProbePrefix + hex.EncodeToString(name[:]) + "/"}
	err := p.run(ctx)
	p.clean(ctx)
	if err != nil {
		err = fmt.Errorf("find out what the store can do: %w", err)
	}
	slices.Sort(p.report.Left)
	return p.report, err
}

type prober struct {
	store objstore.Store
	o     Options
	at    string // prefix of all keys of this probe

	mu     sync.Mutex // guards what follows
	report Report
	keys   []string // that may be there
	bodies int
}

// run asks everything. That plain writes work comes first: only then a refusal says
// something about what was refused.
func (p *prober) run(ctx context.Context) error {
	size := small
	if p.o.Thorough {
		size = rangeOf
	}
	data := bytes.Repeat([]byte("chromafs"), size/8+1)[:size]
	src, err := p.put(ctx, "source", data, objstore.PutOptions{})
	if err != nil {
		return err
	}
	if err := p.holds(ctx, src, data); err != nil {
		return err
	}
	if e, ok := p.store.(encrypter); ok {
		if why := e.NotEncrypted(); why != nil {
			p.lacks(&p.report.Lacks.Encrypt, "%v", why)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.copies(gctx, src, data) })
	g.Go(func() error { return p.partCopies(gctx, src, data) })
	g.Go(func() error { return p.uploads(gctx) })
	g.Go(func() error { return p.conditions(gctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	if p.o.Thorough {
		return p.latency(ctx, src)
	}
	return nil
}

func (p *prober) lacks(field *string, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*field = fmt.Sprintf(format, args...)
}

// verdict is nil where an operation said something about the store, and what is to
// be returned where it did not.
func verdict(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, objstore.ErrUnavailable) || objstore.KindOf(err) == nil {
		return err
	}
	return nil
}

// key names an object of this probe.
func (p *prober) key(name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := p.at + name
	if !slices.Contains(p.keys, key) {
		p.keys = append(p.keys, key)
	}
	return key
}

func (p *prober) put(ctx context.Context, name string, data []byte, o objstore.PutOptions) (objstore.Object, error) {
	return p.store.Put(ctx, p.key(name), bytes.NewReader(data), int64(len(data)), o)
}

// errOther: the object holds something else.
var errOther = errors.New("the object that came of it holds something else")

// holds returns nil where an object holds data, and errOther where it does not.
func (p *prober) holds(ctx context.Context, o objstore.Object, data []byte) error {
	body, _, err := p.store.Get(ctx, o.Key, objstore.GetOptions{IfMatch: o.ETag})
	if err != nil {
		return err
	}
	defer body.Close()
	got, err := io.ReadAll(io.LimitReader(body, int64(len(data))+1))
	if err == nil && !bytes.Equal(got, data) {
		err = errOther
	}
	return err
}

// another returns what src is not: an object of that key with another ETag.
func another(src objstore.Object) objstore.Object {
	if src.ETag = strings.Repeat("0", 31) + "1"; src.Size == 0 {
		src.Size = 1
	}
	return src
}

// copies finds out whether whole objects are copied, and only those that are meant.
func (p *prober) copies(ctx context.Context, src objstore.Object, data []byte) error {
	made, err := p.store.Copy(ctx, p.key("copy"), src, objstore.CopyOptions{})
	if err == nil {
		if err = p.holds(ctx, made, data); errors.Is(err, errOther) {
			p.lacks(&p.report.Lacks.Copy, "%v", err)
			return nil
		}
	}
	if err == nil {
		_, serr := p.store.Copy(ctx, p.key("stale-copy"), another(src), objstore.CopyOptions{})
		if serr == nil {
			p.lacks(&p.report.Lacks.Copy, "it copies an object whatever ETag is demanded of it")
			return nil
		}
		return verdict(ctx, serr)
	}
	if verr := verdict(ctx, err); verr != nil {
		return verr
	}
	p.lacks(&p.report.Lacks.Copy, "%v", err)
	return nil
}

// partCopies does so for parts of an upload.
func (p *prober) partCopies(ctx context.Context, src objstore.Object, data []byte) (err error) {
	up, err := p.store.NewUpload(ctx, p.key("parts"))
	if err != nil {
		return err // big files are sent no other way
	}
	completed := false
	defer func() {
		if !completed {
			p.abort(ctx, up)
		}
	}()
	var off int64
	if p.o.Thorough {
		off = 1
	}
	want := data[off:]
	if err = up.CopyPart(ctx, 1, another(src), off, int64(len(want))); err == nil {
		p.lacks(&p.report.Lacks.PartCopy, "it copies a part whatever ETag is demanded of its source")
		return nil
	} else if verr := verdict(ctx, err); verr != nil {
		return verr
	}
	if err = up.CopyPart(ctx, 1, src, off, int64(len(want))); err == nil {
		var made objstore.Object
		if made, err = up.Complete(ctx); err == nil {
			completed = true
			err = p.holds(ctx, made, want)
		}
	}
	if err == nil {
		return nil
	}
	if !errors.Is(err, errOther) {
		if verr := verdict(ctx, err); verr != nil {
			return verr
		}
	}
	p.lacks(&p.report.Lacks.PartCopy, "%v", err)
	return nil
}

// uploads finds out whether an unfinished upload can be found and removed.
func (p *prober) uploads(ctx context.Context) error {
	up, err := p.store.NewUpload(ctx, p.key("unfinished"))
	if err != nil {
		return err
	}
	defer p.abort(ctx, up)
	found, err := p.store.Uploads(ctx, p.at+"unfinished")
	switch {
	case err == nil && !slices.ContainsFunc(found, func(u objstore.PendingUpload) bool { return u.ID == up.ID() }):
		p.lacks(&p.report.Lacks.Uploads, "the listing of unfinished uploads does not show one that was just begun")
	case err != nil:
		if verr := verdict(ctx, err); verr != nil {
			return verr
		}
		p.lacks(&p.report.Lacks.Uploads, "%v", err)
	}
	return nil
}

// cleaning returns a context for what has to be done although ctx may have ended.
func cleaning(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
}

func (p *prober) abort(ctx context.Context, up objstore.Upload) {
	ctx, cancel := cleaning(ctx)
	defer cancel()
	if err := up.Abort(ctx); err != nil {
		if verdict(ctx, err) == nil {
			p.lacks(&p.report.Lacks.Abort, "%v", err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.report.Left = append(p.report.Left, "the unfinished upload "+up.ID())
	}
}

// latency measures small reads, one after the other.
func (p *prober) latency(ctx context.Context, src objstore.Object) error {
	took := make([]time.Duration, reads)
	for i := range took {
		start := time.Now()
		body, _, err := p.store.Get(ctx, src.Key, objstore.GetOptions{Length: 1})
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, body)
		body.Close()
		if err != nil {
			return err
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	p.report.Latency = took[reads/2]
	return nil
}

// clean removes what this probe stored and what older ones left (P2). All of it goes
// in one call, which shows whether many keys go in one request.
func (p *prober) clean(ctx context.Context) {
	ctx, cancel := cleaning(ctx)
	defer cancel()
	keys := slices.Clone(p.keys)
	keys = append(keys, p.olds(ctx)...)
	if len(keys) == 0 {
		return
	}
	if err := p.store.Delete(ctx, keys); err != nil {
		if verdict(ctx, err) == nil {
			p.report.Lacks.Delete = err.Error()
		}
		p.report.Left = append(p.report.Left, p.store.String()+"/"+p.at)
		return
	}
	if b, ok := p.store.(bulkDeleter); ok {
		if why := b.NoBulkDelete(); why != nil {
			p.report.Lacks.BulkDelete = why.Error()
		}
	}
}

// olds returns what older probes left. That there is no telling is no trouble: it is
// looked for again, and by history prune.
func (p *prober) olds(ctx context.Context) (keys []string) {
	var all []objstore.Object
	var now time.Time // by the store's clock
	for o, err := range p.store.List(ctx, objstore.ProbePrefix) {
		if err != nil {
			return nil
		}
		if all = append(all, o); strings.HasPrefix(o.Key, p.at) && o.Modified.After(now) {
			now = o.Modified
		}
	}
	for _, o := range all {
		if !strings.HasPrefix(o.Key, p.at) && now.Sub(o.Modified) > leftover {
			keys = append(keys, o.Key)
		}
	}
	return keys
}
