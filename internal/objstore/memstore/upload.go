package memstore

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/chromafs/chromafs/internal/objstore"
)

// upload is an object being made of parts. The store's lock guards it.
type upload struct {
	store *Store
	objstore.PendingUpload
	parts map[int][]byte
}

// NewUpload implements objstore.Store.
func (s *Store) NewUpload(ctx context.Context, key string) (objstore.Upload, error) {
	if err := objstore.CheckKey(key); err != nil {
		return nil, err
	}
	var u *upload
	err := s.do(ctx, "new-upload", key, func() error {
		s.uploads++
		id := fmt.Sprintf("upload-%d", s.uploads)
		u = &upload{s, objstore.PendingUpload{Key: key, ID: id, Started: s.Now()}, map[int][]byte{}}
		s.pending[id] = u
		return nil
	})
	if err != nil {
		return nil, err
	}
	return u, nil
}

// Uploads implements objstore.Store.
func (s *Store) Uploads(ctx context.Context, prefix string) ([]objstore.PendingUpload, error) {
	var found []objstore.PendingUpload
	err := s.do(ctx, "uploads", prefix, func() error {
		for _, id := range slices.Sorted(maps.Keys(s.pending)) {
			if u := s.pending[id]; strings.HasPrefix(u.Key, prefix) {
				found = append(found, u.PendingUpload)
			}
		}
		return nil
	})
	return found, err
}

// AbortUpload implements objstore.Store.
func (s *Store) AbortUpload(ctx context.Context, u objstore.PendingUpload) error {
	return s.do(ctx, "abort-upload", u.Key, func() error {
		delete(s.pending, u.ID)
		return nil
	})
}

// resumed is an upload that a process goes on with: the parts that it knows of count,
// others that the store may hold do not.
type resumed struct {
	*upload
	mu    sync.Mutex // guards known; never taken under the store's lock
	known map[int]objstore.UploadPart
}

// ResumeUpload implements objstore.Resumer.
func (s *Store) ResumeUpload(_ context.Context, p objstore.PendingUpload, parts []objstore.UploadPart) (objstore.Upload, error) {
	r := &resumed{upload: &upload{s, p, map[int][]byte{}}, known: map[int]objstore.UploadPart{}}
	s.mu.Lock()
	if there := s.pending[p.ID]; there != nil {
		r.upload = there
	}
	s.mu.Unlock()
	for _, part := range parts {
		r.known[part.Number] = part
	}
	return r, nil
}

// PutPart implements objstore.Upload.
func (r *resumed) PutPart(ctx context.Context, n int, body io.ReaderAt, off, size int64) error {
	return r.learn(n, r.upload.PutPart(ctx, n, body, off, size))
}

// CopyPart implements objstore.Upload.
func (r *resumed) CopyPart(ctx context.Context, n int, src objstore.Object, off, size int64) error {
	return r.learn(n, r.upload.CopyPart(ctx, n, src, off, size))
}

func (r *resumed) learn(n int, err error) error {
	part, ok := r.upload.Part(n)
	if err == nil && ok {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.known[n] = part
	}
	return err
}

// Complete implements objstore.Upload. As in S3 the parts are pinned, and what an
// earlier process completed is completed.
func (r *resumed) Complete(ctx context.Context) (objstore.Object, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var sums []byte
	for n := 1; n <= len(r.known); n++ {
		sum, err := hex.DecodeString(r.known[n].ETag)
		if err != nil {
			return objstore.Object{}, err
		}
		sums = append(sums, sum...)
	}
	sum := md5.Sum(sums)
	if there := r.store.stored(r.Key); there.ETag == fmt.Sprintf("%s-%d", hex.EncodeToString(sum[:]), len(r.known)) {
		return there, nil
	}
	r.store.mu.Lock()
	for n, data := range r.parts {
		part, known := r.known[n]
		if !known {
			delete(r.parts, n)
		} else if part.ETag != etagOf(data) {
			r.store.mu.Unlock()
			return objstore.Object{}, fmt.Errorf("%w: part %d is another", objstore.ErrRefused, n)
		}
	}
	r.store.mu.Unlock()
	return r.upload.Complete(ctx)
}

func (s *Store) stored(key string) objstore.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[key].Object
}

func etagOf(data []byte) string {
	sum := md5.Sum(data)
	return hex.EncodeToString(sum[:])
}

// Part implements objstore.PartTeller.
func (u *upload) Part(n int) (objstore.UploadPart, bool) {
	u.store.mu.Lock()
	defer u.store.mu.Unlock()
	data, ok := u.parts[n]
	return objstore.UploadPart{Number: n, Size: int64(len(data)), ETag: etagOf(data)}, ok
}

// ID implements objstore.Upload.
func (u *upload) ID() string { return u.PendingUpload.ID }

// setLocked stores part n.
func (u *upload) setLocked(n int, data []byte) error {
	if n < 1 {
		return fmt.Errorf("%w: part %d", objstore.ErrRefused, n)
	}
	if u.store.pending[u.ID()] != u {
		return fmt.Errorf("%w: %w", objstore.ErrUnavailable, objstore.ErrNoUpload)
	}
	u.parts[n] = data
	return nil
}

// PutPart implements objstore.Upload.
func (u *upload) PutPart(ctx context.Context, n int, body io.ReaderAt, off, size int64) error {
	data, err := read(body, off, size)
	if err != nil {
		return &objstore.Error{Op: "put-part", Store: u.store.String(), Key: u.Key, Err: err}
	}
	return u.store.do(ctx, "put-part", u.Key, func() error { return u.setLocked(n, data) })
}

// CopyPart implements objstore.Upload.
func (u *upload) CopyPart(ctx context.Context, n int, src objstore.Object, off, size int64) error {
	return u.store.do(ctx, "copy-part", u.Key, func() error {
		found, err := u.store.sourceLocked(src)
		if err != nil {
			return err
		}
		if off < 0 || size < 1 || off+size > found.Size {
			return fmt.Errorf("%w: [%d, %d) of %d bytes", objstore.ErrRange, off, off+size, found.Size)
		}
		return u.setLocked(n, found.data[off:off+size])
	})
}

// Complete implements objstore.Upload.
func (u *upload) Complete(ctx context.Context) (objstore.Object, error) {
	var made objstore.Object
	err := u.store.do(ctx, "complete", u.Key, func() error {
		if u.store.pending[u.ID()] != u {
			return fmt.Errorf("%w: %w", objstore.ErrUnavailable, objstore.ErrNoUpload)
		}
		sizes := map[int]int64{}
		for n, part := range u.parts {
			sizes[n] = int64(len(part))
		}
		if err := objstore.CheckParts(sizes); err != nil {
			return err
		}
		var data, sums []byte
		for n := 1; n <= len(u.parts); n++ {
			data = append(data, u.parts[n]...)
			sum := md5.Sum(u.parts[n])
			sums = append(sums, sum[:]...)
		}
		sum := md5.Sum(sums)
		made = u.store.storeLocked(u.Key, data, fmt.Sprintf("%s-%d", hex.EncodeToString(sum[:]), len(u.parts)))
		delete(u.store.pending, u.ID())
		return nil
	})
	return made, err
}

// Abort implements objstore.Upload.
func (u *upload) Abort(ctx context.Context) error {
	return u.store.do(ctx, "abort", u.Key, func() error {
		delete(u.store.pending, u.ID())
		return nil
	})
}
