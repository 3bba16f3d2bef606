package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/atomicfile"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/adapt"
	"github.com/chromafs/chromafs/internal/objstore/open"
	"github.com/chromafs/chromafs/internal/objstore/probe"
	"github.com/chromafs/chromafs/internal/objstore/retry"
	"github.com/chromafs/chromafs/internal/tree"
)

// capability is one thing that a store may lack.
type capability struct {
	name    string
	why     func(objstore.Lacks) string // why it is lacking; "" if it is not
	without string                      // what chromafs does without it
	severe  int                         // the exit code of a doctor who finds it lacking
	needed  need
}

// need says who needs a capability.
type need int

const (
	always     need = iota
	byTwo           // one writer alone does without
	encrypting      // where --sse is given
)

var capabilities = []capability{
	{"conditional create", func(l objstore.Lacks) string { return l.Create }, "needs --single-writer: nothing else keeps two mounts from harming each other", exitcode.Store, byTwo},
	{"conditional replace", func(l objstore.Lacks) string { return l.Replace }, "needs --single-writer: nothing else keeps two mounts from harming each other", exitcode.Store, byTwo},
	{"encryption", func(l objstore.Lacks) string { return l.Encrypt }, "nothing is stored: leave --sse out, and rely on the bucket's default or go without", exitcode.Store, encrypting},
	{"copy", func(l objstore.Lacks) string { return l.Copy }, "every snapshot sends every file, and the plain files beside the history are read back and sent", exitcode.Done, always},
	{"part copy", func(l objstore.Lacks) string { return l.PartCopy }, "a file of more than 8 MiB that changed is sent whole", exitcode.Done, always},
	{"bulk delete", func(l objstore.Lacks) string { return l.BulkDelete }, "objects are deleted one by one", exitcode.Done, always},
	{"delete", func(l objstore.Lacks) string { return l.Delete }, "old snapshots stay in the store: grant s3:DeleteObject", exitcode.Failed, always},
	{"list uploads", func(l objstore.Lacks) string { return l.Uploads }, "what a failed snapshot has sent of big files stays in the store: grant s3:ListBucketMultipartUploads, or let a rule of the bucket abort incomplete uploads", exitcode.Failed, always},
	{"abort uploads", func(l objstore.Lacks) string { return l.Abort }, "what a failed snapshot has sent of big files stays in the store: grant s3:AbortMultipartUpload, or let a rule of the bucket abort incomplete uploads", exitcode.Failed, always},
}

// knowledge is what is known of a store that is to be written to, and how it becomes
// known: from what DIR remembers, or by a probe. Its methods are not for concurrent
// use, but those of adapted are.
type knowledge struct {
	env     *env
	options storeOptions
	adapted *adapt.Store
	state   *os.File // DIR/.chromafs; nil: nothing is remembered
}

// openToWrite opens the store for a command that publishes. state is DIR/.chromafs, nil
// where there is none.
func (o *storeOptions) openToWrite(e *env, state *os.File, policy retry.Policy) (*history.Catalog, *knowledge, error) {
	catalog, adapted, err := o.openAdapted(e, policy)
	if err != nil {
		return nil, nil, err
	}
	return catalog, &knowledge{env: e, options: *o, adapted: adapted, state: state}, nil
}

// ready makes sure, before the first write, that the store will do, and lets it be
// used as what it is. A store that is not available is asked again by whoever calls.
func (k *knowledge) ready(ctx context.Context) error {
	if _, known := k.adapted.Lacks(); known {
		return nil
	}
	lacks, err := k.find(ctx)
	if err != nil {
		return err
	}
	switch why := lacks.Conditions(); {
	case lacks.Encrypt != "":
		return exitcode.New(exitcode.Store, fmt.Errorf("%s: --sse %s: %s", k.adapted, k.options.sse, lacks.Encrypt),
			"nothing was published. Leave --sse out, and rely on the bucket's default encryption or go without")
	case why != "" && !k.options.singleWriter:
		return exitcode.New(exitcode.Store,
			fmt.Errorf("%s: the store does no conditional writes, which keep two mounts from harming each other: %s", k.adapted, why),
			"nothing was published. If no other chromafs ever writes there, give --single-writer; chromafs doctor shows all that the store lacks")
	case why != "":
		k.env.log.Warn("SINGLE WRITER: this store does no conditional writes. Nothing keeps a second mount from publishing over this one, and the other way round: see to it that there is none",
			keyStore, k.adapted.String(), keyReason, why)
	case k.options.singleWriter:
		k.env.log.Info("--single-writer is not needed: the store does conditional writes, and they are used", keyStore, k.adapted.String())
	}
	k.adapted.Know(lacks)
	return nil
}

