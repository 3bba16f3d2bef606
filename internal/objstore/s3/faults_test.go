package s3

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/retry"
	"github.com/chromafs/chromafs/internal/objstore/storetest"
)

// TestPutIsOneVerifiedRequest is O1 and O2: whatever its size, a put is one request
// with its condition and its MD5, and without trailing or other checksums, which
// break minio-go's retries.
func TestPutIsOneVerifiedRequest(t *testing.T) {
	data := storetest.Bytes(1, 17<<20) // above the size from which minio-go makes parts
	sum := md5.Sum(data)
	f := newFake(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("received %d bytes, not those that were sent (chunked signatures?): %v", len(got), err)
		}
		if r.Header.Get("If-Match") != `"state"` || r.Header.Get("Content-Md5") != base64.StdEncoding.EncodeToString(sum[:]) {
			t.Errorf("If-Match %s, Content-MD5 %s", r.Header.Get("If-Match"), r.Header.Get("Content-Md5"))
		}
		for name := range r.Header {
			if l := strings.ToLower(name); strings.Contains(l, "checksum") || strings.Contains(l, "trailer") {
				t.Errorf("header %s: %s", name, r.Header.Get(name))
			}
		}
		w.Header().Set("ETag", `"new"`)
	})
	made, err := f.store().Put(t.Context(), "k", bytes.NewReader(data), int64(len(data)), objstore.PutOptions{IfMatch: "state"})
	if err != nil || made.ETag != "new" {
		t.Errorf("put: %+v, %v", made, err)
	}
	if got := f.seen(); len(got) != 1 || got[0] != "PUT /bucket/chromadb/k" {
		t.Errorf("requests: %q", got)
	}
}

// flipping damages one byte of every request's body.
type flipping struct {
	io.ReadCloser
	done bool
}

func (f *flipping) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if n > 0 && !f.done {
		p[0] ^= 1
		f.done = true
	}
	return n, err
}

