package fakes3

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

func (s *Server) now() time.Time { return time.Now().Add(s.o.Clock) }

// storeLocked replaces an object. Under a KMS key the ETag is no MD5.
func (s *Server) storeLocked(key string, data []byte, header http.Header) object {
	sum := md5.Sum(data)
	return s.storeAsLocked(key, data, header, hex.EncodeToString(sum[:]))
}

func (s *Server) storeAsLocked(key string, data []byte, header http.Header, etag string) object {
	if header.Get("x-amz-server-side-encryption") == "aws:kms" {
		s.counter++
		sum := md5.Sum(fmt.Append(nil, "kms", s.counter))
		_, parts, _ := strings.Cut(etag, "-")
		if etag = hex.EncodeToString(sum[:]); parts != "" {
			etag += "-" + parts
		}
	}
	o := object{data: data, etag: etag, modified: s.now(), header: header}
	s.objects[key] = o
	return o
}

// kept returns the headers of a write that its object keeps.
func (c *call) kept() http.Header {
	h := http.Header{}
	for name, values := range c.r.Header {
		lower := strings.ToLower(name)
		sse := strings.HasPrefix(lower, "x-amz-server-side-encryption") && !c.s.o.IgnoreSSE
		if sse || lower == "content-type" || strings.HasPrefix(lower, "x-amz-meta-") {
			h[name] = values
		}
	}
	return h
}

// echo repeats how an object is encrypted, as stores do.
func (c *call) echo(h http.Header) {
	for name, values := range h {
		if strings.HasPrefix(strings.ToLower(name), "x-amz-server-side-encryption") {
			c.w.Header()[name] = values
		}
	}
}

func (c *call) get() *failure {
	c.s.mu.Lock()
	o, ok := c.s.objects[c.key]
	c.s.mu.Unlock()
	if !ok {
		return &failure{http.StatusNotFound, "NoSuchKey", c.key}
	}
	if want := c.r.Header.Get("If-Match"); want != "" && strings.Trim(want, `"`) != o.etag {
		return &failure{http.StatusPreconditionFailed, "PreconditionFailed", "If-Match"}
	}
	if strings.Trim(c.r.Header.Get("If-None-Match"), `"`) == o.etag {
		return &failure{status: http.StatusNotModified}
	}
	h := c.w.Header()
	for name, values := range o.header {
		h[name] = values
	}
	h.Set("ETag", `"`+o.etag+`"`)
	h.Set("Last-Modified", o.modified.UTC().Format(http.TimeFormat))
	data, status := o.data, http.StatusOK
	if text := c.r.Header.Get("Range"); text != "" {
		first, last, ok := parseRange(text, int64(len(data)))
		if !ok {
			return &failure{http.StatusRequestedRangeNotSatisfiable, "InvalidRange", text}
		}
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(data)))
		data, status = data[first:last+1], http.StatusPartialContent
	}
	h.Set("Content-Length", strconv.Itoa(len(data)))
	c.w.WriteHeader(status)
	c.w.Write(data)
	return nil
}

// parseRange reads "bytes=a-b" or "bytes=a-".
func parseRange(text string, size int64) (first, last int64, ok bool) {
	a, b, ok := strings.Cut(strings.TrimPrefix(text, "bytes="), "-")
	first, err := strconv.ParseInt(a, 10, 64)
	if !ok || err != nil || first >= size {
		return 0, 0, false
	}
	last = size - 1
	if b != "" {
		to, err := strconv.ParseInt(b, 10, 64)
		if err != nil || to < first {
			return 0, 0, false
		}
		last = min(last, to)
	}
	return first, last, true
}

