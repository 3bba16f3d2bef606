package history

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/chromafs/chromafs/internal/datadir"
)

// Keys of the layout, relative to the store's prefix.
const (
	HeadKey       = "manifest.json"
	LeaseKey      = "lease.json"
	HistoryPrefix = "history/"
)

// CurrentKey returns where the newest snapshot's copy of a file is kept for
// people and other tools.
func CurrentKey(path string) string { return EscapePath(path) }

// SnapshotPrefix returns the prefix of all that belongs to a snapshot.
func SnapshotPrefix(id ID) string { return HistoryPrefix + string(id) + "/" }

// ObjectKey returns where a snapshot keeps a file.
func ObjectKey(id ID, path string) string { return SnapshotPrefix(id) + EscapePath(path) }

// ManifestKey returns where a snapshot keeps its manifest.
func ManifestKey(id ID) string { return SnapshotPrefix(id) + "manifest.json" }

// ZerosKey returns where size zeros lie to be copied from while a snapshot is being
// stored. No path has this key (see ownName), and no snapshot that is published holds it.
func ZerosKey(id ID, size int64) string {
	return SnapshotPrefix(id) + datadir.StateName + "-zeros-" + strconv.FormatInt(size, 10)
}

// snapshotOf returns the folder name below history/ that a key lies in.
func snapshotOf(key string) (name, rest string, ok bool) {
	tail, ok := strings.CutPrefix(key, HistoryPrefix)
	if !ok {
		return "", "", false
	}
	return strings.Cut(tail, "/")
}

// Limits of names: what POSIX gives, so what a path can have and what a store
// that keeps its objects as files can hold.
const (
	maxSegment = 255
	maxPath    = 4095
)

// maxKey bounds the key of a path: with history/, the id of a branch and a prefix of
// up to 150 bytes it is one that a store allows (objstore.MaxKey).
const maxKey = 768

// cutMark stands in keys that were shortened, and nowhere in others: there a percent
// sign goes before two digits or a slash.
const cutMark = "%~"

// EscapePath returns the key that stands for a path. Ordinary paths stand for
// themselves. Escaped, as %XX per byte, are: the percent sign and the backslash,
// control characters and what XML cannot carry, bytes that are no UTF-8, a space
// or dot at the end of a segment (so "." and ".." too), and the first letter of
// a first segment that the layout uses itself. A segment longer than 255 bytes
// after that is cut into several, each but the last marked by a percent sign at
// its end. A key longer than maxKey is its beginning and the SHA-256 of the path;
// the manifest has the path. No key is ever a folder of another unless their paths
// are.
func EscapePath(path string) string {
	segments := strings.Split(path, "/")
	out := make([]string, 0, len(segments))
	for i, s := range segments {
		out = appendCut(out, escapeSegment(s, i == 0))
	}
	key := strings.Join(out, "/")
	if len(key) > maxKey {
		return shorten(key, path)
	}
	return key
}

// shorten cuts a key where its last segment has room for a hash, between characters.
func shorten(key, path string) string {
	sum := sha256.Sum256([]byte(path))
	tail := cutMark + hex.EncodeToString(sum[:])
	cut := maxKey - len(tail)
	last := strings.LastIndexByte(key[:cut], '/') + 1
	cut = min(cut, last+maxSegment-len(tail))
	for !utf8.RuneStart(key[cut]) {
		cut--
	}
	if i := strings.LastIndexByte(key[:cut], '%'); i >= last && cut-i < 3 { // an escape stays whole
		cut = i
	}
	return key[:cut] + tail
}

func escapeSegment(s string, first bool) []string {
	tokens := make([]string, 0, len(s))
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		token := s[i : i+n]
		last := i+n == len(s)
		if mustEscape(r, n) || last && (r == '.' || r == ' ') || i == 0 && first && ownName(s) {
			token = percent(token)
		}
		tokens = append(tokens, token)
		i += n
	}
	return tokens
}

func mustEscape(r rune, n int) bool {
	switch {
	case r == utf8.RuneError && n == 1, r == '%', r == '\\':
		return true
	case r < 0x20, r >= 0x7f && r < 0xa0, r == 0xfffe, r == 0xffff:
		return true
	}
	return false
}

// ownName reports whether a first segment is used by the layout itself, or may be by
// an adapter. Case is folded for stores that do not tell it apart.
func ownName(s string) bool {
	if strings.HasPrefix(s, datadir.StateName) {
		return true
	}
	return slices.ContainsFunc([]string{HeadKey, LeaseKey, "history"}, func(own string) bool {
		return len(s) == len(own) && strings.EqualFold(s, own)
	})
}

func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}

// appendCut joins tokens to as few segments as hold them, never cutting one.
func appendCut(out, tokens []string) []string {
	size := 0
	for _, t := range tokens {
		size += len(t)
	}
	var b strings.Builder
	for _, t := range tokens {
		if size > maxSegment && b.Len()+len(t) > maxSegment-1 {
			out = append(out, b.String()+"%")
			size -= b.Len()
			b.Reset()
		}
		b.WriteString(t)
	}
	return append(out, b.String())
}

// UnescapePath returns the path that a key stands for. It fails for every key
// that EscapePath does not make of a valid path, and for those that it shortened.
func UnescapePath(key string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(key); i++ {
		if key[i] != '%' {
			b.WriteByte(key[i])
			continue
		}
		if i+1 < len(key) && key[i+1] == '/' { // the segment goes on in the next one
			i++
			continue
		}
		if i+2 >= len(key) {
			return "", fmt.Errorf("key %q stands for no path: it ends in the middle of an escape", key)
		}
		hi, lo := hexDigit(key[i+1]), hexDigit(key[i+2])
		if hi < 0 || lo < 0 {
			return "", fmt.Errorf("key %q stands for no path: no such escape: %q", key, key[i:i+3])
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	path := b.String()
	if err := checkPath(path); err != nil {
		return "", fmt.Errorf("key %q stands for no path: %w", key, err)
	}
	if EscapePath(path) != key {
		return "", fmt.Errorf("key %q stands for no path: %q has the key %q", key, path, EscapePath(path))
	}
	return path, nil
}

func hexDigit(c byte) int { return strings.IndexByte("0123456789ABCDEF", c) }

// checkPath reports why a path cannot be one of a snapshot: it must be relative,
// clean, within POSIX's limits and outside chromafs's own folder.
func checkPath(path string) error {
	if path == "" || len(path) > maxPath {
		return fmt.Errorf("a path has 1 to %d bytes, not %d", maxPath, len(path))
	}
	if strings.IndexByte(path, 0) >= 0 {
		return errors.New("a path holds no NUL byte")
	}
	first := true
	for s := range strings.SplitSeq(path, "/") {
		switch {
		case s == "" || s == "." || s == "..":
			return fmt.Errorf("a path is relative and clean; this one has a segment %q", s)
		case len(s) > maxSegment:
			return fmt.Errorf("a name has at most %d bytes, not %d", maxSegment, len(s))
		case first && s == datadir.StateName:
			return errors.New(datadir.StateName + " is never part of a snapshot")
		}
		first = false
	}
	return nil
}