// TestDamageOnTheWay is O1: a byte that flips on the way is noticed on arrival, with
// and without TLS, and nothing is stored.
func TestDamageOnTheWay(t *testing.T) {
	var honest atomic.Bool
	f := newFaulty(t, func(_ int, _ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && !honest.Load() {
			r.Body = &flipping{ReadCloser: r.Body}
		}
		return false
	}, nil)
	front := tlsProxy(t, f.URL)
	for name, change := range map[string]func(*Options){
		"http":  func(*Options) {},
		"https": func(o *Options) { o.Endpoint = front },
	} {
		t.Run(name, func(t *testing.T) {
			s := f.store(change)
			data := storetest.Bytes(1, storetest.MinPart)
			_, err := s.Put(t.Context(), "k", bytes.NewReader(data), int64(len(data)), objstore.PutOptions{})
			if objstore.KindOf(err) != objstore.ErrDamaged {
				t.Errorf("put: %v", err)
			}
			up, err := s.NewUpload(t.Context(), "k")
			if err != nil {
				t.Fatal(err)
			}
			if err := up.PutPart(t.Context(), 1, bytes.NewReader(data), 0, int64(len(data))); objstore.KindOf(err) != objstore.ErrDamaged {
				t.Errorf("put part: %v", err)
			}
			for o, err := range s.List(t.Context(), "") {
				t.Errorf("stored: %+v, %v", o, err)
			}
			honest.Store(true)
			defer honest.Store(false)
			if err := up.PutPart(t.Context(), 1, bytes.NewReader(data), 0, int64(len(data))); err != nil {
				t.Errorf("the same part, undamaged: %v", err)
			}
			if err := up.Abort(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// repeating is s below the policy with which chromafs uses it, without its patience.
func repeating(s objstore.Store) objstore.Store {
	return retry.New(retry.Options{Policy: retry.Policy{Time: time.Minute, Attempts: 3, First: time.Millisecond, Most: time.Millisecond}}).Over(s)
}

// TestRepeated: a server that is busy, or breaks off, once is asked again, and gets
// the body from its start; one that stays busy is ErrUnavailable. By itself the
// adapter asks once.
func TestRepeated(t *testing.T) {
	data := storetest.Bytes(1, 300_000)
	for name, fault := range map[string]func(http.ResponseWriter){
		"503":         func(w http.ResponseWriter) { s3Error(w, 503, "SlowDown", "Reduce your request rate.") },
		"500 html":    func(w http.ResponseWriter) { http.Error(w, "<html>proxy error</html>", 500) },
		"429":         func(w http.ResponseWriter) { w.WriteHeader(429) },
		"broken line": cut,
	} {
		t.Run(name, func(t *testing.T) {
			var faults atomic.Int64
			var down atomic.Bool
			f := newFaulty(t, func(_ int, w http.ResponseWriter, r *http.Request) bool {
				if faults.Add(-1) < 0 && !down.Load() {
					return false
				}
				io.CopyN(io.Discard, r.Body, 1000)
				fault(w)
				return true
			}, nil)
			once := f.store()
			s := repeating(once)
			faults.Store(1)
			made, err := s.Put(t.Context(), "k", bytes.NewReader(data), int64(len(data)), objstore.PutOptions{IfAbsent: true})
			if err != nil {
				t.Fatal(err)
			}
			faults.Store(1)
			body, _, err := s.Get(t.Context(), "k", objstore.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, data) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			down.Store(true)
			before := len(f.seen())
			_, err = s.Copy(t.Context(), "k2", made, objstore.CopyOptions{})
			if objstore.KindOf(err) != objstore.ErrUnavailable {
				t.Errorf("copy: %v", err)
			}
			if tries := len(f.seen()) - before; tries != 3 {
				t.Errorf("asked %d times", tries)
			}
			before = len(f.seen())
			if _, err = once.Copy(t.Context(), "k2", made, objstore.CopyOptions{}); objstore.KindOf(err) != objstore.ErrUnavailable {
				t.Errorf("copy: %v", err)
			}
			if tries := len(f.seen()) - before; tries != 1 {
				t.Errorf("the adapter by itself asked %d times", tries)
			}
		})
	}
}

// TestErrorInsideSuccess: an answer 200 that holds an error is one. All are tried
// again, as S3 asks for.
func TestErrorInsideSuccess(t *testing.T) {
	var faults atomic.Int64
	code := "InternalError"
	f := newFaulty(t, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		copying := r.Header.Get("x-amz-copy-source") != ""
		completing := r.Method == http.MethodPost && r.URL.Query().Has("uploadId")
		putting := r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/put")
		if !copying && !completing && !putting || faults.Add(-1) < 0 {
			return false
		}
		s3Error(w, 200, code, "We encountered an internal error. Please try again.")
		return true
	}, nil)
	s := repeating(f.store())
	data := storetest.Bytes(1, storetest.MinPart)
	src, err := s.Put(t.Context(), "src", bytes.NewReader(data), int64(len(data)), objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	up, err := s.NewUpload(t.Context(), "joined")
	if err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		name string
		run  func() error
	}{
		{"put", func() error {
			_, err := s.Put(t.Context(), "put", strings.NewReader("x"), 1, objstore.PutOptions{})
			return err
		}},
		{"copy", func() error { _, err := s.Copy(t.Context(), "copy", src, objstore.CopyOptions{}); return err }},
		{"copy part", func() error { return up.CopyPart(t.Context(), 1, src, 0, src.Size) }},
		{"complete", func() error { _, err := up.Complete(t.Context()); return err }},
	}
	for _, step := range steps {
		for c, kind := range map[string]error{"InternalError": objstore.ErrUnavailable, "PreconditionFailed": objstore.ErrPrecondition, "AccessDenied": objstore.ErrRefused} {
			code = c
			faults.Store(1000)
			if err := step.run(); objstore.KindOf(err) != kind {
				t.Errorf("%s answered 200 with %s: %v", step.name, c, err)
			}
		}
		code = "InternalError"
		faults.Store(1)
		if err := step.run(); err != nil {
			t.Errorf("%s, the second try: %v", step.name, err)
		}
	}
}

// TestLostAnswers: the write has landed, its answer has not. A conditional put is
// ErrPrecondition, and the caller finds its own nonce; a completion finds its own
// object by itself.
func TestLostAnswers(t *testing.T) {
	var lose, gone atomic.Bool
	f := newFaulty(t, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost && r.URL.Query().Has("uploadId") && gone.Load() {
			s3Error(w, 404, "NoSuchUpload", "The specified upload does not exist.")
			return true
		}
		return false
	}, func(_ int, r *http.Request) bool {
		if (r.Method == http.MethodPut || r.Method == http.MethodPost) && lose.Swap(false) {
			gone.Store(true)
			return true
		}
		return false
	})
	s := repeating(f.store())
	first, err := s.Put(t.Context(), "manifest.json", strings.NewReader("first"), 5, objstore.PutOptions{IfAbsent: true})
	if err != nil {
		t.Fatal(err)
	}
	for text, o := range map[string]objstore.PutOptions{"by ETag": {IfMatch: first.ETag}, "create only": {IfAbsent: true}} {
		key := "manifest.json"
		if o.IfAbsent {
			key = "other.json"
		}
		lose.Store(true)
		_, err = s.Put(t.Context(), key, strings.NewReader(text), int64(len(text)), o)
		if objstore.KindOf(err) != objstore.ErrPrecondition {
			t.Errorf("%s: %v", text, err)
		}
		body, _, err := s.Get(t.Context(), key, objstore.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(body)
		body.Close()
		if string(got) != text {
			t.Errorf("%s: the store holds %q", text, got)
		}
	}

	data := storetest.Bytes(1, storetest.MinPart+10)
	up, err := s.NewUpload(t.Context(), "joined")
	if err != nil {
		t.Fatal(err)
	}
	for n, off := 1, int64(0); n <= 2; n, off = n+1, off+storetest.MinPart {
		if err := up.PutPart(t.Context(), n, bytes.NewReader(data), off, min(storetest.MinPart, int64(len(data))-off)); err != nil {
			t.Fatal(err)
		}
	}
	gone.Store(false)
	lose.Store(true)
	made, err := up.Complete(t.Context())
	if err != nil || made.Size != int64(len(data)) || made.ETag == "" {
		t.Errorf("complete, the answer lost: %+v, %v", made, err)
	}
	// The same words about an upload that another ended are no success, whether the
	// key holds another object of this size or none.
	if _, err := s.Put(t.Context(), "joined", bytes.NewReader(make([]byte, len(data))), int64(len(data)), objstore.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := up.Complete(t.Context()); objstore.KindOf(err) != objstore.ErrUnavailable {
			t.Errorf("complete of an upload that is gone: %v", err)
		}
		if err := s.Delete(t.Context(), []string{"joined"}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBrokenBodies is O5: bytes that are missing are never taken for the end.
func TestBrokenBodies(t *testing.T) {
	for name, answer := range map[string]func(w http.ResponseWriter){
		"cut": func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "1000")
			w.Write(make([]byte, 500))
			http.NewResponseController(w).Flush()
			cut(w)
		},
		"without a length": func(w http.ResponseWriter) {
			w.Write(make([]byte, 500))
			http.NewResponseController(w).Flush()
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("ETag", `"e"`)
				w.Header().Set("Last-Modified", "Mon, 23 Nov 2026 10:00:00 GMT")
				answer(w)
			})
			body, _, err := f.store().Get(t.Context(), "k", objstore.GetOptions{})
			if err == nil {
				defer body.Close()
				_, err = io.Copy(io.Discard, body)
			}
			if kind := objstore.KindOf(err); kind != objstore.ErrUnavailable && kind != objstore.ErrUnsupported {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestCounted: not even a transport that ends early without a word is believed (O5).
func TestCounted(t *testing.T) {
	r := &reader{s: newFake(t, nil).store(), ctx: t.Context(), key: "k", body: io.NopCloser(strings.NewReader("short")), left: 6}
	if got, err := io.ReadAll(r); objstore.KindOf(err) != objstore.ErrUnavailable {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestServersThatIgnore: ranges and conditions that a server overlooks are noticed.
func TestServersThatIgnore(t *testing.T) {
	f := newFake(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"current"`)
		w.Header().Set("Last-Modified", "Mon, 23 Nov 2026 10:00:00 GMT")
		w.Write([]byte("the whole object"))
	})
	s := f.store()
	for _, test := range []struct {
		o    objstore.GetOptions
		want error
	}{
		{objstore.GetOptions{Offset: 3, Length: 4}, objstore.ErrUnsupported},
		{objstore.GetOptions{Length: 4}, objstore.ErrUnsupported},
		{objstore.GetOptions{IfMatch: "old"}, objstore.ErrPrecondition},
		{objstore.GetOptions{IfNoneMatch: "current"}, objstore.ErrNotModified},
	} {
		if _, _, err := s.Get(t.Context(), "k", test.o); objstore.KindOf(err) != test.want {
			t.Errorf("get %+v: %v, want %v", test.o, err, test.want)
		}
	}
}

// TestBigCopyFails: a copy by parts that fails leaves no upload behind, and a source
// that changes in its middle is ErrPrecondition.
func TestBigCopyFails(t *testing.T) {
	var changed atomic.Bool
	var f *faulty
	f = newFaulty(t, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("x-amz-copy-source-range") != "" && f.count("PUT", "partNumber=") > 2 {
			changed.Store(true)
			s3Error(w, 412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
			return true
		}
		if r.Header.Get("x-amz-copy-source") != "" && r.Header.Get("x-amz-copy-source-if-match") == "" {
			t.Errorf("a copy is not pinned: %s", r.URL)
		}
		return false
	}, nil)
	s := f.store(func(o *Options) { o.CopyLimit, o.CopyPart = storetest.MinPart, storetest.MinPart })
	data := storetest.Bytes(1, 4*storetest.MinPart+1)
	src, err := s.Put(t.Context(), "src", bytes.NewReader(data), int64(len(data)), objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Copy(t.Context(), "dst", src, objstore.CopyOptions{})
	if objstore.KindOf(err) != objstore.ErrPrecondition || !changed.Load() {
		t.Errorf("copy: %v", err)
	}
	if left, err := s.Uploads(t.Context(), ""); err != nil || len(left) != 0 {
		t.Errorf("uploads left: %+v, %v", left, err)
	}
}

// TestBulkDelete: servers without it, and keys that minio-go leaves out silently.
func TestBulkDelete(t *testing.T) {
	bulk := func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("delete") }
	for name, answer := range map[string]func(w http.ResponseWriter){
		"unsupported":  func(w http.ResponseWriter) { s3Error(w, 501, "NotImplemented", "A header you provided implies…") },
		"not allowed":  func(w http.ResponseWriter) { s3Error(w, 405, "MethodNotAllowed", "no") },
		"says nothing": func(w http.ResponseWriter) { fmt.Fprint(w, "<DeleteResult></DeleteResult>") },
		"invalid keys": func(w http.ResponseWriter) {
			fmt.Fprint(w, "<DeleteResult><Error><Key>chromadb/a</Key><Code>InvalidArgument</Code></Error></DeleteResult>")
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFaulty(t, func(_ int, w http.ResponseWriter, r *http.Request) bool {
				if bulk(r) {
					answer(w)
					return true
				}
				return false
			}, nil)
			s := f.store()
			for _, key := range []string{"a", "b", "c"} {
				if _, err := s.Put(t.Context(), key, strings.NewReader(key), 1, objstore.PutOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Delete(t.Context(), []string{"a", "b", "missing"}); err != nil {
				t.Fatal(err)
			}
			if err := s.Delete(t.Context(), []string{"c"}); err != nil {
				t.Fatal(err)
			}
			for o, err := range s.List(t.Context(), "") {
				t.Errorf("left: %+v, %v", o, err)
			}
			if n := f.count("POST", "delete"); strings.HasPrefix(name, "not ") && n != 1 {
				t.Errorf("asked %d times for what the server cannot do", n)
			}
		})
	}
	f := newFake(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if bulk(r) {
			fmt.Fprint(w, "<DeleteResult><Deleted><Key>chromadb/a</Key></Deleted>"+
				"<Error><Key>chromadb/b</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error></DeleteResult>")
		}
	})
	err := f.store().Delete(t.Context(), []string{"a", "b"})
	if objstore.KindOf(err) != objstore.ErrRefused || !strings.Contains(err.Error(), "chromadb/b") {
		t.Errorf("one key refused: %v", err)
	}
}

// summed is a body whose SHA-256 somebody knows.
type summed struct {
	*bytes.Reader
	sum [32]byte
}

func (s summed) SHA256(off, size int64) ([32]byte, bool) { return s.sum, off == 0 && size == s.Size() }

// A sum that is known is signed as it is, one of another range is computed.
func TestKnownSumIsSigned(t *testing.T) {
	data := storetest.Bytes(1, 100)
	for known, size := range map[bool]int64{true: 100, false: 99} {
		f := newFake(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				t.Error(err)
			}
			want := fmt.Sprintf("%x", sha256.Sum256(data[:size]))
			if known {
				want = strings.Repeat("07", 32)
			}
			if got := r.Header.Get("X-Amz-Content-Sha256"); got != want {
				t.Errorf("%d bytes were signed with the sum %s, want %s", size, got, want)
			}
			w.Header().Set("ETag", `"new"`)
		})
		body := summed{bytes.NewReader(data), [32]byte(bytes.Repeat([]byte{7}, 32))}
		if _, err := f.store().Put(t.Context(), "k", body, size, objstore.PutOptions{}); err != nil {
			t.Error(err)
		}
	}
}
