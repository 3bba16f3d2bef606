package harness

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/chromafs/chromafs/internal/testutil/versitygw"
)

const bucket = "backups"

// NewS3Store makes a bucket on an S3 server of its own.
func NewS3Store(t testing.TB) *Store {
	t.Helper()
	server := versitygw.Start(t)
	server.CreateBucket(bucket)
	return &Store{t: t, Folder: filepath.Join(server.Dir, bucket, "chromadb"), URL: "s3://" + bucket,
		Endpoint: server.Endpoint, Region: server.Region, Key: server.AccessKey, Secret: server.SecretKey}
}

// Trouble is what a Gate does with a request.
type Trouble int32

// The kinds of trouble.
const (
	None      Trouble = iota
	Dead              // connections are cut
	Overload          // 503 for everything
	Forbidden         // 403 for every listing, as for a key that may not list
	HTML404           // a web page that says "not found", whatever is asked
)

const forbidden = `<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>`

// Gate stands between chromafs and an S3 server.
type Gate struct {
	trouble  atomic.Int32
	requests atomic.Int64
}

// Set chooses the trouble from now on.
func (g *Gate) Set(trouble Trouble) { g.trouble.Store(int32(trouble)) }

// Requests counts the requests so far, but for those of the lease, which a mount
// makes every few seconds whatever becomes of its snapshots.
func (g *Gate) Requests() int64 { return g.requests.Load() }

// Behind returns s as seen through a gate.
func Behind(t testing.TB, s *Store) (*Store, *Gate) {
	t.Helper()
	target, err := url.Parse(s.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	g := &Gate{}
	// The signature covers the Host header, so it must pass unchanged.
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = target.Scheme, target.Host, r.In.Host
	}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path.Base(r.URL.Path) != "lease.json" {
			g.requests.Add(1)
		}
		switch Trouble(g.trouble.Load()) {
		case Dead:
			panic(http.ErrAbortHandler) // cuts the connection
		case Overload:
			http.Error(w, "<Error><Code>SlowDown</Code></Error>", http.StatusServiceUnavailable)
		case HTML404:
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, "<html><body><h1>404 Not Found</h1></body></html>")
		case Forbidden:
			if r.Method == http.MethodGet && strings.Trim(r.URL.Path, "/") == bucket {
				w.Header().Set("Content-Type", "application/xml")
				w.WriteHeader(http.StatusForbidden)
				fmt.Fprint(w, forbidden)
				return
			}
			proxy.ServeHTTP(w, r)
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	seen := *s
	seen.Endpoint = server.URL
	return &seen, g
}
