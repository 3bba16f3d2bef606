package fakes3

import (
	"cmp"
	"encoding/xml"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// name encodes a key as the request asked for.
func (c *call) name(key string) string {
	if c.r.URL.Query().Get("encoding-type") == "url" {
		return url.QueryEscape(key)
	}
	return key
}

// list answers ListObjectsV2, of all below a prefix.
func (c *call) list() *failure {
	q := c.r.URL.Query()
	if q.Get("list-type") != "2" || q.Get("delimiter") != "" {
		return &failure{http.StatusNotImplemented, "NotImplemented", c.r.URL.RawQuery}
	}
	most := c.s.o.Page
	if n, err := strconv.Atoi(q.Get("max-keys")); err == nil {
		most = min(most, n)
	}
	type entry struct {
		Key, LastModified, ETag string
		Size                    int
		StorageClass            string
	}
	result := struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		Name, Prefix          string
		EncodingType          string `xml:",omitempty"`
		KeyCount, MaxKeys     int
		IsTruncated           bool
		NextContinuationToken string `xml:",omitempty"`
		Contents              []entry
	}{Name: Bucket, Prefix: c.name(q.Get("prefix")), EncodingType: q.Get("encoding-type"), MaxKeys: most}
	after := cmp.Or(q.Get("continuation-token"), q.Get("start-after"))
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	last := ""
	for _, key := range slices.Sorted(maps.Keys(c.s.objects)) {
		if !strings.HasPrefix(key, q.Get("prefix")) || key <= after {
			continue
		}
		if len(result.Contents) == most {
			result.IsTruncated, result.NextContinuationToken = true, last
			break
		}
		o := c.s.objects[key]
		result.Contents = append(result.Contents, entry{Key: c.name(key), LastModified: o.modified.UTC().Format(time.RFC3339Nano),
			ETag: `"` + o.etag + `"`, Size: len(o.data), StorageClass: "STANDARD"})
		last = key
	}
	result.KeyCount = len(result.Contents)
	c.xml(http.StatusOK, result)
	return nil
}

// listUploads answers ListMultipartUploads, in one page.
func (c *call) listUploads() *failure {
	q := c.r.URL.Query()
	type entry struct {
		Key       string
		UploadID  string `xml:"UploadId"`
		Initiated string
	}
	result := struct {
		XMLName        xml.Name `xml:"ListMultipartUploadsResult"`
		Bucket, Prefix string
		EncodingType   string `xml:",omitempty"`
		IsTruncated    bool
		Upload         []entry
	}{Bucket: Bucket, Prefix: c.name(q.Get("prefix")), EncodingType: q.Get("encoding-type")}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(c.s.uploads)) {
		if u := c.s.uploads[id]; strings.HasPrefix(u.key, q.Get("prefix")) {
			result.Upload = append(result.Upload, entry{c.name(u.key), id, u.started.UTC().Format(time.RFC3339Nano)})
		}
	}
	c.xml(http.StatusOK, result)
	return nil
}

func (c *call) location() *failure {
	c.xml(http.StatusOK, struct {
		XMLName xml.Name `xml:"LocationConstraint"`
	}{})
	return nil
}
