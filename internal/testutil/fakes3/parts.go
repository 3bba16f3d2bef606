package fakes3

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// minPart is what every part but the last must have at least.
const minPart = 5 << 20

// upload is an object being made of parts. The server's lock guards it.
type upload struct {
	key     string
	started time.Time
	header  http.Header
	parts   map[int]object
}

func (c *call) newUpload() *failure {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.counter++
	id := fmt.Sprintf("upload-%d", c.s.counter)
	c.s.uploads[id] = &upload{key: c.key, started: c.s.now(), header: c.kept(), parts: map[int]object{}}
	c.echo(c.kept())
	c.xml(http.StatusOK, struct {
		XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
		Bucket   string
		Key      string
		UploadID string `xml:"UploadId"`
	}{Bucket: Bucket, Key: c.key, UploadID: id})
	return nil
}

// uploadLocked returns the upload that a request names.
func (c *call) uploadLocked() (*upload, string, *failure) {
	id := c.r.URL.Query().Get("uploadId")
	up := c.s.uploads[id]
	if up == nil || up.key != c.key {
		return nil, "", &failure{http.StatusNotFound, "NoSuchUpload", id}
	}
	return up, id, nil
}

func (c *call) setPartLocked(data []byte) (object, *failure) {
	up, _, f := c.uploadLocked()
	if f != nil {
		return object{}, f
	}
	n, err := strconv.Atoi(c.r.URL.Query().Get("partNumber"))
	if err != nil || n < 1 || n > 10_000 {
		return object{}, &failure{http.StatusBadRequest, "InvalidArgument", "partNumber"}
	}
	sum := md5.Sum(data)
	part := object{data: data, etag: hex.EncodeToString(sum[:]), modified: c.s.now()}
	up.parts[n] = part
	return part, nil
}

func (c *call) putPart() *failure {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	part, f := c.setPartLocked(c.body)
	if f != nil {
		return f
	}
	c.w.Header().Set("ETag", `"`+part.etag+`"`)
	return nil
}

func (c *call) copyPart() *failure {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	src, f := c.sourceLocked()
	if f != nil {
		return f
	}
	data := src.data
	if text := c.r.Header.Get("x-amz-copy-source-range"); text != "" {
		first, last, ok := parseRange(text, int64(len(data)))
		switch {
		case len(data) <= minPart: // as AWS does
			return &failure{http.StatusBadRequest, "InvalidRequest", "The specified copy source is not supported as a byte-range copy source"}
		case !ok || fmt.Sprintf("bytes=%d-%d", first, last) != text:
			return &failure{http.StatusBadRequest, "InvalidArgument", text}
		}
		data = data[first : last+1]
	}
	part, f := c.setPartLocked(data)
	if f != nil {
		return f
	}
	c.copied("CopyPartResult", part)
	return nil
}

func (c *call) complete() *failure {
	var asked struct {
		Part []struct {
			PartNumber int
			ETag       string
		}
	}
	if err := xml.Unmarshal(c.body, &asked); err != nil || len(asked.Part) == 0 {
		return &failure{http.StatusBadRequest, "MalformedXML", fmt.Sprint("parts: ", err)}
	}
	return c.write(func() *failure {
		up, id, f := c.uploadLocked()
		if f != nil {
			return f
		}
		var data, sums []byte
		if len(asked.Part) > 1 {
			data = make([]byte, 0, len(asked.Part)*len(up.parts[asked.Part[0].PartNumber].data))
		}
		for i, p := range asked.Part {
			part, ok := up.parts[p.PartNumber]
			last := i == len(asked.Part)-1
			switch {
			case !ok || strings.Trim(p.ETag, `"`) != part.etag || i > 0 && p.PartNumber <= asked.Part[i-1].PartNumber:
				return &failure{http.StatusBadRequest, "InvalidPart", fmt.Sprint(p.PartNumber)}
			case !last && len(part.data) < minPart:
				return &failure{http.StatusBadRequest, "EntityTooSmall", fmt.Sprint(p.PartNumber)}
			case c.s.o.EqualParts && !last && len(part.data) != len(up.parts[asked.Part[0].PartNumber].data):
				return &failure{http.StatusBadRequest, "InvalidPart", "All non-trailing parts must have the same length."}
			}
			sum, err := hex.DecodeString(part.etag)
			if err != nil {
				panic(err) // setPartLocked made it
			}
			data, sums = append(data, part.data...), append(sums, sum...)
		}
		sum := md5.Sum(sums)
		o := c.s.storeAsLocked(c.key, slices.Clip(data), up.header, fmt.Sprintf("%x-%d", sum, len(asked.Part)))
		delete(c.s.uploads, id)
		c.echo(o.header)
		c.xml(http.StatusOK, struct {
			XMLName           xml.Name `xml:"CompleteMultipartUploadResult"`
			Bucket, Key, ETag string
		}{Bucket: Bucket, Key: c.key, ETag: `"` + o.etag + `"`})
		return nil
	})
}

func (c *call) abort() *failure {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	_, id, f := c.uploadLocked()
	if f != nil {
		return f
	}
	delete(c.s.uploads, id)
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}
