// Package open makes an object store of a URL: the one place that knows all
// adapters.
package open

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/file"
	"github.com/chromafs/chromafs/internal/objstore/retry"
	"github.com/chromafs/chromafs/internal/objstore/s3"
)

// DefaultPrefix is the prefix of an s3:// URL that gives none.
const DefaultPrefix = "chromadb"

// Options are what a URL does not say.
type Options struct {
	Endpoint, Region string       // s3:// only; see package s3
	SSE              string       // s3:// only: see s3.ParseSSE
	Policy           retry.Policy // how patiently requests are repeated; zero: each is made once
	Log              *slog.Logger
}

// Location is a URL taken apart.
type Location struct {
	Scheme         string // "s3" or "file"
	Bucket, Prefix string // s3
	Dir            string // file
}

const forms = "s3://BUCKET/PREFIX or file:///DIR"

// usage returns the error of a wrong flag.
func usage(flag, value, why, next string) error {
	return exitcode.New(exitcode.Usage, fmt.Errorf("%s %q: %s", flag, value, why), next)
}

// ParseURL takes a store's URL apart. Its errors name the flag --store.
func ParseURL(text string) (Location, error) {
	fail := func(why, next string) (Location, error) { return Location{}, usage("--store", text, why, next) }
	scheme, rest, ok := strings.Cut(text, "://")
	switch {
	case mayHoldSecret(text): // so it is not repeated
		return Location{}, exitcode.New(exitcode.Usage, errors.New("--store holds credentials, or a : or @ that no bucket's name has"),
			"write "+forms+", and give credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	case text == "":
		return fail("no store is given", "give --store (or CHROMAFS_STORE) as "+forms)
	case !ok && strings.HasPrefix(text, "/"):
		return fail("not a URL", "for a folder write file://"+text)
	case !ok:
		return fail("not a URL", "write "+forms)
	}
	switch strings.ToLower(scheme) {
	case "s3":
		return parseS3(rest, fail)
	case "file":
		return parseFile(text, rest, fail)
	case "http", "https":
		return fail("an address of a server is no store", "write s3://BUCKET/PREFIX, and the server as --s3-endpoint")
	}
	return fail(fmt.Sprintf("there is no kind of store %q", scheme), "write "+forms)
}

// mayHoldSecret reports whether a store's URL looks like one with credentials before
// its host or bucket. A secret may hold slashes; an absolute path and a prefix may
// hold an @.
func mayHoldSecret(text string) bool {
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		scheme, rest = "", text
	}
	if strings.EqualFold(scheme, "s3") {
		bucket, _, _ := strings.Cut(rest, "/")
		return strings.ContainsAny(bucket, ":@")
	}
	return !strings.HasPrefix(rest, "/") && strings.Contains(rest, "@")
}

type failure func(why, next string) (Location, error)

// parseS3 takes bucket and prefix as they are written: a prefix may hold any
// character that a key may, so nothing is unescaped.
func parseS3(rest string, fail failure) (Location, error) {
	bucket, prefix, _ := strings.Cut(rest, "/")
	prefix = strings.Trim(prefix, "/")
	switch {
	case bucket == "":
		return fail("no bucket is named", "write s3://BUCKET/PREFIX")
	case strings.ContainsAny(rest, "?"):
		return fail("a query is not part of a store", "give the server as --s3-endpoint and the region as --s3-region")
	case prefix == "":
		prefix = DefaultPrefix
	}
	if err := objstore.CheckKey(prefix); err != nil {
		return fail("the prefix cannot be part of a key: "+err.Error(), "choose a plain one, such as "+DefaultPrefix)
	}
	return Location{Scheme: "s3", Bucket: bucket, Prefix: prefix}, nil
}

func parseFile(text, rest string, fail failure) (Location, error) {
	if !strings.HasPrefix(rest, "/") {
		next := "write file:///DIR, with the whole path from the root on"
		if abs, err := filepath.Abs(rest); err == nil && rest != "" {
			next = "write file://" + abs
		}
		return fail("the folder is not an absolute path", next)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || strings.ContainsRune(u.Path, 0):
		return fail("not a well-formed URL", "write % in a folder's name as %25")
	case u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(rest, "?#"):
		return fail("a ? or # ends the path of a URL", "write %3F or %23 instead")
	case filepath.Clean(u.Path) == "/":
		return fail("the root of the file system is no store", "name a folder: file:///DIR")
	}
	return Location{Scheme: "file", Dir: filepath.Clean(u.Path)}, nil
}

// Open returns the store that a URL names. It asks the store nothing yet.
// Requests are repeated as its Policy says.
func Open(text string, o Options) (objstore.Store, error) {
	repeater := retry.New(retry.Options{Policy: o.Policy, Log: o.Log})
	s, err := bare(text, o, repeater.Do)
	if err != nil {
		return nil, err
	}
	return repeater.Over(s), nil
}

// Bare returns the adapter itself for a URL, with nothing between it and the store:
// for who wants to see what the store answers (package probe).
func Bare(text string, o Options) (objstore.Store, error) { return bare(text, o, nil) }

func bare(text string, o Options, repeat func(context.Context, string, func() error) error) (objstore.Store, error) {
	at, err := ParseURL(text)
	if err != nil {
		return nil, err
	}
	sse, err := s3.ParseSSE(o.SSE)
	switch {
	case err != nil:
		return nil, usage("--sse", o.SSE, "no such encryption", "none, s3, kms (the account's own key) or kms:KEY")
	case at.Scheme == "file" && sse != (s3.SSE{}):
		return nil, usage("--sse", o.SSE, "a folder is encrypted by its file system only", "leave it out")
	case at.Scheme == "file":
		s, err := file.New(at.Dir)
		if err != nil {
			return nil, usage("--store", text, err.Error(), "")
		}
		return s, nil
	}
	s, err := s3.New(s3.Options{Bucket: at.Bucket, Prefix: at.Prefix, Endpoint: o.Endpoint, Region: o.Region, SSE: sse, Log: o.Log,
		Repeat: repeat})
	if err != nil {
		return nil, exitcode.New(exitcode.Usage, fmt.Errorf("--store %s, --s3-endpoint: %w", text, err), "")
	}
	return s, nil
}