// write makes a write that may be conditional, as the server's kind does.
func (c *call) write(effect func() *failure) *failure {
	s := c.s
	match, absent := c.r.Header.Get("If-Match"), c.r.Header.Get("If-None-Match") == "*"
	s.mu.Lock()
	defer s.mu.Unlock()
	if match == "" && !absent {
		return effect()
	}
	switch s.o.Conditions {
	case Refused:
		return &failure{http.StatusNotImplemented, "NotImplemented", "A header you provided implies functionality that is not implemented."}
	case Ignored:
		return effect()
	}
	now, exists := s.objects[c.key]
	want := strings.Trim(match, `"`)
	if s.o.Conditions == Unquoted {
		want = match
	}
	switch {
	case absent && exists, match != "" && exists && want != now.etag:
		return &failure{http.StatusPreconditionFailed, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold"}
	case match != "" && !exists:
		return &failure{http.StatusNotFound, "NoSuchKey", c.key}
	}
	if s.o.Conditions == Racy {
		s.waitForRivalLocked(c.key)
	}
	return effect()
}

// waitForRivalLocked lets a second writer look before the first one writes, if one
// comes soon.
func (s *Server) waitForRivalLocked(key string) {
	if rival := s.checking[key]; rival != nil {
		delete(s.checking, key)
		close(rival)
		return
	}
	came := make(chan struct{})
	s.checking[key] = came
	s.mu.Unlock()
	select {
	case <-came:
	case <-time.After(50 * time.Millisecond):
	}
	s.mu.Lock()
	if s.checking[key] == came {
		delete(s.checking, key)
	}
}

func (c *call) put() *failure {
	return c.write(func() *failure {
		o := c.s.storeLocked(c.key, c.body, c.kept())
		c.echo(o.header)
		c.w.Header().Set("ETag", `"`+o.etag+`"`)
		return nil
	})
}

// sourceLocked finds the object that a copy names and is pinned to.
func (c *call) sourceLocked() (object, *failure) {
	name, err := url.PathUnescape(strings.TrimPrefix(c.r.Header.Get("x-amz-copy-source"), "/"))
	bucket, key, _ := strings.Cut(name, "/")
	o, ok := c.s.objects[key]
	switch want := c.r.Header.Get("x-amz-copy-source-if-match"); {
	case err != nil || bucket != Bucket:
		return o, &failure{http.StatusBadRequest, "InvalidArgument", "x-amz-copy-source"}
	case !ok:
		return o, &failure{http.StatusNotFound, "NoSuchKey", key}
	case want != "" && strings.Trim(want, `"`) != o.etag:
		return o, &failure{http.StatusPreconditionFailed, "PreconditionFailed", "x-amz-copy-source-If-Match"}
	}
	return o, nil
}

type copyResult struct {
	XMLName      xml.Name
	ETag         string
	LastModified string
}

func (c *call) copied(name string, o object) {
	c.xml(http.StatusOK, copyResult{XMLName: xml.Name{Local: name}, ETag: `"` + o.etag + `"`, LastModified: o.modified.UTC().Format(time.RFC3339)})
}

// copyObject copies whole. The encryption is the request's, not the source's.
func (c *call) copyObject() *failure {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	src, f := c.sourceLocked()
	if f != nil {
		return f
	}
	header := c.kept()
	for name, values := range src.header {
		if !strings.HasPrefix(strings.ToLower(name), "x-amz-server-side-encryption") {
			header[name] = values
		}
	}
	o := c.s.storeLocked(c.key, src.data, header)
	c.echo(o.header)
	c.copied("CopyObjectResult", o)
	return nil
}

func (c *call) delete() *failure {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	delete(c.s.objects, c.key)
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (c *call) bulkDelete() *failure {
	type named struct{ Key string }
	var asked struct {
		Quiet  bool
		Object []named
	}
	if err := xml.Unmarshal(c.body, &asked); err != nil {
		return &failure{http.StatusBadRequest, "MalformedXML", err.Error()}
	}
	if len(asked.Object) > 1000 {
		return &failure{http.StatusBadRequest, "MalformedXML", "more than 1000 keys"}
	}
	result := struct {
		XMLName xml.Name `xml:"DeleteResult"`
		Deleted []named
	}{}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for _, o := range asked.Object {
		delete(c.s.objects, o.Key)
		if !asked.Quiet {
			result.Deleted = append(result.Deleted, o)
		}
	}
	c.xml(http.StatusOK, result)
	return nil
}
