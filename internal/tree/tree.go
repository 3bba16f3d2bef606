// Package tree describes a directory tree as values: what an entry is, what its
// content is made of, and how to walk one without following a path string.
//
// The model: a tree is a list of entries sorted by path. A path is relative to
// the tree's root, slash-separated, made of raw bytes and never empty. Content
// is cut into equal parts (all but the last), each known by its SHA-256.
package tree

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Type says what kind of file an entry is. Other kinds (sockets, FIFOs, devices)
// cannot live in an object store and never become entries.
type Type uint8

// The kinds of entries.
const (
	File Type = iota + 1
	Dir
	Symlink
)

var typeNames = map[Type]string{File: "file", Dir: "dir", Symlink: "symlink"}

// String returns the name that manifests use.
func (t Type) String() string {
	if s, ok := typeNames[t]; ok {
		return s
	}
	return fmt.Sprintf("type(%d)", uint8(t))
}

// MarshalText implements encoding.TextMarshaler.
func (t Type) MarshalText() ([]byte, error) {
	if s, ok := typeNames[t]; ok {
		return []byte(s), nil
	}
	return nil, fmt.Errorf("no such entry type: %d", uint8(t))
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Type) UnmarshalText(b []byte) error {
	for k, s := range typeNames {
		if s == string(b) {
			*t = k
			return nil
		}
	}
	return fmt.Errorf("no such entry type: %q", b)
}

// Entry is one file, folder or symbolic link as lstat(2) shows it.
type Entry struct {
	Path       string
	Type       Type
	Mode       uint32 // permission bits, set-uid, set-gid and sticky (07777)
	UID, GID   uint32
	Size       int64 // bytes; files only
	ModTime    int64 // nanoseconds since the epoch
	ChangeTime int64 // nanoseconds since the epoch
	Inode      uint64
	Nlink      uint64
	Target     string // symbolic links only
}

// SameStat reports whether size, mtime, ctime and inode are all unchanged, which
// is what git and rsync take as "not touched" (promise J4 rests on it).
func (e Entry) SameStat(o Entry) bool {
	return e.Type == o.Type && e.Size == o.Size && e.ModTime == o.ModTime &&
		e.ChangeTime == o.ChangeTime && e.Inode == o.Inode
}

// Record is an entry together with its content as a snapshot holds it.
type Record struct {
	Entry
	PartSize int64  // bytes per part; files with content only
	Parts    []Hash // SHA-256 of each part, in order
	ETag     string // of the object that holds the content, as the store gave it
}

// SameContent reports whether two records hold the same bytes.
func (r Record) SameContent(o Record) bool {
	return r.Type == o.Type && r.Size == o.Size && r.Target == o.Target &&
		r.PartSize == o.PartSize && slices.Equal(r.Parts, o.Parts)
}

// Reader is an open file of a frozen tree.
type Reader interface {
	io.ReaderAt
	io.Closer
}

// Sort orders entries by path, bytewise, so that a folder precedes what it holds.
func Sort(entries []Entry) {
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) })
}

// Hash is a SHA-256 sum.
type Hash [sha256.Size]byte

// String returns the sum in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(b []byte) error {
	if len(b) != 2*len(h) {
		return fmt.Errorf("a SHA-256 has %d hexadecimal digits, not %d", 2*len(h), len(b))
	}
	_, err := hex.Decode(h[:], b)
	return err
}

// Limits of the part grid. 8 MiB is above S3's 5 MiB minimum for a part that is
// not the last; 10,000 is S3's limit of parts in one upload.
const (
	MinPartSize = 8 << 20
	MaxParts    = 10_000
)

// PartSize returns the size of the parts, in bytes, that a file of size bytes is
// cut into: 8 MiB, doubled until no more than 10,000 parts are needed.
func PartSize(size int64) int64 {
	part := int64(MinPartSize)
	for size > part*MaxParts {
		part *= 2
	}
	return part
}

// PartCount returns how many parts of partSize bytes hold size bytes.
func PartCount(size, partSize int64) int {
	if size <= 0 {
		return 0
	}
	return int((size-1)/partSize + 1)
}

// PartRange returns where part i (from 0) of a file lies.
func PartRange(size, partSize int64, i int) (off, length int64) {
	off = int64(i) * partSize
	return off, min(partSize, size-off)
}

// hashChunk is how much is read at once, and how often a hole is looked for.
const hashChunk = 256 << 10

var hashBuffers = sync.Pool{New: func() any { return new([hashChunk]byte) }}

// HashPart returns the SHA-256 of length bytes of r from off on. Holes are not read,
// and a part that is nothing else is not hashed either: see ZeroHash. It fails with
// io.ErrUnexpectedEOF where r is shorter.
func HashPart(r io.ReaderAt, off, length int64) (Hash, error) {
	end := off + length
	if length > 0 && NextData(r, off, end) == end {
		return ZeroHash(length), nil
	}
	h := sha256.New()
	buf := hashBuffers.Get().(*[hashChunk]byte)
	defer hashBuffers.Put(buf)
	for at := off; at < end; {
		data := NextData(r, at, end)
		writeZeros(h, data-at)
		at = data
		p := buf[:min(hashChunk, end-at)]
		n, err := r.ReadAt(p, at)
		if n < len(p) && (err == nil || err == io.EOF) {
			err = fmt.Errorf("%w: %d of %d bytes at offset %d", io.ErrUnexpectedEOF, at+int64(n)-off, length, off)
		}
		if n < len(p) {
			return Hash{}, err
		}
		h.Write(p)
		at += int64(n)
	}
	return Hash(h.Sum(nil)), nil
}

// HashParts returns the hashes of all parts of r, size bytes long.
func HashParts(ctx context.Context, r io.ReaderAt, size, partSize int64) ([]Hash, error) {
	sums := make([]Hash, 0, PartCount(size, partSize))
	for i := range cap(sums) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		off, length := PartRange(size, partSize, i)
		sum, err := HashPart(r, off, length)
		if err != nil {
			return nil, err
		}
		sums = append(sums, sum)
	}
	return sums, nil
}
