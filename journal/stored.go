package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/tree"
)

// Stored is what an attempt at a snapshot has put into the store: a whole object, or
// a part of an upload that is none yet. The hash says what it holds, the ETag pins it.
type Stored struct {
	Key      string      `json:"key"`                 // of the object, or of the upload's
	Upload   string      `json:"upload,omitempty"`    // that holds the part; "" for an object
	Part     int         `json:"part,omitempty"`      // its number in the upload, from 1
	Size     int64       `json:"size"`                // bytes, of the object or the part
	PartSize int64       `json:"part_size,omitempty"` // of the parts that the content is cut into
	ETag     string      `json:"etag,omitempty"`      // "": the part is about to be replaced and counts no more
	Hashes   []tree.Hash `json:"hashes,omitempty"`    // of the object's parts, or of the part
}

func (s Stored) valid() bool {
	switch {
	case !cleanPath(s.Key) || s.Size < 0 || s.PartSize < 0:
		return false
	case s.Upload == "":
		return s.Part == 0 && s.ETag != "" && (s.Size == 0 || s.PartSize > 0) && len(s.Hashes) == tree.PartCount(s.Size, s.PartSize)
	case s.ETag == "":
		return s.Part >= 1
	}
	return s.Part >= 1 && s.Size > 0 && s.PartSize >= s.Size && len(s.Hashes) == 1
}

// storedPrefix begins the names of the files in DIR/.chromafs that hold, for one
// pending id each, what is stored for it: one line per Stored, of a version, a
// checksum and JSON. They are hints. A line that is torn or lost costs sending
// something again; one that is believed speaks of what the store can check. So they
// lie beside journal.db, and cost the marks of the application no time.
const storedPrefix = "stored."

// storedVersion begins a line. A line of another version is not read.
const storedVersion = "1"

// storedName returns the name of an id's file; false where the id cannot be part of one.
func storedName(id string) (string, bool) {
	return storedPrefix + id, id != "" && len(id) < 200 && !strings.ContainsAny(id, "/\x00\n")
}

// AddStored notes what is stored for a pending id. Later notes of the same key and
// part replace earlier ones. It survives the end of the process when it returns, and
// a power cut after the next SyncStored.
func (j *Journal) AddStored(id string, stored ...Stored) error {
	var lines bytes.Buffer
	for _, s := range stored {
		if !s.valid() {
			return fmt.Errorf("%w: note that %q is stored: %+v", errValue, s.Key, s)
		}
		payload, err := json.Marshal(s)
		if err != nil {
			return err
		}
		// The newline in front ends a line that was torn.
		fmt.Fprintf(&lines, "\n%s %08x %s", storedVersion, crc32.Checksum(payload, castagnoli), payload)
	}
	err := j.withStored(id, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT, func(f *os.File) error {
		_, err := f.Write(lines.Bytes())
		return err
	})
	if err != nil {
		return fmt.Errorf("note what is stored for %s: %w", id, err)
	}
	return nil
}

// SyncStored makes what was noted for id outlast a power cut.
func (j *Journal) SyncStored(id string) error {
	err := j.withStored(id, unix.O_WRONLY, (*os.File).Sync)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note what is stored for %s: %w", id, err)
	}
	return nil
}

// Stored returns what was noted for id, the newest note of each key and part, in the
// order of their first notes. Lines that make no sense are left out.
func (j *Journal) Stored(id string) ([]Stored, error) {
	var text []byte
	err := j.withStored(id, unix.O_RDONLY, func(f *os.File) (err error) {
		text, err = io.ReadAll(f)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what is stored for %s: %w", id, err)
	}
	return decodeStored(text), nil
}

func decodeStored(text []byte) (stored []Stored) {
	type place struct {
		key  string
		part int
	}
	at := map[place]int{}
	for line := range bytes.SplitSeq(text, []byte("\n")) {
		s, ok := decodeStoredLine(line)
		if !ok {
			continue
		}
		p := place{s.Key, s.Part}
		if i, known := at[p]; known {
			stored[i] = s
			continue
		}
		at[p] = len(stored)
		stored = append(stored, s)
	}
	return slices.DeleteFunc(stored, func(s Stored) bool { return s.ETag == "" })
}

func decodeStoredLine(line []byte) (s Stored, ok bool) {
	version, rest, _ := bytes.Cut(line, []byte(" "))
	sum, payload, ok := bytes.Cut(rest, []byte(" "))
	if !ok || string(version) != storedVersion || string(sum) != fmt.Sprintf("%08x", crc32.Checksum(payload, castagnoli)) {
		return s, false
	}
	return s, json.Unmarshal(payload, &s) == nil && s.valid()
}

// withStored opens an id's file for use.
func (j *Journal) withStored(id string, flags int, use func(*os.File) error) error {
	name, ok := storedName(id)
	if !ok {
		return fmt.Errorf("%w: the id %q", errValue, id)
	}
	j.storedMu.Lock()
	defer j.storedMu.Unlock()
	if j.isClosed() {
		return ErrClosed
	}
	f, err := openat(j.dir, name, flags, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(use(f), f.Close())
}

func (j *Journal) isClosed() bool {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.closed
}

// forgetStored removes an id's file.
func (j *Journal) forgetStored(id string) {
	name, ok := storedName(id)
	j.storedMu.Lock()
	defer j.storedMu.Unlock()
	if !ok || j.isClosed() {
		return
	}
	if err := unix.Unlinkat(int(j.dir.Fd()), name, 0); err != nil && err != unix.ENOENT {
		j.log.Warn("could not remove the list of what was stored; the next start does", "name", name, "error", err)
	}
}

// sweepStored removes the files of ids that are not pending: a crash came between, or
// the journal they belonged to was set aside.
func (j *Journal) sweepStored() error {
	folder, err := openat(j.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer folder.Close()
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if id, ok := strings.CutPrefix(name, storedPrefix); ok && !slices.Contains(j.content.head.Pending, id) {
			j.forgetStored(id)
		}
	}
	return nil
}
