package s3

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// codeForeign is the error code of an answer that no object store gave.
const codeForeign = "ChromafsNotAnObjectStore"

// codeSkewed is S3's code of a request whose time is wrong. Not every server has it.
const codeSkewed = "RequestTimeTooSkewed"

// maxSkew is how far apart the clocks may be for S3.
const maxSkew = 15 * time.Minute

// maxAnswer bounds an answer in XML: 1000 keys of 1024 bytes, each byte escaped.
const maxAnswer = 16 << 20

// guard looks at every answer before minio-go does. Answers that are not an object
// store's own, and those that say 200 and mean an error, become errors that
// minio-go cannot misread.
type guard struct {
	next   http.RoundTripper
	bucket string
	now    func() time.Time
	ahead  atomic.Pointer[time.Duration] // how far the server's clock was ahead at its last answer
}

// answer is what the guard reads of any answer in XML.
type answer struct {
	XMLName       xml.Name
	Code, Message string // Error
	Name, Prefix  string // ListBucketResult
	Bucket        string // ListMultipartUploadsResult
	EncodingType  string
	UploadID      string `xml:"UploadId"` // InitiateMultipartUploadResult
	ETag          string // results of copies
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		body := &fenced{body: req.Body}
		defer body.Close()
		req = req.WithContext(req.Context()) // a copy: a round tripper changes no request
		req.Body = body
	}
	resp, err := g.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	g.compareClocks(resp)
	// The body alone says what an error is.
	resp.Header.Del("x-minio-error-code")
	resp.Header.Del("x-minio-error-desc")
	switch {
	case resp.StatusCode == http.StatusNotModified:
		return resp, nil
	case resp.StatusCode >= 300:
		return g.failure(req, resp)
	}
	return g.success(req, resp)
}

// compareClocks notes what the Date of an answer says, which is of whole seconds.
func (g *guard) compareClocks(resp *http.Response) {
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return
	}
	if ahead := date.Sub(g.now()); ahead < -time.Second || ahead > time.Second {
		g.ahead.Store(&ahead)
	} else {
		g.ahead.Store(new(time.Duration))
	}
}

// fenced is the body of one try. An answer may come while net/http still sends, and
// goes on with that after minio-go has begun the next try from the start of the same
// reader, or after the caller has closed it: no byte is read once it is closed.
type fenced struct {
	mu     sync.Mutex // guards what follows; held while body is read
	body   io.ReadCloser
	closed bool
}

// Read implements io.Reader.
func (f *fenced) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, errAnswered
	}
	return f.body.Read(p)
}

// Close implements io.Closer. It waits for a Read that runs.
func (f *fenced) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return f.body.Close()
}

// errAnswered ends the sending of a body whose request was answered.
var errAnswered = errors.New("the request was answered already")

// readAnswer reads and closes a body whole.
func readAnswer(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(body) > maxAnswer {
		err = fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	}
	return body, err
}

func setBody(resp *http.Response, body []byte) {
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	resp.TransferEncoding = nil
}

// parse reads an answer in XML. It must be whole: one element, and nothing behind it.
func parse(body []byte) (a answer, err error) {
	d := xml.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(&a); err != nil {
		return a, err
	}
	for {
		token, err := d.Token()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return a, err
		}
		if text, ok := token.(xml.CharData); !ok || len(bytes.TrimSpace(text)) > 0 {
			return a, fmt.Errorf("more than one element")
		}
	}
}

