package s3

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/chromafs/chromafs/internal/objstore"
)

// Get implements objstore.Store.
func (s *Store) Get(ctx context.Context, key string, o objstore.GetOptions) (io.ReadCloser, objstore.Object, error) {
	body, found, err := s.get(ctx, key, o)
	if _, kind := kindOf(err); err != nil && kind == objstore.ErrRange && o.Offset == 0 && o.Length > 0 {
		// S3 has no range of an empty object.
		body, found, err = s.get(ctx, key, objstore.GetOptions{IfMatch: o.IfMatch, IfNoneMatch: o.IfNoneMatch})
		if err == nil && found.Size != 0 { // it was replaced in between
			body.Close()
			err = objstore.ErrUnavailable
		}
	}
	if err != nil {
		return nil, objstore.Object{}, s.fail(ctx, "get", key, err)
	}
	return body, found, nil
}

func (s *Store) get(ctx context.Context, key string, o objstore.GetOptions) (_ io.ReadCloser, found objstore.Object, err error) {
	full, err := s.name(key)
	if err != nil {
		return nil, found, err
	}
	var opts minio.GetObjectOptions
	switch {
	case o.Offset < 0 || o.Length < 0:
		return nil, found, fmt.Errorf("%w: offset %d, length %d", objstore.ErrRange, o.Offset, o.Length)
	case o.Length > 0:
		opts.Set("Range", fmt.Sprintf("bytes=%d-%d", o.Offset, o.Offset+o.Length-1))
	case o.Offset > 0:
		opts.Set("Range", fmt.Sprintf("bytes=%d-", o.Offset))
	}
	if o.IfMatch != "" {
		opts.Set("If-Match", `"`+o.IfMatch+`"`)
	}
	if o.IfNoneMatch != "" {
		opts.Set("If-None-Match", `"`+o.IfNoneMatch+`"`)
	}
	body, info, header, err := s.core.GetObject(ctx, s.o.Bucket, full, opts)
	if err != nil {
		return nil, found, err
	}
	s.clear.Store(s.o.SSE != (SSE{}) && header.Get("x-amz-server-side-encryption") == "")
	found = objstore.Object{Key: key, Size: info.Size, ETag: info.ETag, Modified: info.LastModified}
	err = checkAnswer(&found, info.Size, header, o)
	if err != nil {
		body.Close()
		return nil, found, err
	}
	return &reader{s: s, ctx: ctx, key: key, body: body, left: info.Size}, found, nil
}

// checkAnswer compares what a GET answered with what was asked, and makes found
// describe the whole object. Not every server heeds ranges and conditions.
func checkAnswer(found *objstore.Object, length int64, header http.Header, o objstore.GetOptions) error {
	if length < 0 {
		return fmt.Errorf("%w: an answer without a length", objstore.ErrUnsupported)
	}
	switch {
	case o.IfMatch != "" && found.ETag != o.IfMatch:
		return objstore.ErrPrecondition
	case o.IfNoneMatch != "" && found.ETag == o.IfNoneMatch:
		return objstore.ErrNotModified
	}
	if o.Offset == 0 && o.Length == 0 {
		return nil
	}
	start, size, ok := parseContentRange(header.Get("Content-Range"))
	if !ok {
		return fmt.Errorf("%w: a range was answered without Content-Range", objstore.ErrUnsupported)
	}
	found.Size = size
	want, err := o.CheckRange(size)
	if err == nil && (start != o.Offset || length != want) {
		err = fmt.Errorf("%w: %d bytes from %d on instead of %d from %d on", objstore.ErrUnsupported, length, start, want, o.Offset)
	}
	return err
}

// parseContentRange reads "bytes 0-9/100".
func parseContentRange(text string) (start, size int64, ok bool) {
	span, total, ok := strings.Cut(strings.TrimPrefix(text, "bytes "), "/")
	first, _, dash := strings.Cut(span, "-")
	start, err := strconv.ParseInt(first, 10, 64)
	size, err2 := strconv.ParseInt(total, 10, 64)
	return start, size, ok && dash && err == nil && err2 == nil
}

