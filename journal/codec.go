package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/chromafs/chromafs/internal/tree"
)

// formatVersion is the version of the format that this code writes. Anything
// that changes what a value means or holds raises it.
const formatVersion = 1

// header is the one value that is no path's. It is JSON; the rest is binary,
// because there may be many of it.
type header struct {
	Format      int      `json:"format"`
	JournalID   string   `json:"journal_id"`
	Inode       uint64   `json:"inode"`          // of journal.db itself
	Born        int64    `json:"born,omitempty"` // birth time of journal.db; 0 where the file system has none
	Lineage     string   `json:"lineage,omitempty"`
	Epoch       uint64   `json:"epoch,omitempty"`
	ID          string   `json:"id,omitempty"`
	Sequence    uint64   `json:"sequence,omitempty"`
	Published   bool     `json:"published,omitempty"`
	FreshReason string   `json:"fresh_reason,omitempty"`
	CleanStop   bool     `json:"clean_stop,omitempty"`
	Cut         uint64   `json:"cut"`
	Intent      *Intent  `json:"intent,omitempty"`
	Pending     []string `json:"pending,omitempty"`
	Counts      counts   `json:"counts"`
}

// counts makes a lost entry visible, which no checksum of the others would.
type counts struct {
	Marks int `json:"marks"`
	Base  int `json:"base"`
	Stats int `json:"stats"`
}

// mark is one dirty mark. A raised mark keeps when its path first differed from
// the published snapshot; acknowledging a cut below its number makes that the
// time of the raise.
type mark struct {
	cut       uint64
	first, at int64 // nanoseconds since the epoch
}

// stat is the part of an entry that tells a touched file from an untouched one.
type stat struct {
	typ                  tree.Type
	size, mtime, changed int64
	inode                uint64
}

func statOf(e tree.Entry) stat {
	return stat{typ: e.Type, size: e.Size, mtime: e.ModTime, changed: e.ChangeTime, inode: e.Inode}
}

// errValue is what every decoder's error wraps.
var errValue = errors.New("malformed value")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum covers where a value is kept too, so that one found under a damaged
// key is not taken for another path's.
func checksum(bucket, key string, payload []byte) uint32 {
	sum := crc32.Update(0, castagnoli, []byte(bucket+"\x00"+key+"\x00"))
	return crc32.Update(sum, castagnoli, payload)
}

func seal(bucket, key string, payload []byte) []byte {
	return binary.LittleEndian.AppendUint32(payload, checksum(bucket, key, payload))
}

func unseal(bucket, key string, value []byte) ([]byte, error) {
	if len(value) < 4 {
		return nil, fmt.Errorf("%w: %d bytes", errValue, len(value))
	}
	payload, sum := value[:len(value)-4], binary.LittleEndian.Uint32(value[len(value)-4:])
	if sum != checksum(bucket, key, payload) {
		return nil, fmt.Errorf("%w: checksum", errValue)
	}
	return payload, nil
}

func encodeHeader(h header) ([]byte, error) { return json.Marshal(h) }

// decodeHeader fails with a *NewerFormatError before it looks at anything else.
func decodeHeader(b []byte) (header, error) {
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &version); err != nil {
		return header{}, fmt.Errorf("%w: header: %w", errValue, err)
	}
	if version.Format > formatVersion {
		return header{}, &NewerFormatError{Format: version.Format}
	}
	var h header
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil {
		return header{}, fmt.Errorf("%w: header: %w", errValue, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return header{}, fmt.Errorf("%w: header: more than one value", errValue)
	}
	return h, h.valid()
}

func (h header) valid() error {
	wrong := ""
	switch {
	case h.Format != formatVersion:
		wrong = fmt.Sprintf("format %d", h.Format)
	case h.JournalID == "":
		wrong = "no journal id"
	case h.Published && (h.Lineage == "" || h.ID == ""):
		wrong = "published, but no lineage or id"
	case !h.Published && (h.ID != "" || h.Sequence != 0 || h.Counts.Base != 0):
		wrong = "a base, but never published"
	case h.Intent != nil && (h.Intent.ID == "" || h.Intent.Nonce == ""):
		wrong = "intent without id or nonce"
	case h.Intent != nil && h.Intent.Cut > h.Cut:
		wrong = fmt.Sprintf("intent of cut %d, above the highest, %d", h.Intent.Cut, h.Cut)
	case slices.Contains(h.Pending, ""):
		wrong = "empty pending id"
	default:
		return nil
	}
	return fmt.Errorf("%w: header: %s", errValue, wrong)
}

const markSize = 24

func encodeMark(m mark) []byte {
	b := make([]byte, 0, markSize+4)
	b = binary.LittleEndian.AppendUint64(b, m.cut)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.first))
	return binary.LittleEndian.AppendUint64(b, uint64(m.at))
}

