package s3

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"github.com/chromafs/chromafs/internal/objstore"
)

const (
	copyWorkers  = 4                // requests at once for one big copy
	maxCopyParts = 10_000           // S3's limit
	abortTimeout = 15 * time.Second // for the abort of a copy that failed
)

// Copy implements objstore.Store. The copy of an empty object, or of one up to
// CopyLimit bytes, is one request.
func (s *Store) Copy(ctx context.Context, dst string, src objstore.Object, _ objstore.CopyOptions) (objstore.Object, error) {
	made, err := s.copy(ctx, dst, src)
	return made, s.fail(ctx, "copy "+src.Key+" to", dst, copyError(err))
}

// copyError gives "no copying" one kind. Servers that lack it say many things.
func copyError(err error) error {
	var resp minio.ErrorResponse
	if errors.As(err, &resp) && (resp.StatusCode == http.StatusLengthRequired || resp.Code == "MissingContentLength") {
		return fmt.Errorf("%w: %w", objstore.ErrUnsupported, err)
	}
	return err
}

// lacking reports whether an answer is that of a server, or of a front end before it,
// that lacks what was asked: worth another way.
func lacking(err error) bool {
	var resp minio.ErrorResponse
	if !errors.As(err, &resp) {
		return false
	}
	switch resp.StatusCode {
	case http.StatusNotImplemented, http.StatusMethodNotAllowed, http.StatusLengthRequired, http.StatusForbidden:
		return true
	}
	return resp.Code == "MissingContentLength"
}

func (s *Store) copy(ctx context.Context, dst string, src objstore.Object) (none objstore.Object, err error) {
	to, err := s.name(dst)
	if err != nil {
		return none, err
	}
	from, err := s.name(src.Key)
	if err != nil {
		return none, err
	}
	if src.ETag == "" {
		return none, &callerError{fmt.Errorf("the source %s has no ETag to pin the copy to", src.Key)}
	}
	var byParts error
	if src.Size > s.o.CopyLimit && !s.noParts.Load() {
		made, err := s.copyParts(ctx, dst, src)
		if err == nil || !lacking(err) {
			return made, err
		}
		byParts = err // some that copy no parts copy objects of any size
	}
	headers := pinned(src)
	s.o.SSE.add(headers)
	info, err := s.core.CopyObject(ctx, s.o.Bucket, from, s.o.Bucket, to, headers, minio.CopySrcOptions{}, minio.PutObjectOptions{})
	if err != nil {
		if byParts != nil {
			err = fmt.Errorf("%w; and whole: %w", byParts, err)
		}
		return none, err
	}
	if byParts != nil && !s.noParts.Swap(true) {
		s.log.Info("the store copies objects whole only", "store", s.String(), "err", byParts)
	}
	return objstore.Object{Key: dst, Size: src.Size, ETag: info.ETag, Modified: info.LastModified}, nil
}

// pinned is the condition that a source is still the one that the caller means.
func pinned(src objstore.Object) map[string]string {
	return map[string]string{"x-amz-copy-source-if-match": src.ETag}
}

