// Package s3 is an object store behind the S3 protocol, by minio-go.
//
// The model: minio-go signs and sends; a guard (guard.go) sits below it and looks
// at every answer before minio-go may interpret it. For minio-go takes any 404 for a
// missing key, any 200 for an empty listing, and a 200 that holds an error for
// success. What the guard does not recognise as an object store's own answer becomes
// an error of its own (O4, R4).
//
//   - O1: every body is sent with its MD5, over plain HTTP with its SHA-256 in the
//     signature as well, in one request. No trailing checksums: minio-go's break its
//     retries.
//   - O2: conditions go on single PUTs only; on an upload in parts minio-go would
//     drop them. A lost answer shows as ErrPrecondition (package objstore).
//   - O3: copies carry x-amz-copy-source-if-match, each part of one too. Big ones go
//     by parts, so that one request never takes long, where the server copies parts.
//   - O5: bodies are counted. A connection on which nothing moves is given up after
//     Timeouts.Idle, in either direction.
//
// Each operation asks once; package retry repeats it. Only the parts of a copy that
// goes by parts are repeated here, by Options.Repeat. What an overloaded server says
// of when to come back is in the error (objstore.Error.RetryAfter).
//
// No ETag is taken for a checksum: under a KMS key it is none.
//
// Credentials come from the environment (AWS_*, MINIO_*), the shared files of AWS, or
// the role of the machine or container, and appear in no error and no log.
package s3

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"github.com/chromafs/chromafs/internal/objstore"
)

// Options says where a store is and how patiently to talk to it. Zero values of all
// but Bucket have defaults.
type Options struct {
	Bucket string
	Prefix string // of all keys, without slashes at its ends
	// Endpoint is the server, [http[s]://]host[:port], https unless said otherwise;
	// "" is AWS. Buckets are addressed by path, or by host name where the provider
	// is known to want it.
	Endpoint string
	// Region is asked of the server if empty. For an Endpoint of one's own,
	// AWS_REGION and AWS_DEFAULT_REGION count as well.
	Region   string
	Log      *slog.Logger
	Timeouts Timeouts
	// Repeat repeats one of the requests that make up an operation, as retry.Repeater.Do
	// does; nil: once.
	Repeat func(ctx context.Context, what string, request func() error) error
	// CopyLimit is the size above which a copy goes by parts of CopyPart bytes: 1 GiB
	// and 256 MiB, far below the 5 GiB that S3 allows.
	CopyLimit, CopyPart int64
	SSE                 SSE // of all that is written
}

// Timeouts bound the waiting on one connection. They must leave a server time to
// join the parts of a big upload, during which it may say nothing.
type Timeouts struct {
	Dial   time.Duration // 15 s
	Idle   time.Duration // without a byte moving; 3 min
	Header time.Duration // from the end of a request to the start of its answer; 3 min
}

// Store is a prefix in a bucket. It is safe for concurrent use.
type Store struct {
	core    *minio.Core
	guard   *guard
	o       Options
	log     *slog.Logger
	noBulk  atomic.Pointer[error] // why the server cannot delete many keys in one request; nil: it can, or was not asked
	noParts atomic.Bool           // the server copied whole what it did not copy by parts
	clear   atomic.Bool           // the object that was read last is not encrypted, though SSE asks for it
	plain   bool                  // plain HTTP: sign the SHA-256 of bodies
}

var _ objstore.Store = (*Store)(nil)

// New returns the store. It sends nothing yet.
func New(o Options) (*Store, error) {
	o.Timeouts.Dial = cmp.Or(o.Timeouts.Dial, 15*time.Second)
	o.Timeouts.Idle = cmp.Or(o.Timeouts.Idle, 3*time.Minute)
	o.Timeouts.Header = cmp.Or(o.Timeouts.Header, 3*time.Minute)
	if o.Repeat == nil {
		o.Repeat = func(_ context.Context, _ string, request func() error) error { return request() }
	}
	o.CopyLimit = cmp.Or(o.CopyLimit, 1<<30)
	o.CopyPart = cmp.Or(o.CopyPart, 256<<20)
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	if err := s3utils.CheckValidBucketName(o.Bucket); err != nil {
		return nil, fmt.Errorf("bucket %q: %w", o.Bucket, err)
	}
	if o.Prefix != "" {
		if err := objstore.CheckKey(o.Prefix); err != nil {
			return nil, fmt.Errorf("prefix: %w", err)
		}
	}
	host, secure, err := parseEndpoint(o.Endpoint)
	if err != nil {
		return nil, err
	}
	if o.Endpoint != "" && o.Region == "" && !s3utils.IsAmazonEndpoint(url.URL{Host: host}) {
		o.Region = cmp.Or(os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"))
	}
	transport, err := newTransport(o.Timeouts, secure)
	if err != nil {
		return nil, err
	}
	g := &guard{next: transport, bucket: o.Bucket, now: time.Now}
	core, err := minio.NewCore(host, &minio.Options{
		Creds:      credentials.NewChainCredentials(providers(os.Getenv)),
		Secure:     secure,
		Region:     o.Region,
		Transport:  g,
		MaxRetries: 1, // there is one policy, and it is not minio-go's
	})
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", host, err)
	}
	return &Store{core: core, guard: g, o: o, log: o.Log, plain: !secure}, nil
}

