package history

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/chromafs/chromafs/internal/tree"
)

// wireManifest is a manifest in JSON, its entries left out.
type wireManifest struct {
	Format      int         `json:"format"`
	Lineage     string      `json:"lineage"`
	Sequence    uint64      `json:"sequence"`
	Epoch       uint64      `json:"epoch"`
	Writer      string      `json:"writer"`
	Nonce       string      `json:"nonce"`
	ID          ID          `json:"id"`
	Created     time.Time   `json:"created"`
	Consistency Consistency `json:"consistency"`
}

// wireEntry is an entry in JSON. JSON holds no bytes that are not UTF-8: names
// with such bytes are in the fields that end in _base64 instead.
type wireEntry struct {
	Path         string      `json:"path,omitempty"`
	PathBase64   string      `json:"path_base64,omitempty"`
	Type         tree.Type   `json:"type"`
	Mode         string      `json:"mode"` // octal, as chmod(1) takes it
	UID          uint32      `json:"uid"`
	GID          uint32      `json:"gid"`
	ModTime      int64       `json:"mtime_ns"`
	Size         int64       `json:"size,omitempty"`
	PartSize     int64       `json:"part_size,omitempty"`
	Parts        []tree.Hash `json:"parts,omitempty"` // SHA-256 of each
	ETag         string      `json:"etag,omitempty"`
	Target       string      `json:"target,omitempty"`
	TargetBase64 string      `json:"target_base64,omitempty"`
}

// EncodeManifest returns a manifest as it is stored: JSON, one entry a line, the
// same bytes for the same manifest. It fails where DecodeManifest would.
func EncodeManifest(m *Manifest) ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("encode the manifest of %s: %w", m.ID, err)
	}
	head, err := marshal(wireManifest{m.Format, m.Lineage, m.Sequence, m.Epoch, m.Writer, m.Nonce,
		m.ID, m.Created.UTC(), m.Consistency})
	if err != nil {
		return nil, fmt.Errorf("encode the manifest of %s: %w", m.ID, err)
	}
	var b bytes.Buffer
	b.Write(bytes.TrimSuffix(head, []byte("}")))
	b.WriteString(`,"entries":[`)
	for i := range m.Entries {
		line, err := marshal(toWire(&m.Entries[i]))
		if err != nil {
			return nil, fmt.Errorf("encode the manifest of %s: %q: %w", m.ID, m.Entries[i].Path, err)
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
		b.Write(line)
	}
	b.WriteString("\n]}\n")
	return b.Bytes(), nil
}

// DecodeManifest reads what EncodeManifest wrote and believes nothing of it: see
// validate. Fields it does not know are left alone.
func DecodeManifest(data []byte) (*Manifest, error) {
	if err := checkDocument(data, maxManifestBytes); err != nil {
		return nil, err
	}
	var w struct {
		wireManifest
		Entries []wireEntry `json:"entries"`
	}
	if err := json.Unmarshal(data, &w); err != nil {
		return nil, err
	}
	m := &Manifest{Format: w.Format, Lineage: w.Lineage, Sequence: w.Sequence, Epoch: w.Epoch, Writer: w.Writer,
		Nonce: w.Nonce, ID: w.ID, Created: w.Created, Consistency: w.Consistency,
		Entries: make([]tree.Record, len(w.Entries))}
	for i := range w.Entries {
		if err := w.Entries[i].to(&m.Entries[i]); err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
	}
	if err := m.validate(); err != nil {
		return nil, err
	}
	return m, nil
}

// sumMark begins the last line of a head: the SHA-256 of all bytes before it. Nothing
// else guards a head that comes over plain HTTP, and a wrong epoch or id in it would
// be believed.
const sumMark = "  \"sha256\": \""