func decodeMark(b []byte) (mark, error) {
	if len(b) != markSize {
		return mark{}, fmt.Errorf("%w: a mark of %d bytes", errValue, len(b))
	}
	return mark{
		cut:   binary.LittleEndian.Uint64(b),
		first: int64(binary.LittleEndian.Uint64(b[8:])),
		at:    int64(binary.LittleEndian.Uint64(b[16:])),
	}, nil
}

const statSize = 33

func encodeStat(s stat) []byte {
	b := make([]byte, 0, statSize+4)
	b = append(b, byte(s.typ))
	for _, v := range []uint64{uint64(s.size), uint64(s.mtime), uint64(s.changed), s.inode} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func decodeStat(b []byte) (stat, error) {
	if len(b) != statSize {
		return stat{}, fmt.Errorf("%w: a stat of %d bytes", errValue, len(b))
	}
	u := func(i int) uint64 { return binary.LittleEndian.Uint64(b[1+8*i:]) }
	s := stat{typ: tree.Type(b[0]), size: int64(u(0)), mtime: int64(u(1)), changed: int64(u(2)), inode: u(3)}
	if s.typ < tree.File || s.typ > tree.Symlink || s.size < 0 {
		return stat{}, fmt.Errorf("%w: a stat of %v, %d bytes long", errValue, s.typ, s.size)
	}
	return s, nil
}

// encodeRecord leaves the path out: it is the key.
func encodeRecord(r tree.Record) []byte {
	b := make([]byte, 0, 96+len(r.Target)+len(r.ETag)+len(r.Parts)*len(tree.Hash{}))
	b = append(b, byte(r.Type))
	for _, v := range []uint64{uint64(r.Mode), uint64(r.UID), uint64(r.GID), uint64(r.Size), r.Inode, r.Nlink, uint64(r.PartSize)} {
		b = binary.AppendUvarint(b, v)
	}
	b = binary.AppendVarint(b, r.ModTime)
	b = binary.AppendVarint(b, r.ChangeTime)
	for _, s := range []string{r.Target, r.ETag} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	for _, sum := range r.Parts {
		b = append(b, sum[:]...)
	}
	return b
}

// decodeRecord checks what it decodes as validRecord does.
func decodeRecord(path string, b []byte) (tree.Record, error) {
	d := decoder{b: b}
	r := tree.Record{Entry: tree.Entry{Path: path, Type: tree.Type(d.byte())}}
	r.Mode, r.UID, r.GID = d.uint32(), d.uint32(), d.uint32()
	r.Size = d.int63()
	r.Inode, r.Nlink = d.uvarint(), d.uvarint()
	r.PartSize = d.int63()
	r.ModTime, r.ChangeTime = d.varint(), d.varint()
	r.Target, r.ETag = d.string(), d.string()
	const sum = len(tree.Hash{})
	if d.bad || len(d.b)%sum != 0 {
		return tree.Record{}, fmt.Errorf("%w: a record of %d bytes", errValue, len(b))
	}
	for ; len(d.b) > 0; d.b = d.b[sum:] {
		r.Parts = append(r.Parts, tree.Hash(d.b[:sum]))
	}
	return r, validRecord(r)
}

// validRecord refuses what could not have come from a snapshot.
func validRecord(r tree.Record) error {
	wrong := ""
	switch {
	case !cleanPath(r.Path):
		wrong = "its path"
	case r.Type < tree.File || r.Type > tree.Symlink:
		wrong = r.Type.String()
	case r.Type != tree.File && (r.Size != 0 || len(r.Parts) != 0):
		wrong = "content, but no file"
	case r.Type == tree.Symlink && r.Target == "":
		wrong = "a link to nothing"
	case r.Size < 0 || r.PartSize < 0 || r.Size > 0 && r.PartSize == 0:
		wrong = "its size"
	case r.Size > 0 && len(r.Parts) != tree.PartCount(r.Size, r.PartSize), r.Size == 0 && len(r.Parts) != 0:
		wrong = fmt.Sprintf("%d parts of %d bytes for a size of %d", len(r.Parts), r.PartSize, r.Size)
	default:
		return nil
	}
	return fmt.Errorf("%w: the record of %q: %s", errValue, r.Path, wrong)
}

// cleanPath reports whether p is relative, without empty, "." or ".." segments.
func cleanPath(p string) bool {
	if strings.ContainsRune(p, 0) {
		return false
	}
	for segment := range strings.SplitSeq(p, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
	}
	return true
}

// decoder reads from the front of b; once something did not fit it is bad and
// returns zeros.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n <= 0 || n > len(d.b) {
		d.bad = d.bad || n != 0
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if d.take(max(n, -1)); d.bad || n == 0 {
		d.bad = true
		return 0
	}
	return v
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (d *decoder) uint32() uint32 {
	v := d.uvarint()
	d.bad = d.bad || v > math.MaxUint32
	return uint32(v)
}

func (d *decoder) int63() int64 {
	v := d.uvarint()
	d.bad = d.bad || v > math.MaxInt64
	return int64(v)
}

func (d *decoder) string() string {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.bad = true
		return ""
	}
	return string(d.take(int(n)))
}