// copyParts copies a big object by parts, each pinned.
func (s *Store) copyParts(ctx context.Context, dst string, src objstore.Object) (_ objstore.Object, err error) {
	up, err := s.newUpload(ctx, dst)
	if err != nil {
		return objstore.Object{}, err
	}
	defer func() {
		if err == nil {
			return
		}
		abort, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
		defer cancel()
		if aerr := up.abort(abort); aerr != nil {
			s.log.Warn("a copy failed, and its upload is left for history prune", "key", dst, "upload", up.id, "err", aerr)
		}
	}()
	size := s.o.CopyPart
	for src.Size > size*maxCopyParts {
		size *= 2
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(copyWorkers)
	for n, off := 1, int64(0); off < src.Size; n, off = n+1, off+size {
		g.Go(func() error {
			return s.o.Repeat(gctx, "copy a part of "+src.Key, func() error { return up.CopyPart(gctx, n, src, off, min(size, src.Size-off)) })
		})
	}
	if err := g.Wait(); err != nil {
		return objstore.Object{}, err
	}
	var made objstore.Object
	err = s.o.Repeat(ctx, "complete the copy to "+dst, func() (err error) {
		made, err = up.Complete(ctx)
		return err
	})
	return made, err
}

// nonceName is the metadata of an object made of parts that says which upload made it.
const nonceName = "Chromafs-Upload"

// upload is a multipart upload.
type upload struct {
	s             *Store
	key, full, id string
	nonce         string // in the object's metadata; "" for an upload of another process

	mu    sync.Mutex // guards what follows; no request under it
	etags map[int]string
	sizes map[int]int64
	// repeat: all parts were another process's, which may have completed the upload.
	repeat bool
}

// NewUpload implements objstore.Store.
func (s *Store) NewUpload(ctx context.Context, key string) (objstore.Upload, error) {
	up, err := s.newUpload(ctx, key)
	if err != nil {
		return nil, s.fail(ctx, "begin an upload to", key, err)
	}
	return up, nil
}

func (s *Store) newUpload(ctx context.Context, key string) (*upload, error) {
	full, err := s.name(key)
	if err != nil {
		return nil, err
	}
	nonce := rand.Text()
	id, err := s.core.NewMultipartUpload(ctx, s.o.Bucket, full, minio.PutObjectOptions{
		ServerSideEncryption: s.o.SSE.header(), UserMetadata: map[string]string{nonceName: nonce},
	})
	if err != nil {
		return nil, err
	}
	return &upload{s: s, key: key, full: full, id: id, nonce: nonce, etags: map[int]string{}, sizes: map[int]int64{}}, nil
}

// ResumeUpload implements objstore.Resumer.
func (s *Store) ResumeUpload(ctx context.Context, p objstore.PendingUpload, parts []objstore.UploadPart) (objstore.Upload, error) {
	full, err := s.name(p.Key)
	if err != nil {
		return nil, s.fail(ctx, "go on with the upload to", p.Key, err)
	}
	u := &upload{s: s, key: p.Key, full: full, id: p.ID, etags: map[int]string{}, sizes: map[int]int64{}, repeat: true}
	for _, part := range parts {
		u.etags[part.Number], u.sizes[part.Number] = part.ETag, part.Size
	}
	return u, nil
}

// Part implements objstore.PartTeller.
func (u *upload) Part(n int) (objstore.UploadPart, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	size, ok := u.sizes[n]
	return objstore.UploadPart{Number: n, Size: size, ETag: u.etags[n]}, ok
}

// ID implements objstore.Upload.
func (u *upload) ID() string { return u.id }

// PutPart implements objstore.Upload.
func (u *upload) PutPart(ctx context.Context, n int, body io.ReaderAt, off, size int64) error {
	return u.s.fail(ctx, fmt.Sprintf("send part %d of", n), u.key, u.putPart(ctx, n, body, off, size))
}

func (u *upload) putPart(ctx context.Context, n int, body io.ReaderAt, off, size int64) error {
	if err := objstore.Ended(ctx); err != nil {
		return err
	}
	src := objstore.NewBody(body, off, size)
	text, err := u.s.sum(body, off, size)
	if err != nil {
		return err
	}
	part, err := u.s.core.PutObjectPart(ctx, u.s.o.Bucket, u.full, u.id, n, src, size, minio.PutObjectPartOptions{
		Md5Base64: text.md5Base64, Sha256Hex: text.sha256Hex, DisableContentSha256: true,
	})
	if err != nil {
		return blame(src, err)
	}
	u.set(n, part.ETag, size)
	return nil
}

// CopyPart implements objstore.Upload.
func (u *upload) CopyPart(ctx context.Context, n int, src objstore.Object, off, size int64) error {
	return u.s.fail(ctx, fmt.Sprintf("copy part %d of", n), u.key, copyError(u.copyPart(ctx, n, src, off, size)))
}

func (u *upload) copyPart(ctx context.Context, n int, src objstore.Object, off, size int64) error {
	from, err := u.s.name(src.Key)
	if err != nil {
		return err
	}
	switch {
	case src.ETag == "":
		return &callerError{fmt.Errorf("the source %s has no ETag to pin the copy to", src.Key)}
	case off < 0 || size < 1 || off+size > src.Size:
		return fmt.Errorf("%w: [%d, %d) of %d bytes", objstore.ErrRange, off, off+size, src.Size)
	}
	length := size
	if size == src.Size {
		length = -1 // no range: AWS takes none of a source up to 5 MiB
	}
	part, err := u.s.core.CopyObjectPart(ctx, u.s.o.Bucket, from, u.s.o.Bucket, u.full, u.id, n, off, length, pinned(src))
	if hasCode(err, minio.InvalidArgument) || hasCode(err, "InvalidRange") {
		// The range lies within the source as the caller knows it. Servers compare it
		// with the source as it is now before they compare ETags.
		if body, _, gerr := u.s.get(ctx, src.Key, objstore.GetOptions{Length: 1, IfMatch: src.ETag}); gerr != nil {
			err = gerr
		} else {
			body.Close()
		}
	}
	if err != nil {
		return err
	}
	u.set(n, part.ETag, size)
	return nil
}

func (u *upload) set(n int, etag string, size int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.etags[n], u.sizes[n], u.repeat = etag, size, false
}

// Complete implements objstore.Upload.
func (u *upload) Complete(ctx context.Context) (objstore.Object, error) {
	made, err := u.complete(ctx)
	return made, u.s.fail(ctx, "complete the upload to", u.key, err)
}

func (u *upload) complete(ctx context.Context) (none objstore.Object, err error) {
	if err := objstore.Ended(ctx); err != nil {
		return none, err
	}
	parts, etags, size, err := u.parts()
	if err != nil {
		return none, err
	}
	info, err := u.s.core.CompleteMultipartUpload(ctx, u.s.o.Bucket, u.full, u.id, parts, minio.PutObjectOptions{})
	if hasCode(err, minio.NoSuchUpload) { // or an earlier process was not answered
		return u.lostAnswer(ctx, joinedETag(etags), size, err)
	}
	if err != nil {
		return none, err
	}
	u.mu.Lock()
	repeat := u.repeat
	u.mu.Unlock()
	if want := joinedETag(etags); repeat && want != strings.Trim(info.ETag, `"`) {
		// Some servers say yes to what was completed with other parts.
		return none, fmt.Errorf("%w: it was completed as %s, not %s", objstore.ErrRefused, info.ETag, want)
	}
	return objstore.Object{Key: u.key, Size: size, ETag: info.ETag}, nil
}

func (u *upload) parts() (parts []minio.CompletePart, etags []string, size int64, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := objstore.CheckParts(u.sizes); err != nil {
		return nil, nil, 0, err
	}
	for n := 1; n <= len(u.sizes); n++ {
		parts = append(parts, minio.CompletePart{PartNumber: n, ETag: u.etags[n]})
		etags = append(etags, u.etags[n])
		size += u.sizes[n]
	}
	return parts, etags, size, nil
}

// lostAnswer decides what it means that an upload is gone when it is completed: an
// earlier try did it and its answer was lost, if the object has this upload's nonce;
// else another ended the upload. ETags would not tell: under a KMS key they follow
// from nothing. Only an upload of another process, whose nonce is not known, has
// nothing else: joined, the ETag that its parts make, "" for none.
func (u *upload) lostAnswer(ctx context.Context, joined string, size int64, cause error) (objstore.Object, error) {
	body, info, _, err := u.s.core.GetObject(ctx, u.s.o.Bucket, u.full, minio.GetObjectOptions{})
	if err != nil {
		return objstore.Object{}, cause
	}
	body.Close()
	ours := u.nonce != "" && info.UserMetadata[nonceName] == u.nonce ||
		u.nonce == "" && joined != "" && strings.Trim(info.ETag, `"`) == joined
	if !ours || info.Size != size {
		return objstore.Object{}, cause
	}
	return objstore.Object{Key: u.key, Size: size, ETag: info.ETag, Modified: info.LastModified}, nil
}

// Abort implements objstore.Upload.
func (u *upload) Abort(ctx context.Context) error {
	return u.s.fail(ctx, "abort the upload to", u.key, u.abort(ctx))
}

func (u *upload) abort(ctx context.Context) error {
	err := u.s.core.AbortMultipartUpload(ctx, u.s.o.Bucket, u.full, u.id)
	if hasCode(err, minio.NoSuchUpload) {
		return nil
	}
	return err
}

// AbortUpload implements objstore.Store.
func (s *Store) AbortUpload(ctx context.Context, p objstore.PendingUpload) error {
	full, err := s.name(p.Key)
	if err != nil {
		return s.fail(ctx, "abort the upload to", p.Key, err)
	}
	return (&upload{s: s, key: p.Key, full: full, id: p.ID}).Abort(ctx)
}