// parseEndpoint splits an endpoint into host and whether to use TLS.
func parseEndpoint(endpoint string) (host string, secure bool, err error) {
	if endpoint == "" {
		return "s3.amazonaws.com", true, nil
	}
	if !strings.Contains(endpoint, "://") {
		endpoint = "https://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil { // its text may hold a password
		return "", false, fmt.Errorf("the endpoint is not [http[s]://]host[:port]")
	}
	switch {
	case u.User != nil:
		return "", false, fmt.Errorf("the endpoint %s holds credentials: give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", u.Host)
	case u.Scheme != "http" && u.Scheme != "https":
		return "", false, fmt.Errorf("the endpoint %q is neither http nor https", endpoint)
	case u.Hostname() == "":
		return "", false, fmt.Errorf("the endpoint %q names no host", endpoint)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return "", false, fmt.Errorf("the endpoint %q goes on after the host: bucket and prefix belong into s3://BUCKET/PREFIX", endpoint)
	}
	return u.Host, u.Scheme == "https", nil
}

// providers is the usual chain of credentials.
func providers(getenv func(string) string) []credentials.Provider {
	chain := []credentials.Provider{&credentials.EnvAWS{}, &credentials.EnvMinio{}, &credentials.FileAWSCredentials{}}
	if strings.EqualFold(getenv("AWS_EC2_METADATA_DISABLED"), "true") {
		return chain
	}
	// Where there is no such service its address often swallows packets.
	return append(chain, &credentials.IAM{Client: &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{
			Proxy:       http.ProxyFromEnvironment,
			DialContext: (&net.Dialer{Timeout: time.Second}).DialContext,
		},
	}})
}

// newTransport returns minio-go's transport with our deadlines.
func newTransport(t Timeouts, secure bool) (*http.Transport, error) {
	transport, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: t.Dial, KeepAlive: 15 * time.Second}
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &idleConn{conn, t.Idle}, nil
	}
	transport.ResponseHeaderTimeout = t.Header
	transport.IdleConnTimeout = min(t.Idle/2, transport.IdleConnTimeout)
	return transport, nil
}

// idleConn fails once nothing has moved for some time. What is written also gives
// the answer more time, which is read meanwhile.
type idleConn struct {
	net.Conn
	idle time.Duration
}

// Read implements net.Conn.
func (c *idleConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.idle)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write implements net.Conn. A big write is cut, so that its progress counts.
func (c *idleConn) Write(p []byte) (n int, err error) {
	const most = 64 << 10
	for {
		if err := c.SetDeadline(time.Now().Add(c.idle)); err != nil {
			return n, err
		}
		m, err := c.Conn.Write(p[n:min(n+most, len(p))])
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// String implements objstore.Store.
func (s *Store) String() string {
	return strings.TrimSuffix("s3://"+s.o.Bucket+"/"+s.o.Prefix, "/")
}

// name returns the object's name in the bucket.
func (s *Store) name(key string) (string, error) {
	if err := objstore.CheckKey(key); err != nil {
		return "", err
	}
	full := s.under(key)
	return full, objstore.CheckKey(full)
}

// under puts the store's prefix before a key or a part of one.
func (s *Store) under(key string) string {
	if s.o.Prefix == "" {
		return key
	}
	return s.o.Prefix + "/" + key
}

// key returns what under made full of.
func (s *Store) key(full string) (string, bool) {
	if s.o.Prefix == "" {
		return full, true
	}
	return strings.CutPrefix(full, s.o.Prefix+"/")
}
