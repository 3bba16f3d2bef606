package probe_test

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/objstore/open"
	"github.com/chromafs/chromafs/internal/objstore/probe"
	"github.com/chromafs/chromafs/internal/testutil/fakes3"
)

// onFake returns the adapter for a server.
func onFake(t *testing.T, server *fakes3.Server) objstore.Store {
	t.Helper()
	server.Setenv(t)
	s, err := open.Bare("s3://"+fakes3.Bucket+"/chromadb", open.Options{Endpoint: server.URL, Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// lacking names the fields of what is lacking.
func lacking(l objstore.Lacks) string {
	var names []string
	v := reflect.ValueOf(l)
	for i := range v.NumField() {
		if v.Field(i).String() != "" {
			names = append(names, v.Type().Field(i).Name)
		}
	}
	return strings.Join(names, " ")
}

var (
	no     = fakes3.Refusal{Status: http.StatusNotImplemented, Code: "NotImplemented"}
	denied = fakes3.Refusal{Status: http.StatusForbidden, Code: "AccessDenied"}
)

// Each kind of store is told from the others, and nothing is left in it (P2).
func TestWhatStoresLack(t *testing.T) {
	for name, tc := range map[string]struct {
		options fakes3.Options
		want    string
		says    string // what some reason holds
	}{
		"nothing":               {fakes3.Options{EqualParts: true}, "", ""},
		"part copy 501":         {fakes3.Options{PartCopy: no}, "PartCopy", "does not support"},
		"part copy 411":         {fakes3.Options{PartCopy: fakes3.Refusal{Status: 411, Code: "MissingContentLength"}}, "PartCopy", ""},
		"part copy 411 page":    {fakes3.Options{PartCopy: fakes3.Refusal{Status: 411}}, "PartCopy", "411"},
		"part copy 405":         {fakes3.Options{PartCopy: fakes3.Refusal{Status: 405, Code: "MethodNotAllowed"}}, "PartCopy", ""},
		"part copy 405 page":    {fakes3.Options{PartCopy: fakes3.Refusal{Status: 405}}, "PartCopy", "405"},
		"part copy 403":         {fakes3.Options{PartCopy: denied}, "PartCopy", "cannot do that"},
		"any copy":              {fakes3.Options{Copy: no, PartCopy: no}, "Copy PartCopy", ""},
		"bulk delete":           {fakes3.Options{BulkDelete: no}, "BulkDelete", ""},
		"listing of uploads":    {fakes3.Options{ListUploads: denied}, "Uploads", ""},
		"conditions refused":    {fakes3.Options{Conditions: fakes3.Refused}, "Create Replace", "not implemented"},
		"conditions ignored":    {fakes3.Options{Conditions: fakes3.Ignored}, "Create Replace", "ignored"},
		"quoted ETags":          {fakes3.Options{Conditions: fakes3.Unquoted}, "Replace", "right one"},
		"conditions not atomic": {fakes3.Options{Conditions: fakes3.Racy}, "Create Replace", "atomic"},
	} {
		t.Run(name, func(t *testing.T) {
			server := fakes3.New(t, tc.options)
			report, err := probe.Run(t.Context(), onFake(t, server), probe.Options{Rand: rand.Reader})
			if err != nil {
				t.Fatal(err)
			}
			if got := lacking(report.Lacks); got != tc.want {
				t.Errorf("lacking %q, want %q: %+v", got, tc.want, report.Lacks)
			}
			if all := strings.ToLower(report.Lacks.PartCopy + report.Lacks.Conditions()); !strings.Contains(all, tc.says) {
				t.Errorf("the reason %q does not hold %q", all, tc.says)
			}
			if keys := server.Keys(); len(keys) > 0 || server.Uploads() > 0 || len(report.Left) > 0 {
				t.Errorf("left in the store: %q, %d uploads; said to be: %q", keys, server.Uploads(), report.Left)
			}
			if n := len(server.Requests()); n > 65 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// What a doctor asks: a range out of a big object, more races, the latency.
func TestThorough(t *testing.T) {
	server := fakes3.New(t, fakes3.Options{})
	report, err := probe.Run(t.Context(), onFake(t, server), probe.Options{Rand: rand.Reader, Thorough: true})
	if err != nil || lacking(report.Lacks) != "" || report.Latency <= 0 {
		t.Errorf("%+v, %v", report, err)
	}
	if keys := server.Keys(); len(keys) > 0 || server.Uploads() > 0 {
		t.Errorf("left in the store: %q, %d uploads", keys, server.Uploads())
	}
}

// A key that may not remove anything: that is found, and what is left is named.
func TestWhatIsLeft(t *testing.T) {
	server := fakes3.New(t, fakes3.Options{Delete: denied, BulkDelete: denied, Abort: denied})
	report, err := probe.Run(t.Context(), onFake(t, server), probe.Options{Rand: rand.Reader})
	if err != nil || lacking(report.Lacks) != "Abort Delete" {
		t.Errorf("%+v, %v", report.Lacks, err)
	}
	if len(server.Keys()) == 0 || len(report.Left) != 2 {
		t.Errorf("left %q, said %q", server.Keys(), report.Left)
	}
}

// loose is a store whose copies heed no ETag, or that copies something else.
type loose struct {
	objstore.Store
	other bool
}

func (l loose) Copy(ctx context.Context, dst string, src objstore.Object, o objstore.CopyOptions) (objstore.Object, error) {
	if l.other {
		return l.Put(ctx, dst, strings.NewReader(strings.Repeat("x", 64)), 64, objstore.PutOptions{})
	}
	return l.Store.Copy(ctx, dst, l.now(ctx, src), o)
}

func (l loose) now(ctx context.Context, src objstore.Object) objstore.Object {
	body, now, err := l.Get(ctx, src.Key, objstore.GetOptions{})
	if err == nil {
		body.Close()
	}
	return now
}

func (l loose) NewUpload(ctx context.Context, key string) (objstore.Upload, error) {
	up, err := l.Store.NewUpload(ctx, key)
	return looseUpload{up, l}, err
}

type looseUpload struct {
	objstore.Upload
	l loose
}

func (u looseUpload) CopyPart(ctx context.Context, n int, src objstore.Object, off, size int64) error {
	now := u.l.now(ctx, src)
	if u.l.other && now.ETag == src.ETag {
		return u.PutPart(ctx, n, strings.NewReader("other"), 0, 5)
	}
	if u.l.other {
		return u.Upload.CopyPart(ctx, n, src, off, size)
	}
	return u.Upload.CopyPart(ctx, n, now, off, size)
}

// A 200 proves nothing: copies that are not pinned, or hold something else, are none.
func TestCopiesThatOnlySaySo(t *testing.T) {
	for _, other := range []bool{false, true} {
		mem := memstore.New()
		report, err := probe.Run(t.Context(), loose{mem, other}, probe.Options{Rand: rand.Reader})
		if err != nil || lacking(report.Lacks) != "Copy PartCopy" {
			t.Errorf("other=%t: %+v, %v", other, report.Lacks, err)
		}
		for o := range mem.List(t.Context(), "") {
			t.Errorf("other=%t: left: %s", other, o.Key)
		}
	}
}

// P1: a store that fails says nothing about what it can do, whichever request it is;
// and what can be removed again is.
func TestNoVerdictOfAStoreThatFails(t *testing.T) {
	for n := 0; ; n++ {
		mem := memstore.New()
		hit := false
		mem.Fail = func(op memstore.Op) error {
			if op.N == n && !op.After && op.Kind != "list" && op.Kind != "delete" {
				hit = true
				return errors.New("down")
			}
			return nil
		}
		report, err := probe.Run(t.Context(), mem, probe.Options{Rand: rand.Reader})
		if !hit && n > 60 {
			break
		}
		if hit && err == nil && len(report.Left) == 0 {
			t.Errorf("request %d failed, and the verdict is %+v", n, report.Lacks)
		}
		if lacking(report.Lacks) != "" {
			t.Errorf("request %d failed, and that is taken for lacking %+v", n, report.Lacks)
		}
		if err != nil && !errors.Is(err, objstore.ErrUnavailable) {
			t.Errorf("request %d: %v", n, err)
		}
		for o := range mem.List(t.Context(), "") {
			t.Errorf("request %d: left: %s", n, o.Key)
		}
	}
}

// P3: answers of conditional writes that are lost and asked for again mislead nobody.
func TestLostAnswers(t *testing.T) {
	lost := map[string]bool{}
	server := fakes3.New(t, fakes3.Options{Lose: func(r fakes3.Request) bool {
		if r.Op != "put" || r.IfMatch == "" || r.Status != http.StatusOK || lost[r.Key+r.IfMatch] || strings.Contains(r.Key, "race-") {
			return false
		}
		lost[r.Key+r.IfMatch] = true
		return true
	}})
	report, err := probe.Run(t.Context(), retrying{onFake(t, server)}, probe.Options{Rand: rand.Reader})
	if err != nil || lacking(report.Lacks) != "" || len(lost) < 2 {
		t.Errorf("%d answers lost: %+v, %v", len(lost), report.Lacks, err)
	}
}

// retrying asks again, as layers below may.
type retrying struct{ objstore.Store }

func (r retrying) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o objstore.PutOptions) (made objstore.Object, err error) {
	for range 3 {
		if made, err = r.Store.Put(ctx, key, body, size, o); !errors.Is(err, objstore.ErrUnavailable) {
			break
		}
	}
	return made, err
}

// A killed probe leaves objects; a later one removes them, but not those of one that
// may be running.
func TestLeftovers(t *testing.T) {
	mem := memstore.New()
	clock := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	mem.Now = func() time.Time { return clock }
	for key, age := range map[string]time.Duration{"old/x": 2 * time.Hour, "young/x": time.Minute} {
		clock = clock.Add(-age)
		if _, err := mem.Put(t.Context(), objstore.ProbePrefix+key, strings.NewReader("x"), 1, objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		clock = clock.Add(age)
	}
	if _, err := probe.Run(t.Context(), mem, probe.Options{Rand: rand.Reader}); err != nil {
		t.Fatal(err)
	}
	var left []string
	for o := range mem.List(t.Context(), "") {
		left = append(left, o.Key)
	}
	if len(left) != 1 || left[0] != objstore.ProbePrefix+"young/x" {
		t.Errorf("left %q", left)
	}
}