// reader is the body of an object.
type reader struct {
	s    *Store
	ctx  context.Context // of the request that the body belongs to, as in net/http
	key  string
	body io.ReadCloser
	left int64
}

// Read implements io.Reader. It ends with io.EOF after the promised bytes only (O5).
func (r *reader) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	r.left -= int64(n)
	switch {
	case err == nil || err == io.EOF && r.left == 0:
		return n, err
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	if r.left > 0 {
		err = fmt.Errorf("broke off %d bytes before the end: %w", r.left, err)
	}
	return n, r.s.fail(r.ctx, "read", r.key, err)
}

// Close implements io.Closer.
func (r *reader) Close() error { return r.body.Close() }

// sums are the checksums with which a body is sent.
type sums struct{ md5Base64, sha256Hex string }

// sum reads a range of a body once, so that it can be verified on arrival (O1).
func (s *Store) sum(body io.ReaderAt, off, size int64) (sums, error) {
	md, sha := md5.New(), sha256.New()
	hashes := []io.Writer{md}
	known := false
	var sum [sha256.Size]byte
	if hashed, ok := body.(objstore.Hashed); ok {
		sum, known = hashed.SHA256(off, size)
	}
	if s.plain && !known {
		hashes = append(hashes, sha)
	}
	if _, err := io.Copy(io.MultiWriter(hashes...), objstore.NewBody(body, off, size)); err != nil {
		return sums{}, &callerError{err}
	}
	text := sums{md5Base64: base64.StdEncoding.EncodeToString(md.Sum(nil))}
	if s.plain && !known {
		sum = [sha256.Size]byte(sha.Sum(nil))
	}
	if s.plain {
		text.sha256Hex = hex.EncodeToString(sum[:])
	}
	return text, nil
}

// blame tells an error of the caller's body, met while sending, from the store's.
func blame(src *objstore.Body, err error) error {
	if src.Err() != nil {
		return &callerError{src.Err()}
	}
	return err
}

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o objstore.PutOptions) (objstore.Object, error) {
	made, err := s.put(ctx, key, body, size, o)
	if _, kind := kindOf(err); err != nil && kind == objstore.ErrNotFound && o.IfMatch != "" {
		err = fmt.Errorf("%w: it is gone", objstore.ErrPrecondition)
	}
	return made, s.fail(ctx, "put", key, err)
}

func (s *Store) put(ctx context.Context, key string, body io.ReaderAt, size int64, o objstore.PutOptions) (none objstore.Object, err error) {
	full, err := s.name(key)
	if err != nil {
		return none, err
	}
	if err := objstore.Ended(ctx); err != nil {
		return none, err
	}
	src := objstore.NewBody(body, 0, size)
	text, err := s.sum(body, 0, size)
	if err != nil {
		return none, err
	}
	// Unsigned chunks: the sums guard the body, and a signature per chunk is what
	// fewer servers understand.
	opts := minio.PutObjectOptions{ContentType: o.ContentType, DisableContentSha256: true, ServerSideEncryption: s.o.SSE.header()}
	switch {
	case o.IfAbsent:
		opts.SetMatchETagExcept("*")
	case o.IfMatch != "":
		opts.SetMatchETag(o.IfMatch)
	}
	info, err := s.core.PutObject(ctx, s.o.Bucket, full, src, size, text.md5Base64, text.sha256Hex, opts)
	if err != nil {
		return none, blame(src, err)
	}
	return objstore.Object{Key: key, Size: size, ETag: info.ETag}, nil
}

// joinedETag returns the ETag that S3 gives to parts with these ETags, where no KMS key
// is used: the MD5 of their MD5s, and their number; "" where they are no MD5s.
func joinedETag(etags []string) string {
	all := md5.New()
	for _, etag := range etags {
		sum, err := hex.DecodeString(strings.Trim(etag, `"`))
		if err != nil || len(sum) != md5.Size {
			return ""
		}
		all.Write(sum)
	}
	return fmt.Sprintf("%x-%d", all.Sum(nil), len(etags))
}