// success handles answers of the 200 class.
func (g *guard) success(req *http.Request, resp *http.Response) (*http.Response, error) {
	if req.Method == http.MethodDelete && resp.StatusCode != http.StatusNoContent {
		body, err := readAnswer(resp)
		if err != nil {
			return nil, err
		}
		return g.foreign(req, resp, body, "no deletion"), nil
	}
	check := expected(req, g.bucket)
	if check == nil {
		if (req.Method == http.MethodGet || req.Method == http.MethodPut) && resp.Header.Get("ETag") == "" {
			body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // an object may be big
			resp.Body.Close()
			if err != nil {
				return nil, err
			}
			if a, err := parse(body); err == nil && a.isError() {
				return g.errorInSuccess(req, resp, body, a)
			}
			return g.foreign(req, resp, body, "no ETag"), nil
		}
		return resp, nil
	}
	body, err := readAnswer(resp)
	if err != nil {
		return nil, err
	}
	setBody(resp, body)
	a, err := parse(body)
	switch {
	case err != nil:
		return g.foreign(req, resp, body, "not well-formed XML"), nil
	case a.isError():
		return g.errorInSuccess(req, resp, body, a)
	}
	if why := check(a); why != "" {
		return g.foreign(req, resp, body, why), nil
	}
	return resp, nil
}

func (a answer) isError() bool { return a.XMLName.Local == "Error" && a.Code != "" }

// errorInSuccess passes on an error that the store reports in an answer 200.
func (g *guard) errorInSuccess(req *http.Request, resp *http.Response, body []byte, a answer) (*http.Response, error) {
	resp.StatusCode = statusOf(a.Code)
	resp.Status = fmt.Sprintf("%d in an answer 200", resp.StatusCode)
	return g.own(req, resp, body, a)
}

// statusOf gives an error inside an answer 200 the status that it would have had.
func statusOf(code string) int {
	switch code {
	case "PreconditionFailed":
		return http.StatusPreconditionFailed
	case "NoSuchKey", "NoSuchUpload", "NoSuchBucket":
		return http.StatusNotFound
	case "AccessDenied":
		return http.StatusForbidden
	case "InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout":
		return http.StatusServiceUnavailable
	case "NotImplemented":
		return http.StatusNotImplemented
	}
	return http.StatusBadRequest
}

// expected returns the check of the XML that answers a request, which says what is
// wrong with it; nil for requests that are not answered in XML.
func expected(req *http.Request, bucket string) func(answer) string {
	root := func(names ...string) func(answer) string {
		return func(a answer) string {
			for _, name := range names {
				if a.XMLName.Local == name {
					return ""
				}
			}
			return "an element <" + a.XMLName.Local + "> where <" + names[0] + "> belongs"
		}
	}
	q := req.URL.Query()
	switch {
	case req.Method == http.MethodGet && q.Has("list-type"):
		return func(a answer) string {
			if why := root("ListBucketResult")(a); why != "" {
				return why
			}
			return echo(a, a.Name, bucket, q.Get("prefix"))
		}
	case req.Method == http.MethodGet && q.Has("uploads"):
		return func(a answer) string {
			if why := root("ListMultipartUploadsResult")(a); why != "" {
				return why
			}
			return echo(a, a.Bucket, bucket, q.Get("prefix"))
		}
	case req.Method == http.MethodGet && q.Has("location"):
		return root("LocationConstraint")
	case req.Method == http.MethodPost && q.Has("delete"):
		return root("DeleteResult")
	case req.Method == http.MethodPost && q.Has("uploads"):
		return func(a answer) string {
			if why := root("InitiateMultipartUploadResult")(a); why != "" || a.UploadID != "" {
				return why
			}
			return "an upload without an id"
		}
	case req.Method == http.MethodPost && q.Has("uploadId"):
		return root("CompleteMultipartUploadResult")
	case req.Method == http.MethodPut && req.Header.Get("x-amz-copy-source") != "":
		return func(a answer) string {
			if why := root("CopyObjectResult", "CopyPartResult")(a); why != "" || a.ETag != "" {
				return why
			}
			return "a copy without an ETag"
		}
	}
	return nil
}

// echo checks that a listing is the one that was asked for (R4).
func echo(a answer, name, bucket, prefix string) string {
	got := a.Prefix
	if a.EncodingType == "url" {
		if decoded, err := url.QueryUnescape(got); err == nil {
			got = decoded
		}
	}
	if name != bucket || got != prefix {
		return fmt.Sprintf("a listing of bucket %q, prefix %q", name, got)
	}
	return ""
}

