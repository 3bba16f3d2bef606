package s3

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/adapt"
	"github.com/chromafs/chromafs/internal/objstore/storetest"
	"github.com/chromafs/chromafs/internal/testutil/fakes3"
)

// onFake returns a store on a server in memory.
func onFake(t *testing.T, server *fakes3.Server, change ...func(*Options)) *Store {
	t.Helper()
	credentialsOf(t, "TESTACCESSKEY", "TESTSECRETKEY")
	o := Options{Endpoint: server.URL, Bucket: fakes3.Bucket, Prefix: "chromadb", Region: "us-east-1"}
	for _, c := range change {
		c(&o)
	}
	return newStore(t, o)
}

// TestConformanceInMemory shows that the server in memory is a store like others, so
// that tests against its switches mean something. Nothing is left to ETags: they are
// as under a KMS key. Between is the layer that does without what a store lacks: where
// nothing is known to be lacking it changes nothing.
func TestConformanceInMemory(t *testing.T) {
	sse, err := ParseSSE("kms")
	if err != nil {
		t.Fatal(err)
	}
	storetest.Run(t, func(t *testing.T) objstore.Store {
		return adapt.New(onFake(t, fakes3.New(t, fakes3.Options{Page: 500, EqualParts: true}), func(o *Options) { o.SSE = sse }))
	})
}

// refusals are the ways in which stores and front ends say that they cannot.
var refusals = []fakes3.Refusal{
	{Status: http.StatusNotImplemented, Code: "NotImplemented"},
	{Status: http.StatusLengthRequired, Code: "MissingContentLength"},
	{Status: http.StatusLengthRequired},
	{Status: http.StatusMethodNotAllowed, Code: "MethodNotAllowed"},
	{Status: http.StatusMethodNotAllowed},
	{Status: http.StatusNotImplemented},
	{Status: http.StatusForbidden, Code: "AccessDenied"},
}

// A big object is copied whole where no parts are copied, and that is tried once.
func TestBigCopyWithoutParts(t *testing.T) {
	for _, refusal := range refusals {
		t.Run(fmt.Sprint(refusal), func(t *testing.T) {
			server := fakes3.New(t, fakes3.Options{PartCopy: refusal})
			s := onFake(t, server, func(o *Options) { o.CopyLimit = 10 })
			data := []byte("more than ten bytes")
			src, err := s.Put(t.Context(), "src", bytes.NewReader(data), int64(len(data)), objstore.PutOptions{})
			if err != nil {
				t.Fatal(err)
			}
			server.Requests()
			for i, want := range []map[string]int{{"new-upload": 1, "copy-part": 1, "abort": 1, "copy": 1}, {"copy": 1}} {
				if _, err := s.Copy(t.Context(), fmt.Sprintf("dst%d", i), src, objstore.CopyOptions{}); err != nil {
					t.Fatal(err)
				}
				if got := fakes3.Ops(server.Requests()); !maps.Equal(got, want) {
					t.Errorf("copy %d asked for %v, want %v", i, got, want)
				}
			}
			if server.Uploads() != 0 {
				t.Error("an unfinished upload was left")
			}
		})
	}
}