// EncodeHead returns a head as it is stored.
func EncodeHead(h Head) ([]byte, error) {
	if h.History == nil {
		h.History = []ID{}
	}
	if err := h.validate(); err != nil {
		return nil, fmt.Errorf("encode manifest.json: %w", err)
	}
	data, err := json.MarshalIndent(h, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest.json: %w", err)
	}
	data = append(bytes.TrimSuffix(data, []byte("\n}")), ",\n"...)
	data = fmt.Appendf(data, "%s%s\"\n}\n", sumMark, sumHex(data))
	if len(data) > maxHeadBytes {
		return nil, fmt.Errorf("encode manifest.json: %d bytes for %d snapshots, more than %d; keep fewer",
			len(data), len(h.History), maxHeadBytes)
	}
	return data, nil
}

// checkSum compares a head's SHA-256 with what precedes it. Heads of before it was
// there are without one.
func checkSum(data []byte) error {
	i := bytes.LastIndex(data, []byte(sumMark))
	if i < 0 {
		return nil
	}
	if want := sumMark + sumHex(data[:i]) + "\""; !bytes.HasPrefix(data[i:], []byte(want)) {
		return errors.New("its sha256 is not that of the lines before (if somebody edited it: remove that line)")
	}
	return nil
}

// DecodeHead reads what EncodeHead wrote and believes nothing of it.
func DecodeHead(data []byte) (Head, error) {
	if err := checkDocument(data, maxHeadBytes); err != nil {
		return Head{}, err
	}
	if err := checkSum(data); err != nil {
		return Head{}, err
	}
	var h Head
	if err := json.Unmarshal(data, &h); err != nil {
		return Head{}, err
	}
	if err := h.validate(); err != nil {
		return Head{}, err
	}
	return h, nil
}

// checkDocument looks at the size and the format version only, so that a version
// that changed all else is still told from damage.
func checkDocument(data []byte, limit int) error {
	if len(data) > limit {
		return fmt.Errorf("%d bytes are more than the %d it may have", len(data), limit)
	}
	if !utf8.Valid(data) {
		return errors.New("it is not valid UTF-8")
	}
	var version struct {
		Format *int `json:"format"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return err
	}
	switch {
	case version.Format == nil:
		return errors.New("it names no format version")
	case *version.Format > Format:
		return &NewerFormatError{Found: *version.Format}
	case *version.Format != Format:
		return fmt.Errorf("there is no format version %d", *version.Format)
	}
	return nil
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func toWire(r *tree.Record) wireEntry {
	w := wireEntry{Type: r.Type, Mode: fmt.Sprintf("%04o", r.Mode), UID: r.UID, GID: r.GID, ModTime: r.ModTime,
		Size: r.Size, PartSize: r.PartSize, Parts: r.Parts, ETag: r.ETag}
	w.Path, w.PathBase64 = textOrBase64(r.Path)
	w.Target, w.TargetBase64 = textOrBase64(r.Target)
	return w
}

func (w *wireEntry) to(r *tree.Record) error {
	path, err := fromEither(w.Path, w.PathBase64)
	if err != nil {
		return fmt.Errorf("path: %w", err)
	}
	target, err := fromEither(w.Target, w.TargetBase64)
	if err != nil {
		return fmt.Errorf("%q: target: %w", path, err)
	}
	mode, err := strconv.ParseUint(w.Mode, 8, 32)
	if err != nil {
		return fmt.Errorf("%q: mode: %w", path, err)
	}
	*r = tree.Record{Entry: tree.Entry{Path: path, Type: w.Type, Mode: uint32(mode), UID: w.UID, GID: w.GID,
		Size: w.Size, ModTime: w.ModTime, Target: target}, PartSize: w.PartSize, Parts: w.Parts, ETag: w.ETag}
	return nil
}

func textOrBase64(s string) (text, coded string) {
	if utf8.ValidString(s) {
		return s, ""
	}
	return "", base64.StdEncoding.EncodeToString([]byte(s))
}

func fromEither(text, coded string) (string, error) {
	switch {
	case coded == "":
		return text, nil
	case text != "":
		return "", errors.New("given as text and in base64")
	}
	b, err := base64.StdEncoding.DecodeString(coded)
	return string(b), err
}

func sumHex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
