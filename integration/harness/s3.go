package harness

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/internal/testutil/faultproxy"
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
type Trouble faultproxy.Chooser

// The kinds of trouble; nil is none.
var (
	None      Trouble
	Dead      Trouble = all(func(x *faultproxy.Exchange) { x.Reset() })
	Overload  Trouble = all(faultproxy.SlowDown)
	Forbidden Trouble = func(_ int, r *http.Request) faultproxy.Fault { // every listing, as for a key that may not list
		if r.Method == http.MethodGet && strings.Trim(r.URL.Path, "/") == bucket {
			return func(x *faultproxy.Exchange) { x.S3Error(http.StatusForbidden, "AccessDenied", "Access Denied.") }
		}
		return nil
	}
	HTML404 Trouble = all(func(x *faultproxy.Exchange) { // a web page that says "not found", whatever is asked
		x.W.Header().Set("Content-Type", "text/html")
		x.W.WriteHeader(http.StatusNotFound)
		fmt.Fprint(x.W, "<html><body><h1>404 Not Found</h1></body></html>")
	})
)

func all(f faultproxy.Fault) Trouble {
	return func(int, *http.Request) faultproxy.Fault { return f }
}

// Gate stands between chromafs and an S3 server.
type Gate struct{ proxy *faultproxy.Proxy }

// Set chooses the trouble from now on, and begins to count requests anew.
func (g *Gate) Set(trouble Trouble) { g.proxy.Choose(faultproxy.Chooser(trouble)) }

// Requests counts the requests since, but for those of the lease, which a mount makes
// every few seconds whatever becomes of its snapshots.
func (g *Gate) Requests() (n int64) {
	for _, r := range g.proxy.Requests() {
		if !strings.Contains(r.URI, "/lease.json") {
			n++
		}
	}
	return n
}

// Behind returns s as seen through a gate.
func Behind(t testing.TB, s *Store) (*Store, *Gate) {
	t.Helper()
	g := &Gate{faultproxy.Start(t, s.Endpoint)}
	seen := *s
	seen.Endpoint = g.proxy.URL
	return &seen, g
}
