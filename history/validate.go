package history

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/chromafs/chromafs/internal/tree"
)

// Bounds of what is believed. They are far above anything real and keep a hostile
// or damaged document from using up memory or overflowing a counter.
const (
	maxHeadBytes     = 1 << 20
	maxManifestBytes = 512 << 20
	maxEntries       = 4 << 20
	maxBytes         = 1 << 60 // of all files together
	maxCounter       = 1 << 53 // sequence and epoch; JSON readers hold no more exactly
	maxName          = 256     // bytes of lineage, writer, nonce
	maxETag          = 1024
	maxTarget        = 4095
)

func (h *Head) validate() error {
	if h.Format != Format {
		return fmt.Errorf("format is %d, not %d", h.Format, Format)
	}
	if err := checkOrigin(h.Lineage, h.Writer, h.Nonce, h.Sequence, h.Epoch); err != nil {
		return err
	}
	seen := make(map[ID]bool, len(h.History))
	for _, id := range h.History {
		if _, err := ParseID(string(id)); err != nil {
			return fmt.Errorf("history: %w", err)
		}
		if id.IsBranch() || seen[id] {
			return fmt.Errorf("history lists %s, which is a branch or listed twice", id)
		}
		seen[id] = true
	}
	if h.Newest == nil {
		if len(h.History) > 0 || h.Sequence > 0 {
			return fmt.Errorf("there is no newest snapshot, but a sequence of %d and %d in history", h.Sequence, len(h.History))
		}
		return nil
	}
	if len(h.History) == 0 || h.History[len(h.History)-1] != h.Newest.ID || h.Sequence == 0 {
		return fmt.Errorf("the newest snapshot %s is not the last in history, or has no sequence", h.Newest.ID)
	}
	return h.Newest.validate()
}

func (s *Summary) validate() error {
	if sum, err := hex.DecodeString(s.ManifestSHA256); err != nil || len(sum) != len(tree.Hash{}) {
		return fmt.Errorf("%q is no SHA-256 of a manifest", s.ManifestSHA256)
	}
	if s.Files < 0 || s.Files > maxEntries || s.Bytes < 0 || s.Bytes > maxBytes {
		return fmt.Errorf("%d files with %d bytes are impossible", s.Files, s.Bytes)
	}
	return checkTime(s.Created)
}

// checkOrigin checks what head and manifest have in common.
func checkOrigin(lineage, writer, nonce string, sequence, epoch uint64) error {
	for _, f := range []struct{ name, value string }{{"lineage", lineage}, {"writer", writer}, {"nonce", nonce}} {
		if f.value == "" || len(f.value) > maxName || !utf8.ValidString(f.value) {
			return fmt.Errorf("%s %q: expected 1 to %d bytes of text", f.name, f.value, maxName)
		}
	}
	if sequence > maxCounter || epoch > maxCounter {
		return fmt.Errorf("sequence %d or epoch %d is impossible", sequence, epoch)
	}
	return nil
}

func checkTime(t time.Time) error {
	if y := t.UTC().Year(); y < 1 || y > 9999 {
		return fmt.Errorf("the year %d is impossible", y)
	}
	return nil
}

// validate holds everything that the rest of the package relies on: it is called
// before a manifest is stored and before anything is done with a fetched one.
func (m *Manifest) validate() error {
	if m.Format != Format {
		return fmt.Errorf("format is %d, not %d", m.Format, Format)
	}
	if err := checkOrigin(m.Lineage, m.Writer, m.Nonce, m.Sequence, m.Epoch); err != nil {
		return err
	}
	if _, err := ParseID(string(m.ID)); err != nil {
		return err
	}
	if m.Sequence == 0 {
		return errors.New("a snapshot has a sequence from 1 on")
	}
	if err := checkTime(m.Created); err != nil {
		return err
	}
	if m.Consistency != Quiescent && m.Consistency != CrashConsistent {
		return fmt.Errorf("there is no consistency %q", m.Consistency)
	}
	if len(m.Entries) > maxEntries {
		return fmt.Errorf("%d entries are more than %d", len(m.Entries), maxEntries)
	}
	return checkEntries(m.Entries)
}

func checkEntries(entries []tree.Record) error {
	folders := map[string]bool{"": true}
	var total int64
	for i := range entries {
		r := &entries[i]
		if err := checkPath(r.Path); err != nil {
			return fmt.Errorf("path %q: %w", r.Path, err)
		}
		if i > 0 && entries[i-1].Path >= r.Path {
			return fmt.Errorf("%q: entries are not sorted or not unique", r.Path)
		}
		if !folders[parentOf(r.Path)] {
			return fmt.Errorf("%q: its parent is not a folder of the snapshot", r.Path)
		}
		if r.Type == tree.Dir {
			folders[r.Path] = true
		}
		if err := checkRecord(r); err != nil {
			return fmt.Errorf("%q: %w", r.Path, err)
		}
		if total += r.Size; total > maxBytes {
			return fmt.Errorf("more than %d bytes are impossible", int64(maxBytes))
		}
	}
	return nil
}

func parentOf(path string) string {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)]
}

func checkRecord(r *tree.Record) error {
	if r.Mode&^0o7777 != 0 {
		return fmt.Errorf("mode %o has bits that are no permission", r.Mode)
	}
	if len(r.ETag) > maxETag || !utf8.ValidString(r.ETag) || strings.ContainsFunc(r.ETag, isControl) {
		return fmt.Errorf("%q is no ETag", r.ETag)
	}
	switch r.Type {
	case tree.File:
		return checkParts(r)
	case tree.Dir:
		if r.Target != "" {
			return errors.New("a folder has no target")
		}
	case tree.Symlink:
		if r.Target == "" || len(r.Target) > maxTarget || strings.IndexByte(r.Target, 0) >= 0 {
			return fmt.Errorf("%q is no target of a symbolic link", r.Target)
		}
	default:
		return fmt.Errorf("there is no entry type %d", r.Type)
	}
	if r.Size != 0 || r.PartSize != 0 || len(r.Parts) > 0 || r.ETag != "" {
		return fmt.Errorf("a %s has no content", r.Type)
	}
	return nil
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

func checkParts(r *tree.Record) error {
	switch {
	case r.Target != "":
		return errors.New("a file has no target")
	case r.Size < 0 || r.Size > maxBytes:
		return fmt.Errorf("a size of %d bytes is impossible", r.Size)
	case r.PartSize < 0 || r.Size > 0 && r.PartSize == 0:
		return fmt.Errorf("a part size of %d bytes is impossible", r.PartSize)
	}
	want := 0
	if r.Size > 0 {
		want = tree.PartCount(r.Size, r.PartSize)
	}
	if want > tree.MaxParts || len(r.Parts) != want {
		return fmt.Errorf("%d bytes in parts of %d make %d parts (at most %d), not %d",
			r.Size, r.PartSize, want, tree.MaxParts, len(r.Parts))
	}
	return nil
}
