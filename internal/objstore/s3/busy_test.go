package s3

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/retry"
)

// TestRetryAfter: what an overloaded server says of when to come back reaches the
// policy, whichever way it says that it is overloaded, and is kept to.
func TestRetryAfter(t *testing.T) {
	date := time.Now().Add(40 * time.Second).UTC().Format(http.TimeFormat)
	for _, test := range []struct {
		name, header string
		status       int
		code         string // "": a proxy's page
		slow         bool
		least, most  time.Duration
	}{
		{"seconds", "7", 503, "SlowDown", true, 7 * time.Second, 7 * time.Second},
		{"a date", date, 503, "ServiceUnavailable", false, 30 * time.Second, 41 * time.Second},
		{"a proxy's page", "3", 503, "", false, 3 * time.Second, 3 * time.Second},
		{"429", "2", 429, "", true, 2 * time.Second, 2 * time.Second},
		{"in an answer 200", "4", 200, "SlowDown", true, 4 * time.Second, 4 * time.Second},
		{"nothing", "", 503, "SlowDown", true, 0, 0},
		{"nonsense", "soon", 500, "InternalError", false, 0, 0},
		{"a date that has passed", "Mon, 23 Nov 2020 10:00:00 GMT", 503, "SlowDown", true, 0, 0},
		{"for ever", "99999999999", 503, "SlowDown", true, time.Hour, time.Hour},
	} {
		var down atomic.Bool
		down.Store(true)
		f := newFake(t, func(_ int, w http.ResponseWriter, r *http.Request) {
			if !down.Load() {
				w.Header().Set("ETag", `"e"`)
				io.WriteString(w, `<CopyObjectResult><ETag>"e"</ETag></CopyObjectResult>`)
				return
			}
			if test.header != "" {
				w.Header().Set("Retry-After", test.header)
			}
			if test.code == "" {
				http.Error(w, "<html>busy</html>", test.status)
				return
			}
			s3Error(w, test.status, test.code, "Reduce your request rate.")
		})
		copying := func(s objstore.Store) error {
			_, err := s.Copy(t.Context(), "k", objstore.Object{Key: "src", Size: 1, ETag: "e"}, objstore.CopyOptions{})
			return err
		}
		err := copying(f.store())
		var e *objstore.Error
		if !errors.As(err, &e) || e.Kind != objstore.ErrUnavailable || e.Busy != test.slow || e.RetryAfter < test.least || e.RetryAfter > test.most {
			t.Errorf("%s: %v: %+v", test.name, err, e)
		}
		if test.least == 0 || test.least == time.Hour {
			continue
		}
		var waited time.Duration
		patient := retry.New(retry.Options{Policy: retry.Patient, Wait: func(_ context.Context, d time.Duration) error {
			down.Store(false)
			waited += d
			return nil
		}})
		if err := copying(patient.Over(f.store())); err != nil || waited < test.least-time.Second || waited > test.most+2*time.Second {
			t.Errorf("%s: came back after %v: %v", test.name, waited, err)
		}
	}
}

// TestClockWrongByADay: whatever a server says to a request whose time is wrong, the
// error is about the clock, and is not repeated.
func TestClockWrongByADay(t *testing.T) {
	for _, code := range []string{"RequestTimeTooSkewed", "AccessDenied", "SignatureDoesNotMatch"} {
		for _, off := range []time.Duration{24 * time.Hour, -24 * time.Hour, time.Minute} {
			f := newFake(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
				s3Error(w, 403, code, "no")
			})
			_, err := repeating(f.store()).Put(t.Context(), "k", strings.NewReader("x"), 1, objstore.PutOptions{})
			clock := strings.Contains(err.Error(), "clocks differ") && strings.Contains(exitcode.Hint(err), "clock")
			if want := off.Abs() > time.Hour || code == "RequestTimeTooSkewed"; clock != want || objstore.KindOf(err) != objstore.ErrRefused {
				t.Errorf("%s, the clock %v off: %v (hint %q)", code, off, err, exitcode.Hint(err))
			}
			if n := len(f.seen()); n != 1 {
				t.Errorf("%s: asked %d times", code, n)
			}
		}
	}
}

// TestListAfter: a listing goes on behind a key, also where the server does not heed
// that it should.
func TestListAfter(t *testing.T) {
	f := newFake(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `<ListBucketResult><Name>bucket</Name><Prefix>chromadb/dir/</Prefix>`)
		for _, key := range []string{"a", "b", "c", "d"} {
			io.WriteString(w, `<Contents><Key>chromadb/dir/`+key+`</Key><Size>1</Size><ETag>"e"</ETag></Contents>`)
		}
		io.WriteString(w, `</ListBucketResult>`)
	})
	var got []string
	for o, err := range f.store().ListAfter(t.Context(), "dir/", "dir/b") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, o.Key)
	}
	if strings.Join(got, " ") != "dir/c dir/d" {
		t.Errorf("listed %q", got)
	}
	if seen := f.seen(); len(seen) != 1 || !strings.Contains(seen[0], "start-after=chromadb%2Fdir%2Fb") {
		t.Errorf("requests: %q", seen)
	}
}
