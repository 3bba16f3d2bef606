package history

import (
	"encoding/hex"
	"fmt"
	"io"
	"regexp"
	"time"
)

// ID names a snapshot: the time of its creation with a random tail, such as
// 20261122T201530.123Z-4f2a. It says nothing about order; the sequence does.
// What a fenced writer stored aside is a branch: its writer follows the id, as
// in 20261122T201530.123Z-4f2a-branch-8c51. A branch is never listed (W2).
type ID string

const idTime = "20060102T150405.000Z"

var idPattern = regexp.MustCompile(`^\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{4}(` + branchMark + `[0-9a-zA-Z]{1,64})?$`)

// NewID returns an id for a snapshot made at now, its tail read from rnd.
func NewID(now time.Time, rnd io.Reader) (ID, error) {
	var tail [2]byte
	if _, err := io.ReadFull(rnd, tail[:]); err != nil {
		return "", fmt.Errorf("make a snapshot id: %w", err)
	}
	return ParseID(now.UTC().Format(idTime) + "-" + hex.EncodeToString(tail[:]))
}

// ParseID returns text as an id if it is one.
func ParseID(text string) (ID, error) {
	if !idPattern.MatchString(text) {
		return "", fmt.Errorf("%q is no snapshot id: expected something like 20261122T201530.123Z-4f2a", text)
	}
	if _, err := time.Parse(idTime, text[:len(idTime)]); err != nil {
		return "", fmt.Errorf("%q is no snapshot id: %w", text, err)
	}
	return ID(text), nil
}

// Time returns when the snapshot was made, by the clock of its writer.
func (id ID) Time() time.Time {
	if len(id) < len(idTime) {
		return time.Time{}
	}
	t, _ := time.Parse(idTime, string(id[:len(idTime)])) // zero for what ParseID refuses
	return t
}

// IsBranch reports whether the id names what a fenced writer stored aside.
func (id ID) IsBranch() bool { return id.BranchOf() != "" }

// NewNonce returns a random value that tells two writes of manifest.json apart
// even where all else in them is equal.
func NewNonce(rnd io.Reader) (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(rnd, b[:]); err != nil {
		return "", fmt.Errorf("make a nonce: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}
