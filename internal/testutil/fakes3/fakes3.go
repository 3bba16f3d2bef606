// Package fakes3 is an S3 server in memory for tests, which lacks what a test says:
// real stores differ, and none that lacks something can be run on loopback.
//
// Without switches it behaves as AWS does, as far as chromafs asks it to: GET with
// ranges and conditions, PUT and complete with conditions that are atomic, copies
// whole and by parts pinned to their sources, pages of listings, bulk delete, the
// listing of uploads. It passes storetest through the s3 adapter. It checks every
// body against Content-MD5 and the signed SHA-256, but no signature.
//
// It is no fault injector: what it refuses it refuses always, as a store does that
// cannot do a thing. Lose is the one exception.
package fakes3

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Bucket is the one bucket of a server.
const Bucket = "bucket"

// Conditions says how a server treats If-Match and If-None-Match of writes.
type Conditions int

// The ways of real stores.
const (
	Heeded   Conditions = iota // as AWS does: atomically
	Refused                    // 501 NotImplemented (Backblaze B2)
	Ignored                    // the write succeeds whatever is there (reported of Google's interop API)
	Unquoted                   // a quoted ETag never matches (DigitalOcean Spaces)
	Racy                       // looked at before the write, not with it (rclone's fork of gofakes3)
)

// Refusal is how a server answers what it lacks. The zero value lacks nothing.
type Refusal struct {
	Status int
	Code   string // of the error in XML; "" answers with a page in HTML, as front ends do
}

// Options are a server's switches.
type Options struct {
	Copy, PartCopy, BulkDelete, ListUploads Refusal
	Abort, Delete                           Refusal // for keys that lack permissions
	Conditions                              Conditions
	IgnoreSSE                               bool               // what is stored is not encrypted, whatever is asked (versitygw)
	EqualParts                              bool               // parts but the last must be of one size (Cloudflare R2)
	Clock                                   time.Duration      // how far the server's clock is ahead
	Page                                    int                // entries of a page of a listing, 1000
	Lose                                    func(Request) bool // carry out, then cut the connection without an answer
}

// Request is one that came.
type Request struct {
	// Op is one of get, put, copy, delete, bulk-delete, list, uploads, location,
	// new-upload, put-part, copy-part, complete, abort.
	Op      string
	Key     string // with the prefix
	Status  int    // of the answer
	SSE     string // x-amz-server-side-encryption
	SSEKey  string // the id of the KMS key
	IfMatch string // or "absent"
}

// Server is a running server.
type Server struct {
	*httptest.Server
	o Options

	mu       sync.Mutex // guards what follows
	objects  map[string]object
	uploads  map[string]*upload
	counter  int
	requests []Request
	checking map[string]chan struct{} // Racy: a writer that has looked and waits for another to
}

type object struct {
	data     []byte // never modified
	etag     string
	modified time.Time
	header   http.Header // content type, metadata, encryption
}

// New starts a server until the test ends.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Page == 0 {
		o.Page = 1000
	}
	s := &Server{o: o, objects: map[string]object{}, uploads: map[string]*upload{}, checking: map[string]chan struct{}{}}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// Environ returns environment variables with credentials, and none of a machine's.
func (s *Server) Environ() []string {
	return []string{"AWS_ACCESS_KEY_ID=TESTACCESSKEY", "AWS_SECRET_ACCESS_KEY=TESTSECRETKEY", "AWS_REGION=us-east-1",
		"AWS_EC2_METADATA_DISABLED=true", "AWS_SHARED_CREDENTIALS_FILE=/nonexistent", "AWS_PROFILE=", "AWS_SESSION_TOKEN="}
}

// Setenv gives these credentials to the test's own process.
func (s *Server) Setenv(t testing.TB) {
	for _, v := range s.Environ() {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
}

// Requests returns what came since the last call.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.requests
	s.requests = nil
	return all
}

// Ops counts requests by their operation.
func Ops(requests []Request) map[string]int {
	n := map[string]int{}
	for _, r := range requests {
		n[r.Op]++
	}
	return n
}

// Keys lists the objects there are.
func (s *Server) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.objects))
}

// Put stores an object behind everybody's back.
func (s *Server) Put(key string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.storeLocked(key, data, http.Header{})
}

// Uploads counts the unfinished uploads.
func (s *Server) Uploads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.uploads)
}

// call is one request on its way through the server.
type call struct {
	s    *Server
	r    *http.Request
	w    http.ResponseWriter
	key  string
	body []byte
	Request
}

// failure is an answer that is an error.
type failure struct {
	status        int
	code, message string
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	c := &call{s: s, r: r, w: &lateWriter{header: http.Header{}}}
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	c.key = key
	c.Request = Request{Op: operation(r, key), Key: key, SSE: r.Header.Get("x-amz-server-side-encryption"),
		SSEKey: r.Header.Get("x-amz-server-side-encryption-aws-kms-key-id"), IfMatch: r.Header.Get("If-Match")}
	if r.Header.Get("If-None-Match") == "*" {
		c.IfMatch = "absent"
	}
	late := c.w.(*lateWriter)
	late.header.Set("Date", time.Now().Add(s.o.Clock).UTC().Format(http.TimeFormat))
	if f := c.handle(bucket); f != nil {
		c.fail(*f)
	}
	c.Status = late.status()
	s.mu.Lock()
	s.requests = append(s.requests, c.Request)
	s.mu.Unlock()
	if s.o.Lose != nil && s.o.Lose(c.Request) {
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			conn.Close()
		}
		return
	}
	maps.Copy(w.Header(), late.header)
	w.WriteHeader(late.status())
	w.Write(late.body)
}