// failure handles answers that are errors.
func (g *guard) failure(req *http.Request, resp *http.Response) (*http.Response, error) {
	body, err := readAnswer(resp)
	if err != nil {
		return nil, err
	}
	setBody(resp, body)
	a, err := parse(body)
	if err == nil && a.isError() {
		return g.own(req, resp, body, a)
	}
	if passing(resp.StatusCode) {
		return nil, g.busy(resp, "", excerpt(redact(req, body)))
	}
	switch resp.StatusCode {
	case http.StatusConflict, http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable: // minio-go goes by the status
		setBody(resp, redact(req, body))
		return resp, nil
	}
	return g.foreign(req, resp, body, ""), nil
}

// own passes on an error that the store itself reports.
func (g *guard) own(req *http.Request, resp *http.Response, body []byte, a answer) (*http.Response, error) {
	if passing(resp.StatusCode) {
		return nil, g.busy(resp, a.Code, excerpt(redact(req, []byte(a.Message))))
	}
	body = redact(req, body)
	switch {
	case a.Code == codeSkewed, resp.StatusCode == http.StatusForbidden && g.skewed(resp):
		body = redact(req, errorBody(codeSkewed, fmt.Sprintf("the clocks differ too much: here it is %s, at the store %s (%s: %s)",
			g.now().UTC().Format(time.RFC1123), resp.Header.Get("Date"), a.Code, a.Message)))
	case resp.StatusCode == http.StatusForbidden && req.Header.Get("Authorization") == "":
		body = errorBody(codeAnonymous, a.Message+" (the request was not signed: no credentials were found)")
	}
	setBody(resp, body)
	return resp, nil
}

// skewed reports whether the store's clock is further from ours than S3 allows: then
// that is why it refused, whatever it says.
func (g *guard) skewed(resp *http.Response) bool {
	server, err := http.ParseTime(resp.Header.Get("Date"))
	return err == nil && server.Sub(g.now()).Abs() > maxSkew
}

// foreign turns an answer that no object store gave into an error.
func (g *guard) foreign(req *http.Request, resp *http.Response, body []byte, why string) *http.Response {
	msg := fmt.Sprintf("%s %s answered %s", req.Method, req.URL.Host, resp.Status)
	if to := resp.Header.Get("Location"); to != "" {
		msg += " to " + to
	}
	if why != "" {
		msg += ", " + why
	}
	if text := excerpt(redact(req, body)); text != "" {
		msg += fmt.Sprintf(", %s: %q", resp.Header.Get("Content-Type"), text)
	}
	if resp.StatusCode < 300 || resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented {
		resp.StatusCode = http.StatusBadRequest
	}
	resp.Status = http.StatusText(resp.StatusCode)
	setBody(resp, errorBody(codeForeign, msg))
	return resp
}

func errorBody(code, message string) []byte {
	body, err := xml.Marshal(struct {
		XMLName       xml.Name `xml:"Error"`
		Code, Message string
	}{Code: code, Message: message})
	if err != nil { // two strings
		panic(err)
	}
	return body
}

// excerpt returns the start of a text on one line.
func excerpt(body []byte) string {
	text := strings.Join(strings.Fields(strings.ToValidUTF8(string(body), "?")), " ")
	const most = 120
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}

var accessKey = regexp.MustCompile(`(?:Credential=|AWS )([^/:,\s]+)`)

// redact removes from an error what the request said of its sender, which a server
// may repeat.
func redact(req *http.Request, body []byte) []byte {
	secrets := []string{req.Header.Get("Authorization"), req.Header.Get("x-amz-security-token")}
	if m := accessKey.FindStringSubmatch(secrets[0]); m != nil {
		secrets = append(secrets, m[1])
	}
	for _, secret := range secrets {
		if secret != "" {
			body = bytes.ReplaceAll(body, []byte(secret), []byte("[redacted]"))
		}
	}
	return body
}
