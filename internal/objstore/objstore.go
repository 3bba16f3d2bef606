package objstore

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"
	"unicode/utf8"
)

// Object describes a stored object.
type Object struct {
	Key      string
	Size     int64
	ETag     string
	Modified time.Time // by the store's clock; for people, never for decisions
}

// GetOptions chooses what Get reads. Offset and Length cut a range out of the
// object; Length 0 means to its end, and a range that reaches past the end is cut
// off there. A range that begins at or past the end is ErrRange, except that
// offset 0 of an empty object reads nothing.
type GetOptions struct {
	Offset, Length int64
	IfMatch        string // ErrPrecondition if the ETag is another
	IfNoneMatch    string // ErrNotModified if the ETag is this one
}

// Sparse is the body of a Get that may know that it is nothing but zeros, without
// reading them: a hole in a file. Zeros is asked before the first Read; false says
// nothing.
type Sparse interface{ Zeros() bool }

// PutOptions makes a Put conditional. At most one of IfMatch and IfAbsent is set.
type PutOptions struct {
	IfMatch     string // replace this state only, else ErrPrecondition
	IfAbsent    bool   // create only, else ErrPrecondition
	ContentType string // "" means application/octet-stream
}

// CopyOptions says what is known of a copy.
type CopyOptions struct {
	// Immutable: neither side is ever modified in place. A store on a file system
	// may then make the copy a second name of the same file.
	Immutable bool
}

// PendingUpload is a multipart upload that was neither completed nor aborted.
type PendingUpload struct {
	Key, ID string
	Started time.Time
}

// Store is an object store below one prefix. All errors but that of a context are
// of the kinds in errors.go.
type Store interface {
	// Get reads an object or a range of it. The Object describes the whole one.
	// Errors of the body's Read are of the same kinds. It never asks by HEAD, whose
	// answers cannot tell a missing key from a missing bucket.
	Get(ctx context.Context, key string, o GetOptions) (io.ReadCloser, Object, error)
	// Put stores the first size bytes of body in one request, verified on arrival.
	// It is not for more than 5 GiB. See the package on lost answers.
	Put(ctx context.Context, key string, body io.ReaderAt, size int64, o PutOptions) (Object, error)
	// Copy copies inside the store, pinned to src.ETag: ErrPrecondition if the
	// source is another by now, ErrNotFound if it is gone. src.Size must be right.
	Copy(ctx context.Context, dst string, src Object, o CopyOptions) (Object, error)
	// NewUpload begins an object made of parts. It replaces key when it completes.
	NewUpload(ctx context.Context, key string) (Upload, error)
	// List yields every object whose key begins with prefix, in the order of keys
	// (bytewise). After an error it ends; what came before does not count as whole.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]
	// Delete removes keys, in batches. Keys that are missing are fine, so a Delete
	// that failed half-way is repeated as it is.
	Delete(ctx context.Context, keys []string) error
	// Uploads returns the unfinished multipart uploads to keys with this prefix.
	Uploads(ctx context.Context, prefix string) ([]PendingUpload, error)
	// AbortUpload removes an unfinished upload. One that is gone is fine.
	AbortUpload(ctx context.Context, u PendingUpload) error
	// String names the store, s3://bucket/prefix or file:///dir, without secrets.
	String() string
}

// Hashed is a body of which a SHA-256 is known already: a store that needs it to have
// the body verified on arrival does not compute it again.
type Hashed interface {
	io.ReaderAt
	// SHA256 returns the sum of the bytes [off, off+size), if it is known.
	SHA256(off, size int64) (sum [32]byte, known bool)
}

// Upload is an object being made of parts, numbered from 1 without gaps. All parts
// but the last have one size (R2 demands it), at least 5 MiB (S3 demands it). Parts
// may be sent concurrently, in any order, and again with the same size. After an
// error of Complete the upload may still be pending: abort it.
type Upload interface {
	ID() string
	// PutPart sends bytes [off, off+size) of body as part n, verified on arrival.
	PutPart(ctx context.Context, n int, body io.ReaderAt, off, size int64) error
	// CopyPart makes part n of bytes [off, off+size) of src, inside the store,
	// pinned to src.ETag as Copy is.
	CopyPart(ctx context.Context, n int, src Object, off, size int64) error
	Complete(ctx context.Context) (Object, error)
	Abort(ctx context.Context) error
}

// UploadPart is a part that an upload holds.
type UploadPart struct {
	Number int
	Size   int64
	ETag   string // pins the part when the upload is completed
}

// PartTeller is an Upload that tells what is needed to go on with it later.
type PartTeller interface {
	// Part returns part n, false where this process has not stored it.
	Part(n int) (UploadPart, bool)
}

// Resumer is a Store that goes on with an upload which another process began. It is
// only for stores that keep parts durably from the moment they are stored.
type Resumer interface {
	// ResumeUpload returns an unfinished upload with the parts that it is known to
	// hold; others that it may hold do not count. It asks the store nothing: that the
	// upload is gone shows later, as ErrNoUpload. A Complete that an earlier process
	// was not answered to succeeds, given the same parts, where ETags follow from
	// content; else the upload counts as gone.
	ResumeUpload(ctx context.Context, u PendingUpload, parts []UploadPart) (Upload, error)
}