// find returns what the store lacks, as remembered or as it is found to be now. That
// something is lacking that cannot be done without is not believed from memory.
func (k *knowledge) find(ctx context.Context) (objstore.Lacks, error) {
	at, err := open.ParseURL(k.options.url)
	if err != nil || at.Scheme == "file" { // what the adapter for folders lacks is an error of its own
		return objstore.Lacks{}, err
	}
	if lacks, ok := k.remembered(); ok && lacks.Encrypt == "" && (lacks.Conditions() == "" || k.options.singleWriter) {
		return lacks, nil
	}
	start := k.env.now()
	bare, err := k.options.bare(k.env)
	if err != nil {
		return objstore.Lacks{}, err
	}
	report, err := probe.Run(ctx, bare, probe.Options{Rand: rand.Reader})
	for _, left := range report.Left {
		k.env.log.Warn("what the store was tried with could not be removed again; history prune removes it later", keyName, left)
	}
	if err != nil {
		return objstore.Lacks{}, err
	}
	k.env.log.Info("tried what the store can do", keyStore, k.adapted.String(), keyDuration, k.env.now().Sub(start))
	for _, c := range capabilities {
		if why := c.why(report.Lacks); why != "" {
			k.env.log.Warn("the store lacks: "+c.name, "consequence", c.without, keyReason, why)
		}
	}
	return report.Lacks, k.remember(report.Lacks)
}

// rememberedName is the file in DIR/.chromafs that holds what a store was found to
// lack, so that later mounts do not try it again.
const rememberedName = "store.json"

const rememberedFormat = 1

// remembered is its content. Another store, or another server, is another matter.
type remembered struct {
	Format   int            `json:"format"`
	Store    string         `json:"store"`
	Endpoint string         `json:"endpoint"`
	SSE      string         `json:"sse"`
	Tried    time.Time      `json:"tried"`
	Lacks    objstore.Lacks `json:"lacks"`
}

// remembered returns what DIR remembers of this store. What cannot be read is tried
// again.
func (k *knowledge) remembered() (objstore.Lacks, bool) {
	if k.state == nil {
		return objstore.Lacks{}, false
	}
	var r remembered
	data, err := readSmall(k.state, rememberedName)
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			k.env.log.Warn("what DIR remembers of the store cannot be read; trying the store again", keyError, err)
		}
		return objstore.Lacks{}, false
	}
	return r.Lacks, r.Format == rememberedFormat && r.Store == k.adapted.String() && r.Endpoint == k.options.endpoint && r.SSE == k.options.sse
}

// remember makes what was found durable. A full disk is no reason not to serve.
func (k *knowledge) remember(l objstore.Lacks) error {
	if k.state == nil {
		return nil
	}
	data, err := json.MarshalIndent(remembered{Format: rememberedFormat, Store: k.adapted.String(), Endpoint: k.options.endpoint,
		SSE: k.options.sse, Tried: k.env.now().UTC(), Lacks: l}, "", "  ")
	if err != nil {
		return err
	}
	err = atomicfile.Write(k.state, rememberedName, append(data, '\n'), 0o600)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		k.env.log.Warn("the disk is full: what the store can do is not remembered, and tried again by the next mount", keyError, err)
		return nil
	}
	return err
}

func readSmall(dir *os.File, name string) ([]byte, error) {
	f, err := tree.OpenBeneath(dir, name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<16))
}

// describeLacks lists what is lacking, for people; nil before that is known.
func describeLacks(s *adapt.Store) (all []string) {
	l, _ := s.Lacks()
	for _, c := range capabilities {
		if why := c.why(l); why != "" {
			all = append(all, c.name+": "+c.without)
		}
	}
	return all
}
