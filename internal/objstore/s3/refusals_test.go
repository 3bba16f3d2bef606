package s3

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
)

// operations are all requests of a store, each with some argument.
func operations(t *testing.T, s *Store) map[string]func() error {
	src := objstore.Object{Key: "src", Size: 10, ETag: "e"}
	up := &upload{s: s, key: "u", full: "chromadb/u", id: "id", etags: map[int]string{1: "e"}, sizes: map[int]int64{1: 10}}
	return map[string]func() error{
		"get": func() error {
			body, _, err := s.Get(t.Context(), "manifest.json", objstore.GetOptions{})
			if err == nil {
				body.Close()
			}
			return err
		},
		"list": func() error {
			for _, err := range s.List(t.Context(), "") {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"put": func() error {
			_, err := s.Put(t.Context(), "k", strings.NewReader("x"), 1, objstore.PutOptions{IfAbsent: true})
			return err
		},
		"copy":         func() error { _, err := s.Copy(t.Context(), "k", src, objstore.CopyOptions{}); return err },
		"new upload":   func() error { _, err := s.NewUpload(t.Context(), "k"); return err },
		"put part":     func() error { return up.PutPart(t.Context(), 1, strings.NewReader("x"), 0, 1) },
		"copy part":    func() error { return up.CopyPart(t.Context(), 1, src, 0, 10) },
		"complete":     func() error { _, err := up.Complete(t.Context()); return err },
		"abort":        func() error { return up.Abort(t.Context()) },
		"delete":       func() error { return s.Delete(t.Context(), []string{"k", "k2"}) },
		"uploads":      func() error { _, err := s.Uploads(t.Context(), ""); return err },
		"abort upload": func() error { return s.AbortUpload(t.Context(), objstore.PendingUpload{Key: "k", ID: "id"}) },
	}
}

// TestForeignAnswers is O4 and R4: a server that is no object store, whatever it
// answers to every path, is refused by every operation, and is never taken for one
// that has no backup.
func TestForeignAnswers(t *testing.T) {
	page := "<!DOCTYPE html><html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>"
	html := func(status int, body string) func(w http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/html")
			w.Header().Set("x-minio-error-code", "NoSuchKey") // only the body counts
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}
	}
	for name, answer := range map[string]func(w http.ResponseWriter){
		"404 page":        html(404, page),
		"404 empty":       html(404, ""),
		"404 json":        html(404, `{"error":"not found"}`),
		"404 other xml":   html(404, `<?xml version="1.0"?><Failure><Code>NoSuchKey</Code></Failure>`),
		"404 two parts":   html(404, `<Error><Code>NoSuchKey</Code></Error><html></html>`),
		"404 cut off":     html(404, `<Error><Code>NoSuchKey</Code>`),
		"200 page":        html(200, page),
		"200 empty":       html(200, ""),
		"200 xhtml":       html(200, `<html><body>Welcome</body></html>`),
		"401 page":        html(401, page),
		"403 page":        html(403, page),
		"405 page":        html(405, page),
		"501 page":        html(501, page),
		"400 page":        html(400, page),
		"200 for another": html(200, `<ListBucketResult><Name>other</Name><Prefix></Prefix></ListBucketResult>`),
		"302": func(w http.ResponseWriter) {
			w.Header().Set("Location", "https://login.example.com/")
			w.WriteHeader(302)
		},
	} {
		for _, region := range []string{"us-east-1", ""} { // with "" the region is asked for first
			t.Run(name+" "+region, func(t *testing.T) {
				f := newFake(t, func(_ int, w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodHead {
						t.Errorf("HEAD %s", r.URL)
					}
					answer(w)
				})
				s := f.store(func(o *Options) { o.Region = region })
				for op, run := range operations(t, s) {
					if err := run(); objstore.KindOf(err) != objstore.ErrRefused || exitcode.Of(err) != exitcode.Store ||
						!strings.Contains(exitcode.Hint(err), "--s3-endpoint") {
						t.Errorf("%s: %v (hint %q)", op, err, exitcode.Hint(err))
					}
				}
			})
		}
	}
}

// listing answers a listing with this content.
func listing(name, prefix, rest string) string {
	return fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`+
		`<Name>%s</Name><Prefix>%s</Prefix><EncodingType>url</EncodingType>%s</ListBucketResult>`, name, prefix, rest)
}

func contents(keys ...string) string {
	var b strings.Builder
	for _, key := range keys {
		fmt.Fprintf(&b, `<Contents><Key>%s</Key><LastModified>2026-11-23T10:00:00.000Z</LastModified><ETag>"e"</ETag><Size>1</Size></Contents>`, key)
	}
	return b.String()
}

// TestListings is R4: only what is whole, in order, and about what was asked counts.
func TestListings(t *testing.T) {
	const more = `<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>`
	for name, test := range map[string]struct {
		pages []string
		want  []string
		kind  error
	}{
		"empty":           {[]string{listing("bucket", "chromadb%2F", "")}, nil, nil},
		"folders of a UI": {[]string{listing("bucket", "chromadb%2F", contents("chromadb/", "chromadb/a", "chromadb/history/"))}, []string{"a"}, nil},
		"escaped": {[]string{listing("bucket", "chromadb/", contents("chromadb%2Fa+b", "chromadb%2Fa%2Bb", "chromadb%2F%C3%A9"))},
			[]string{"a b", "a+b", "é"}, nil},
		"pages": {[]string{listing("bucket", "chromadb%2F", contents("chromadb/a")+more), listing("bucket", "chromadb%2F", contents("chromadb/b"))},
			[]string{"a", "b"}, nil},
		"other bucket":       {[]string{listing("bucket2", "chromadb%2F", "")}, nil, objstore.ErrRefused},
		"other prefix":       {[]string{listing("bucket", "", "")}, nil, objstore.ErrRefused},
		"no echo":            {[]string{`<ListBucketResult></ListBucketResult>`}, nil, objstore.ErrRefused},
		"other root":         {[]string{`<ListAllMyBucketsResult><Name>bucket</Name><Prefix>chromadb/</Prefix></ListAllMyBucketsResult>`}, nil, objstore.ErrRefused},
		"cut off":            {[]string{strings.TrimSuffix(listing("bucket", "chromadb%2F", ""), "</ListBucketResult>")}, nil, objstore.ErrRefused},
		"foreign keys":       {[]string{listing("bucket", "chromadb%2F", contents("other/a"))}, nil, objstore.ErrRefused},
		"same page again":    {[]string{listing("bucket", "chromadb%2F", contents("chromadb/a")+more), listing("bucket", "chromadb%2F", contents("chromadb/a")+more)}, []string{"a"}, objstore.ErrRefused},
		"second page fails":  {[]string{listing("bucket", "chromadb%2F", contents("chromadb/a")+more), "<html></html>"}, []string{"a"}, objstore.ErrRefused},
		"second page denied": {[]string{listing("bucket", "chromadb%2F", contents("chromadb/a")+more), "AccessDenied"}, []string{"a"}, objstore.ErrRefused},
		"no way on":          {[]string{listing("bucket", "chromadb%2F", contents("chromadb/a")+`<IsTruncated>true</IsTruncated>`)}, nil, objstore.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, func(n int, w http.ResponseWriter, _ *http.Request) {
				if n >= len(test.pages) {
					t.Error("a page too many was asked for")
				}
				page := test.pages[min(n, len(test.pages)-1)]
				if page == "AccessDenied" {
					s3Error(w, 403, page, "Access Denied")
					return
				}
				fmt.Fprint(w, page)
			})
			var got []string
			var failed error
			for o, err := range f.store().List(t.Context(), "") {
				if failed != nil {
					t.Fatal("the listing goes on after an error")
				}
				if err != nil {
					failed = err
					continue
				}
				got = append(got, o.Key)
			}
			if strings.Join(got, ",") != strings.Join(test.want, ",") || objstore.KindOf(failed) != test.kind {
				t.Errorf("got %q, %v; want %q, %v", got, failed, test.want, test.kind)
			}
		})
	}
}

// TestKinds: what the store says, by code and status, and what a person can do.
func TestKinds(t *testing.T) {
	for _, test := range []struct {
		status     int
		code       string
		kind       error
		text, hint string
	}{
		{404, "NoSuchKey", objstore.ErrNotFound, "", ""},
		{404, "NoSuchBucket", objstore.ErrRefused, "", "bucket"},
		{403, "AccessDenied", objstore.ErrRefused, "", "s3:GetObject"},
		{403, "InvalidAccessKeyId", objstore.ErrRefused, "", "AWS_ACCESS_KEY_ID"},
		{403, "SignatureDoesNotMatch", objstore.ErrRefused, "", "AWS_SECRET_ACCESS_KEY"},
		{403, "RequestTimeTooSkewed", objstore.ErrRefused, "clocks differ", "clock"},
		{400, "AuthorizationHeaderMalformed", objstore.ErrRefused, "", "--s3-region"},
		{301, "PermanentRedirect", objstore.ErrRefused, "", "--s3-region"},
		{400, "ExpiredToken", objstore.ErrRefused, "", "expired"},
		{400, "InvalidArgument", objstore.ErrRefused, "", ""},
		{409, "ConditionalRequestConflict", objstore.ErrPrecondition, "", ""},
		{409, "OperationAborted", objstore.ErrUnavailable, "", ""},
		{409, "ObjectParentIsFile", objstore.ErrRefused, "", ""},
		{412, "PreconditionFailed", objstore.ErrPrecondition, "", ""},
		{416, "InvalidRange", objstore.ErrRange, "", ""},
		{400, "BadDigest", objstore.ErrDamaged, "", ""},
		{501, "NotImplemented", objstore.ErrUnsupported, "", ""},
		{405, "MethodNotAllowed", objstore.ErrUnsupported, "", ""},
		{503, "SlowDown", objstore.ErrUnavailable, "", ""},
		{500, "InternalError", objstore.ErrUnavailable, "", ""},
		{429, "TooManyRequests", objstore.ErrUnavailable, "", ""},
		{504, "GatewayTimeout", objstore.ErrUnavailable, "", ""},
	} {
		f := newFake(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
			s3Error(w, test.status, test.code, "what the store says")
		})
		_, _, err := f.store().Get(t.Context(), "k", objstore.GetOptions{})
		if objstore.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.text) || !strings.Contains(exitcode.Hint(err), test.hint) ||
			!strings.Contains(err.Error(), "s3://bucket/chromadb/k") {
			t.Errorf("%d %s: %v (hint %q), want %v", test.status, test.code, err, exitcode.Hint(err), test.kind)
		}
	}
}

// TestSecretsStaySecret: a server that repeats all it was told puts no credentials
// into errors or logs.
func TestSecretsStaySecret(t *testing.T) {
	for _, status := range []int{200, 403, 404, 500} {
		for _, xml := range []bool{true, false} {
			f := newFake(t, func(_ int, w http.ResponseWriter, r *http.Request) {
				told := fmt.Sprint(r.Header["Authorization"], " ", r.Header["X-Amz-Security-Token"])
				if xml {
					s3Error(w, status, "AccessDenied", told)
					return
				}
				w.WriteHeader(status)
				fmt.Fprint(w, told)
			})
			var log bytes.Buffer
			s := f.store(func(o *Options) {
				o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			})
			t.Setenv("AWS_SESSION_TOKEN", "TESTSESSIONTOKEN")
			for op, run := range operations(t, s) {
				err := run()
				if err == nil {
					t.Errorf("%d: %s succeeded", status, op)
					continue
				}
				text := fmt.Sprintf("%v %+v %#v %s %s", err, err, err, exitcode.Hint(err), log.String())
				for _, secret := range []string{"TESTACCESSKEY", "TESTSECRETKEY", "TESTSESSIONTOKEN", "Signature="} {
					if strings.Contains(text, secret) {
						t.Errorf("%d: %s tells %s: %s", status, op, secret, text)
					}
				}
			}
		}
	}
}

// TestCredentials: the order of the chain, and the advice to those who have none.
func TestCredentials(t *testing.T) {
	var key string
	f := newFake(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		key = ""
		if m := accessKey.FindStringSubmatch(r.Header.Get("Authorization")); m != nil {
			key = m[1]
		}
		s3Error(w, 403, "AccessDenied", "Access Denied.")
	})
	used := func(want string) error {
		t.Helper()
		s := newStore(t, Options{Endpoint: f.URL, Bucket: "bucket", Region: "us-east-1"})
		_, _, err := s.Get(t.Context(), "k", objstore.GetOptions{})
		if key != want {
			t.Errorf("the request was signed by %q, want %q", key, want)
		}
		return err
	}
	credentialsOf(t, "", "")
	err := used("")
	if objstore.KindOf(err) != objstore.ErrRefused || !strings.Contains(err.Error(), "no credentials") ||
		!strings.Contains(exitcode.Hint(err), "AWS_ACCESS_KEY_ID") {
		t.Errorf("without credentials: %v, hint %q", err, exitcode.Hint(err))
	}
	file := filepath.Join(t.TempDir(), "credentials")
	text := "[default]\naws_access_key_id = FROMFILE\naws_secret_access_key = s\n[other]\naws_access_key_id = FROMPROFILE\naws_secret_access_key = s\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	used("FROMFILE")
	t.Setenv("AWS_PROFILE", "other")
	used("FROMPROFILE")
	t.Setenv("MINIO_ACCESS_KEY", "FROMMINIO")
	t.Setenv("MINIO_SECRET_KEY", "s")
	used("FROMMINIO")
	t.Setenv("AWS_ACCESS_KEY_ID", "FROMENV")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	used("FROMENV")
}

// TestConnections: servers that are not there, or speak another protocol.
func TestConnections(t *testing.T) {
	credentialsOf(t, "a", "s")
	get := func(endpoint string) error {
		t.Helper()
		s := newStore(t, Options{Endpoint: endpoint, Bucket: "bucket", Region: "us-east-1"})
		_, _, err := s.Get(t.Context(), "k", objstore.GetOptions{})
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := get("http://" + l.Addr().String()); objstore.KindOf(err) != objstore.ErrUnavailable {
		t.Errorf("nothing listens: %v", err)
	}
	plain := newFake(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) })
	err = get(strings.TrimPrefix(plain.URL, "http://"))
	if objstore.KindOf(err) != objstore.ErrRefused || !strings.Contains(exitcode.Hint(err), "http://") {
		t.Errorf("plain HTTP where TLS was expected: %v, hint %q", err, exitcode.Hint(err))
	}
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { s3Error(w, 404, "NoSuchKey", "") }))
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{ownCertificate(t)}}
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	err = get(secure.URL)
	if objstore.KindOf(err) != objstore.ErrRefused || !strings.Contains(exitcode.Hint(err), "SSL_CERT_FILE") {
		t.Errorf("a certificate that nobody vouches for: %v, hint %q", err, exitcode.Hint(err))
	}
	trust(t, secure)
	if err := get(secure.URL); objstore.KindOf(err) != objstore.ErrNotFound {
		t.Errorf("the same, trusted: %v", err)
	}
}

// ownCertificate makes one that no other test trusts: Go reads SSL_CERT_FILE once.
func ownCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestRealServer: what versitygw says of a wrong bucket, key and secret.
func TestRealServer(t *testing.T) {
	f := newFaulty(t, nil, nil)
	for name, change := range map[string]func(s **Store){
		"no such bucket": func(s **Store) { *s = f.store(func(o *Options) { o.Bucket = "nothing-here" }) },
		"wrong key":      func(s **Store) { *s = f.store(); credentialsOf(t, "wrong", f.server.SecretKey) },
		"wrong secret":   func(s **Store) { *s = f.store(); credentialsOf(t, f.server.AccessKey, "wrong") },
		"no key":         func(s **Store) { *s = f.store(); credentialsOf(t, "", "") },
		"wrong region":   func(s **Store) { *s = f.store(func(o *Options) { o.Region = "eu-west-7" }) },
	} {
		t.Run(name, func(t *testing.T) {
			var s *Store
			change(&s)
			for op, run := range operations(t, s) {
				if err := run(); objstore.KindOf(err) != objstore.ErrRefused || exitcode.Hint(err) == "" {
					t.Errorf("%s: %v (hint %q)", op, err, exitcode.Hint(err))
				}
			}
		})
	}
	s := f.store()
	f.server.Stop()
	for op, run := range operations(t, s) {
		if err := run(); !errors.Is(err, objstore.ErrUnavailable) {
			t.Errorf("%s, the server down: %v", op, err)
		}
	}
	f.server.Restart()
	_, _, err := s.Get(t.Context(), "k", objstore.GetOptions{})
	if objstore.KindOf(err) != objstore.ErrNotFound {
		t.Errorf("get, the server up again: %v", err)
	}
}