// PartOf returns part n of u, false where u does not tell.
func PartOf(u Upload, n int) (UploadPart, bool) {
	if t, ok := u.(PartTeller); ok {
		return t.Part(n)
	}
	return UploadPart{}, false
}

// ResumeUpload goes on with an upload, ErrUnsupported where s cannot.
func ResumeUpload(ctx context.Context, s Store, u PendingUpload, parts []UploadPart) (Upload, error) {
	if r, ok := s.(Resumer); ok {
		return r.ResumeUpload(ctx, u, parts)
	}
	return nil, &Error{Op: "go on with the upload to", Store: s.String(), Key: u.Key, Kind: ErrUnsupported}
}

// Limits of keys, the smallest of what S3 and file systems allow.
const (
	MaxKey     = 1024 // bytes, the store's prefix included
	MaxSegment = 255  // bytes
)

// CheckKey returns an error of kind ErrRefused unless key can name an object in
// every store: valid UTF-8 without control characters, segments that are not empty,
// "." or "..", and lengths within MaxKey and MaxSegment.
func CheckKey(key string) error {
	refuse := func(why string) error {
		return &Error{Op: "use key", Key: key, Kind: ErrRefused, Err: fmt.Errorf("%q %s", key, why)}
	}
	switch {
	case key == "":
		return refuse("is empty")
	case len(key) > MaxKey:
		return refuse(fmt.Sprintf("is longer than %d bytes", MaxKey))
	case !utf8.ValidString(key):
		return refuse("is not valid UTF-8")
	case strings.ContainsFunc(key, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return refuse("holds a control character")
	}
	for segment := range strings.SplitSeq(key, "/") {
		switch {
		case segment == "":
			return refuse("has an empty segment (a slash at an end, or two together)")
		case segment == "." || segment == "..":
			return refuse("has a segment . or ..")
		case len(segment) > MaxSegment:
			return refuse(fmt.Sprintf("has a segment longer than %d bytes", MaxSegment))
		}
	}
	return nil
}

// CheckRange returns an error of kind ErrRange unless o cuts a range out of an
// object of size bytes, and the length of that range.
func (o GetOptions) CheckRange(size int64) (length int64, err error) {
	switch {
	case o.Offset < 0 || o.Length < 0:
		return 0, fmt.Errorf("%w: offset %d, length %d", ErrRange, o.Offset, o.Length)
	case o.Offset == 0 && size == 0:
		return 0, nil
	case o.Offset >= size:
		return 0, fmt.Errorf("%w: offset %d of %d bytes", ErrRange, o.Offset, size)
	case o.Length == 0:
		return size - o.Offset, nil
	}
	return min(o.Length, size-o.Offset), nil
}

// CheckParts returns an error of kind ErrRefused unless the parts of an upload, by
// number, can be made into an object: at least one, from 1 without gaps, all but
// the last of one size, the last not bigger.
func CheckParts(sizes map[int]int64) error {
	if len(sizes) == 0 {
		return fmt.Errorf("%w: an upload without parts", ErrRefused)
	}
	for n := 1; n <= len(sizes); n++ {
		size, ok := sizes[n]
		switch last := n == len(sizes); {
		case !ok:
			return fmt.Errorf("%w: an upload of %d parts without part %d", ErrRefused, len(sizes), n)
		case !last && size != sizes[1] || last && size > sizes[1]:
			return fmt.Errorf("%w: part %d has %d bytes, part 1 has %d", ErrRefused, n, size, sizes[1])
		}
	}
	return nil
}

// Body reads the bytes [off, off+size) of what a caller wants stored, from the
// start on as often as a try needs it. It remembers an error of the caller's body,
// which is neither the store's nor the network's.
type Body struct {
	section *io.SectionReader
	read    int64
	err     error
}

// NewBody returns a Body. It must not be used concurrently.
func NewBody(body io.ReaderAt, off, size int64) *Body {
	return &Body{section: io.NewSectionReader(body, off, size)}
}

// Read implements io.Reader. A body that ends early fails with io.ErrUnexpectedEOF.
func (b *Body) Read(p []byte) (int, error) {
	n, err := b.section.Read(p)
	b.read += int64(n)
	if err == io.EOF && b.read < b.section.Size() {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		err = fmt.Errorf("read what to send, at %d of %d bytes: %w", b.read, b.section.Size(), err)
		b.err = err
	}
	return n, err
}

// Seek implements io.Seeker.
func (b *Body) Seek(offset int64, whence int) (int64, error) {
	at, err := b.section.Seek(offset, whence)
	if err == nil {
		b.read = at
	}
	return at, err
}

// Err returns the error of the caller's body, or nil.
func (b *Body) Err() error { return b.err }
