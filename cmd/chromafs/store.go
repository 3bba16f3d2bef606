package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/adapt"
	"github.com/chromafs/chromafs/internal/objstore/open"
	"github.com/chromafs/chromafs/internal/objstore/retry"
)

// storeOptions name the object store, and say how it is written to.
type storeOptions struct {
	url, endpoint, region string

	sse          string // commands that publish only, as what follows
	singleWriter bool
}

func (o *storeOptions) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.url, "store", "", "where snapshots go: `s3://BUCKET/PREFIX` (without a prefix: chromadb) or file:///DIR")
	flags.StringVar(&o.endpoint, "s3-endpoint", "", "`URL` of an S3 server other than AWS: https://minio.example:9000")
	flags.StringVar(&o.region, "s3-region", "", "`region` of the bucket")
}

// AddWriteFlags adds those of commands that publish.
func (o *storeOptions) AddWriteFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.sse, "sse", "none", "have the store encrypt what is written: `none|s3|kms|kms:KEY`")
	flags.BoolVar(&o.singleWriter, "single-writer", false, "use a store that does no conditional writes: you see to it that no other chromafs writes there")
}

const storeHint = "--store s3://BUCKET/PREFIX or --store file:///DIR (or the environment variable CHROMAFS_STORE) says where snapshots go"

// validate fails where no store can be meant.
func (o *storeOptions) validate() error {
	if o.url == "" {
		return usage("no store was given", storeHint)
	}
	_, err := open.ParseURL(o.url)
	return err
}

// open returns the catalog of the store, which is asked as patiently as policy says
// where it does not answer. It asks the store nothing yet.
func (o *storeOptions) open(e *env, policy retry.Policy) (*history.Catalog, error) {
	catalog, _, err := o.openAdapted(e, policy)
	return catalog, err
}

// openAdapted opens it with the layer that does without what the store lacks, once it
// is told.
func (o *storeOptions) openAdapted(e *env, policy retry.Policy) (*history.Catalog, *adapt.Store, error) {
	if err := o.validate(); err != nil {
		return nil, nil, err
	}
	store, err := open.Open(o.url, o.openOptions(e, policy))
	if err != nil {
		return nil, nil, err
	}
	adapted := adapt.New(store)
	return history.NewCatalog(adapted, e.log), adapted, nil
}

// bare opens the adapter itself, to see what the store answers.
func (o *storeOptions) bare(e *env) (objstore.Store, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	return open.Bare(o.url, o.openOptions(e, retry.Policy{}))
}

func (o *storeOptions) openOptions(e *env, policy retry.Policy) open.Options {
	return open.Options{Endpoint: o.endpoint, Region: o.region, SSE: o.sse, Policy: policy, Log: e.log}
}

// apartFrom refuses a store in a folder of the very tree whose snapshots it is to
// hold.
func (o *storeOptions) apartFrom(folders ...string) error {
	at, err := open.ParseURL(o.url)
	if err != nil || at.Dir == "" {
		return err
	}
	store := resolved(at.Dir)
	for _, folder := range folders {
		if inside := resolved(folder); store == inside || strings.HasPrefix(store, inside+"/") {
			return usage(fmt.Sprintf("--store %s: it is inside %s, whose snapshots it is to hold", o.url, folder),
				"name a folder elsewhere, best on another disk")
		}
	}
	return nil
}

// resolved returns path without symbolic links, as far as it exists.
func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if parent := filepath.Dir(path); parent != path {
		return filepath.Join(resolved(parent), filepath.Base(path))
	}
	return path
}
