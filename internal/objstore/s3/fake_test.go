package s3

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/testutil/faultproxy"
	"github.com/chromafs/chromafs/internal/testutil/versitygw"
)

// fake is a server that answers as a test wants it to, and remembers what was asked.
type fake struct {
	*httptest.Server
	t  *testing.T
	mu sync.Mutex // guards what follows
	// requests are method, path, query and If-Match of what came.
	requests []string
}

// newFake starts a server. handle answers; the request's number counts from 0.
func newFake(t *testing.T, handle func(n int, w http.ResponseWriter, r *http.Request)) *fake {
	t.Helper()
	f := &fake{t: t}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		n := len(f.requests)
		f.requests = append(f.requests, r.Method+" "+r.URL.RequestURI())
		f.mu.Unlock()
		handle(n, w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *fake) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.requests...)
}

// store returns the store bucket/chromadb on the fake, with test credentials.
func (f *fake) store(change ...func(*Options)) *Store {
	f.t.Helper()
	credentialsOf(f.t, "TESTACCESSKEY", "TESTSECRETKEY")
	return storeAt(f.t, f.URL, change...)
}

func storeAt(t *testing.T, url string, change ...func(*Options)) *Store {
	t.Helper()
	o := Options{Endpoint: url, Bucket: "bucket", Prefix: "chromadb", Region: "us-east-1"}
	for _, c := range change {
		c(&o)
	}
	return newStore(t, o)
}

// s3Error answers as S3 does.
func s3Error(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>%s</Message><RequestId>1</RequestId></Error>`, code, message)
}

// cut breaks the connection without an answer.
func cut(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		conn.Close()
	}
}

// faulty is a proxy before a real server that plays tricks.
type faulty struct {
	*faultproxy.Proxy
	t      *testing.T
	server *versitygw.Server
}

// newFaulty starts server and proxy. before may answer a request itself, and then
// returns true; after sees that a request was carried out, and may cut its answer.
func newFaulty(t *testing.T, before func(n int, w http.ResponseWriter, r *http.Request) bool, after func(n int, r *http.Request) (lose bool)) *faulty {
	t.Helper()
	server := versitygw.Start(t)
	server.CreateBucket("bucket")
	f := &faulty{faultproxy.Start(t, server.Endpoint), t, server}
	f.Choose(func(n int, _ *http.Request) faultproxy.Fault {
		return func(x *faultproxy.Exchange) {
			if before != nil && before(n-1, x.W, x.R) {
				return
			}
			if after == nil {
				x.Pass()
				return
			}
			answer := x.Answer()
			if after(n-1, x.R) {
				x.Reset()
				return
			}
			x.Reply(answer)
		}
	})
	return f
}

func (f *faulty) seen() (all []string) {
	for _, r := range f.Requests() {
		all = append(all, r.String())
	}
	return all
}

func (f *faulty) store(change ...func(*Options)) *Store {
	f.t.Helper()
	credentialsOf(f.t, f.server.AccessKey, f.server.SecretKey)
	return storeAt(f.t, f.URL, change...)
}

// count returns how many requests begin with method and hold part.
func (f *faulty) count(method, part string) (n int) {
	for _, r := range f.seen() {
		if strings.HasPrefix(r, method+" ") && strings.Contains(r, part) {
			n++
		}
	}
	return n
}

// within fails the test if run takes longer: something waits that should have given up.
func within(t *testing.T, limit time.Duration, run func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		run()
	}()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("still waiting after %v", limit)
	}
}
