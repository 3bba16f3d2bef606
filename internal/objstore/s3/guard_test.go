package s3

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// answering is a transport that gives one answer.
type answering struct {
	status int
	body   []byte
}

func (a answering) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(a.body))}, nil
}

// FuzzGuard: whatever a server answers to a listing, what passes as one echoes bucket
// and prefix, and what passes as a missing key is a whole S3 error that says so.
func FuzzGuard(f *testing.F) {
	f.Add(200, []byte(listing("bucket", "chromadb%2F", contents("chromadb/a"))))
	f.Add(200, []byte(`<ListBucketResult><Name>bucket</Name><Prefix>chromadb/</Prefix></ListBucketResult><html>`))
	f.Add(404, []byte(`<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>`))
	f.Add(404, []byte(`<Error><Code>NoSuchKey</Code></Error> trailing`))
	f.Add(403, []byte("<html>\xff</html>"))
	f.Add(200, []byte(`<Error><Code>SlowDown</Code></Error>`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		if status < 200 || status > 599 {
			t.Skip("no status of an answer")
		}
		g := &guard{next: answering{status, body}, bucket: "bucket", now: time.Now}
		req, err := http.NewRequest(http.MethodGet, "http://host/bucket/?list-type=2&prefix=chromadb%2F", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := g.RoundTrip(req)
		if err != nil {
			return
		}
		out, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		a, perr := parse(out)
		switch {
		case resp.StatusCode < 300:
			if perr != nil || a.XMLName.Local != "ListBucketResult" || a.Name != "bucket" || !strings.HasPrefix(a.Prefix, "chromadb") {
				t.Errorf("passes as a listing: %q", out)
			}
		case resp.StatusCode == 404:
			if perr != nil || a.XMLName.Local != "Error" || a.Code == "" {
				t.Errorf("passes as an error of the store: %q", out)
			}
			if original, oerr := parse(body); a.Code == "NoSuchKey" && (oerr != nil || original.Code != "NoSuchKey") {
				t.Errorf("%q passes as a missing key", body)
			}
		}
	})
}

// TestFence: after an answer nothing is read of a body, not even by a writer that was
// in the middle of it.
func TestFence(t *testing.T) {
	var kept io.Reader
	g := &guard{bucket: "bucket", now: time.Now, next: roundTrip(func(req *http.Request) (*http.Response, error) {
		kept = req.Body
		if _, err := kept.Read(make([]byte, 2)); err != nil {
			t.Errorf("before the answer: %v", err)
		}
		return &http.Response{StatusCode: 412, Header: http.Header{}, Body: http.NoBody}, nil
	})}
	body := strings.NewReader("content")
	req, err := http.NewRequest(http.MethodPut, "http://host/bucket/k", body)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.RoundTrip(req); err != nil {
		t.Fatal(err)
	}
	if n, err := kept.Read(make([]byte, 2)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("after the answer: read %d bytes, %v", n, err)
	}
	if body.Len() != len("content")-2 {
		t.Errorf("%d bytes are left of the caller's body", body.Len())
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