// Where neither works the error says both, and a source that is gone stays that.
func TestBigCopyWithoutAny(t *testing.T) {
	refusal := refusals[0]
	server := fakes3.New(t, fakes3.Options{PartCopy: refusal, Copy: refusal})
	s := onFake(t, server, func(o *Options) { o.CopyLimit = 1 })
	src, err := s.Put(t.Context(), "src", strings.NewReader("xx"), 2, objstore.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Copy(t.Context(), "dst", src, objstore.CopyOptions{}); objstore.KindOf(err) != objstore.ErrUnsupported {
		t.Errorf("copy: %v", err)
	}
	if s.noParts.Load() {
		t.Error("what was copied neither way is taken for copied whole")
	}
}

// Deletes go one by one, however the store says that it takes no list.
func TestDeleteWithoutLists(t *testing.T) {
	for _, refusal := range refusals {
		t.Run(fmt.Sprint(refusal), func(t *testing.T) {
			server := fakes3.New(t, fakes3.Options{BulkDelete: refusal})
			s := onFake(t, server)
			server.Put("chromadb/a", nil)
			server.Put("chromadb/b", nil)
			if err := s.Delete(t.Context(), []string{"a", "b", "missing"}); err != nil {
				t.Fatal(err)
			}
			if keys := server.Keys(); len(keys) != 0 {
				t.Errorf("left: %q", keys)
			}
			if s.NoBulkDelete() == nil {
				t.Error("nothing was learned")
			}
		})
	}
	server := fakes3.New(t, fakes3.Options{})
	s := onFake(t, server)
	if err := s.Delete(t.Context(), []string{"a", "b"}); err != nil || s.NoBulkDelete() != nil {
		t.Errorf("%v, %v", err, s.NoBulkDelete())
	}
	if err := s.Delete(t.Context(), []string{"a"}); err != nil {
		t.Error(err)
	}
	if got := fakes3.Ops(server.Requests()); got["bulk-delete"] != 1 || got["delete"] != 1 {
		t.Errorf("requests %v", got)
	}
}

// Every write says how it is to be encrypted; the parts of an upload do not, their
// upload has.
func TestEncryption(t *testing.T) {
	for text, want := range map[string][2]string{
		"": {}, "none": {}, "s3": {"AES256"}, "AES256": {"AES256"}, "kms": {"aws:kms"}, "aws:kms": {"aws:kms"},
		"kms:1234": {"aws:kms", "1234"}, "aws:kms:arn:aws:kms:eu-west-1:1:key/k": {"aws:kms", "arn:aws:kms:eu-west-1:1:key/k"},
	} {
		t.Run(text, func(t *testing.T) {
			sse, err := ParseSSE(text)
			if err != nil {
				t.Fatal(err)
			}
			server := fakes3.New(t, fakes3.Options{})
			s := onFake(t, server, func(o *Options) { o.SSE = sse; o.CopyLimit = 5 })
			small, err := s.Put(t.Context(), "small", strings.NewReader("small"), 5, objstore.PutOptions{IfAbsent: true})
			if err != nil {
				t.Fatal(err)
			}
			big, err := s.Put(t.Context(), "big", strings.NewReader("bigger"), 6, objstore.PutOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, src := range []objstore.Object{small, big} {
				if _, err := s.Copy(t.Context(), "copy of "+src.Key, src, objstore.CopyOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			seen := map[string]int{}
			for _, r := range server.Requests() {
				expect := [2]string{}
				switch r.Op {
				case "put", "copy", "new-upload":
					expect = want
					seen[r.Op]++
				}
				if got := [2]string{r.SSE, r.SSEKey}; got != expect {
					t.Errorf("%s %s asks for the encryption %q, want %q", r.Op, r.Key, got, expect)
				}
			}
			if seen["put"] != 2 || seen["copy"] != 1 || seen["new-upload"] != 1 {
				t.Errorf("writes seen: %v", seen)
			}
		})
	}
	for _, wrong := range []string{"sse", "aws:", "kms:", "s3:key", "kms:a\nb", "aws:s3x"} {
		if _, err := ParseSSE(wrong); err == nil {
			t.Errorf("ParseSSE(%q) succeeded", wrong)
		}
	}
}

// The answer to a Complete is lost: the object is found by what the upload put into
// its metadata. ETags tell nothing under a KMS key.
func TestLostCompleteUnderKMS(t *testing.T) {
	sse, err := ParseSSE("kms")
	if err != nil {
		t.Fatal(err)
	}
	var lost atomic.Int64
	server := fakes3.New(t, fakes3.Options{Lose: func(r fakes3.Request) bool {
		return r.Op == "complete" && r.Status == http.StatusOK && lost.Add(1) == 1
	}})
	s := onFake(t, server, func(o *Options) { o.SSE = sse })
	for i := range 2 { // the second replaces the first, whose answer was lost
		up, err := s.NewUpload(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("content %d", i)
		if err := up.PutPart(t.Context(), 1, strings.NewReader(text), 0, int64(len(text))); err != nil {
			t.Fatal(err)
		}
		made, err := up.Complete(t.Context())
		if err != nil {
			// A retry may be made by a layer above.
			made, err = up.Complete(t.Context())
		}
		if err != nil {
			t.Fatalf("complete %d: %v", i, err)
		}
		if _, _, err := s.get(t.Context(), "k", objstore.GetOptions{IfMatch: made.ETag}); err != nil {
			t.Errorf("complete %d returned the ETag %q: %v", i, made.ETag, err)
		}
	}
	if lost.Load() < 2 {
		t.Errorf("%d answers", lost.Load())
	}
	// Ended by another: what is there is not what these parts make, though of the same size.
	up, err := s.NewUpload(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if err := up.PutPart(t.Context(), 1, strings.NewReader("content x"), 0, 9); err != nil {
		t.Fatal(err)
	}
	if err := s.AbortUpload(t.Context(), objstore.PendingUpload{Key: "k", ID: up.ID()}); err != nil {
		t.Fatal(err)
	}
	if made, err := up.Complete(t.Context()); err == nil {
		t.Errorf("an upload that another ended was completed: %+v", made)
	}
}

func TestClockAhead(t *testing.T) {
	for _, ahead := range []time.Duration{0, time.Hour, -48 * time.Hour} {
		s := onFake(t, fakes3.New(t, fakes3.Options{Clock: ahead}))
		if _, known := s.ClockAhead(); known {
			t.Error("known before the store was asked")
		}
		for range s.List(t.Context(), "") {
		}
		if got, known := s.ClockAhead(); !known || (got-ahead).Abs() > 2*time.Second {
			t.Errorf("the store's clock is %v ahead, found %v", ahead, got)
		}
	}
}

// S3 copies at most 5 GiB in one request: what is bigger goes by parts, which are pinned
// each, leave nothing out, and are no bigger.
func TestCopyOver5GiB(t *testing.T) {
	const size = 13<<30 + 1
	var mu sync.Mutex
	ranges := map[int64]int64{} // first to last
	f := newFake(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		w.Header().Set("Content-Type", "application/xml")
		switch {
		case r.Method == http.MethodPost && q.Has("uploads"):
			fmt.Fprint(w, `<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>`)
		case r.Method == http.MethodPut && q.Has("uploadId"):
			var first, last int64
			if _, err := fmt.Sscanf(r.Header.Get("x-amz-copy-source-range"), "bytes=%d-%d", &first, &last); err != nil {
				t.Errorf("range %q: %v", r.Header.Get("x-amz-copy-source-range"), err)
			}
			if match := r.Header.Get("x-amz-copy-source-if-match"); match != "etag" {
				t.Errorf("pinned to %q", match)
			}
			mu.Lock()
			ranges[first] = last
			mu.Unlock()
			fmt.Fprint(w, `<CopyPartResult><ETag>"part"</ETag></CopyPartResult>`)
		case r.Method == http.MethodPost && q.Has("uploadId"):
			fmt.Fprint(w, `<CompleteMultipartUploadResult><Bucket>bucket</Bucket><Key>chromadb/dst</Key><ETag>"whole"</ETag></CompleteMultipartUploadResult>`)
		default:
			t.Errorf("%s %s", r.Method, r.URL)
		}
	})
	made, err := f.store().Copy(t.Context(), "dst", objstore.Object{Key: "src", Size: size, ETag: "etag"}, objstore.CopyOptions{})
	if err != nil || made.Size != size || made.ETag != "whole" {
		t.Fatalf("%+v, %v", made, err)
	}
	next := int64(0)
	for len(ranges) > 0 {
		last, ok := ranges[next]
		if !ok || last-next >= 5<<30 {
			t.Fatalf("from byte %d on: %v", next, ranges)
		}
		delete(ranges, next)
		next = last + 1
	}
	if next != size {
		t.Errorf("%d of %d bytes were copied", next, int64(size))
	}
}