// lateWriter keeps an answer until it is known whether it is sent.
type lateWriter struct {
	header http.Header
	code   int
	body   []byte // may be an object's own: it is appended to by copying
}

func (l *lateWriter) Header() http.Header  { return l.header }
func (l *lateWriter) WriteHeader(code int) { l.code = code }
func (l *lateWriter) status() int          { return max(l.code, http.StatusOK) }

func (l *lateWriter) Write(p []byte) (int, error) {
	if l.body == nil {
		l.body = slices.Clip(p)
	} else {
		l.body = append(l.body, p...)
	}
	return len(p), nil
}

func operation(r *http.Request, key string) string {
	q := r.URL.Query()
	copied := r.Header.Get("x-amz-copy-source") != ""
	switch {
	case key == "" && q.Has("location"):
		return "location"
	case key == "" && q.Has("uploads"):
		return "uploads"
	case key == "" && q.Has("delete"):
		return "bulk-delete"
	case key == "":
		return "list"
	case r.Method == http.MethodPost && q.Has("uploads"):
		return "new-upload"
	case r.Method == http.MethodPut && q.Has("uploadId") && copied:
		return "copy-part"
	case r.Method == http.MethodPut && q.Has("uploadId"):
		return "put-part"
	case r.Method == http.MethodPost && q.Has("uploadId"):
		return "complete"
	case r.Method == http.MethodDelete && q.Has("uploadId"):
		return "abort"
	case r.Method == http.MethodPut && copied:
		return "copy"
	}
	return strings.ToLower(r.Method)
}

// handle answers, or says which error to answer with.
func (c *call) handle(bucket string) *failure {
	switch {
	case c.r.Header.Get("Authorization") == "":
		return &failure{http.StatusForbidden, "AccessDenied", "anonymous"}
	case bucket != Bucket:
		return &failure{http.StatusNotFound, "NoSuchBucket", bucket}
	}
	o := c.s.o
	lacks := map[string]Refusal{"copy": o.Copy, "copy-part": o.PartCopy, "bulk-delete": o.BulkDelete,
		"uploads": o.ListUploads, "abort": o.Abort, "delete": o.Delete}[c.Op]
	if lacks.Status != 0 {
		return &failure{lacks.Status, lacks.Code, "this store cannot do that"}
	}
	if f := c.readBody(); f != nil {
		return f
	}
	handler, ok := map[string]func() *failure{
		"get": c.get, "put": c.put, "copy": c.copyObject, "delete": c.delete, "bulk-delete": c.bulkDelete, "list": c.list,
		"uploads": c.listUploads, "location": c.location, "new-upload": c.newUpload, "put-part": c.putPart,
		"copy-part": c.copyPart, "complete": c.complete, "abort": c.abort,
	}[c.Op]
	if !ok {
		return &failure{http.StatusMethodNotAllowed, "MethodNotAllowed", c.Op}
	}
	return handler()
}

// readBody reads the body and compares it with the sums that came with it.
func (c *call) readBody() *failure {
	c.body = make([]byte, max(c.r.ContentLength, 0))
	if _, err := io.ReadFull(c.r.Body, c.body); err != nil {
		return &failure{http.StatusBadRequest, "IncompleteBody", err.Error()}
	}
	if want := c.r.Header.Get("Content-MD5"); want != "" {
		sum := md5.Sum(c.body)
		if base64.StdEncoding.EncodeToString(sum[:]) != want {
			return &failure{http.StatusBadRequest, "BadDigest", "Content-MD5"}
		}
	}
	if want := c.r.Header.Get("x-amz-content-sha256"); len(want) == 2*sha256.Size {
		sum := sha256.Sum256(c.body)
		if hex.EncodeToString(sum[:]) != want {
			return &failure{http.StatusBadRequest, "XAmzContentSHA256Mismatch", "x-amz-content-sha256"}
		}
	} else if strings.HasPrefix(want, "STREAMING-") {
		return &failure{http.StatusNotImplemented, "NotImplemented", want}
	}
	return nil
}

func (c *call) fail(f failure) {
	if f.status == http.StatusNotModified {
		c.w.WriteHeader(f.status)
		return
	}
	if f.code == "" {
		c.w.Header().Set("Content-Type", "text/html")
		c.w.WriteHeader(f.status)
		c.w.Write(fmt.Appendf(nil, "<html><title>Error %d</title><p>That's an error.", f.status)) // Fprintf reuses its buffer
		return
	}
	c.xml(f.status, struct {
		XMLName       xml.Name `xml:"Error"`
		Code, Message string
	}{Code: f.code, Message: f.message})
}

func (c *call) xml(status int, value any) {
	text, err := xml.Marshal(value)
	if err != nil {
		panic(err) // strings and numbers
	}
	c.w.Header().Set("Content-Type", "application/xml")
	c.w.WriteHeader(status)
	c.w.Write(append([]byte(xml.Header), text...))
}
