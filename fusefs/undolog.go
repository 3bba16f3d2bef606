package fusefs

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// An undo log is a sequence of records: a header of 25 bytes, little-endian, and
// data. The first is undoBegin with an undoHeader in JSON as its data. What a kill
// cut short ends the log: the change that it was to undo was not made.
//
//	CRC-32C of the rest (4) | kind (1) | file (4) | offset (8) | length of data (8)
const undoRecord = 25

// The kinds of records.
const (
	undoBegin    uint8 = iota + 1
	undoData           // what a file held at an offset
	undoComplete       // the persist is over, and all of it in the backing directory
	undoSettled        // and on disk: nothing is to be undone any more
)

const maxUndoData = 16 << 20 // bytes; a longer record is damage

// undoHeader says which folder a log is of and what was in it.
type undoHeader struct {
	Boot   string      `json:"boot"`
	Folder []string    `json:"folder"` // its paths, relative to DIR
	Inode  uint64      `json:"inode"`
	Files  []undoEntry `json:"files"`
}

type undoEntry struct {
	Name  string `json:"name"`
	Inode uint64 `json:"inode"`
	Size  int64  `json:"size"`
}

func (h undoHeader) encode() []byte {
	data, err := json.Marshal(h)
	if err != nil {
		panic(fmt.Sprintf("encode an undo log's header: %v", err)) // strings and numbers only
	}
	return data
}

var crcTable = crc32.MakeTable(crc32.Castagnoli)

func encodeUndo(kind uint8, file uint32, off int64, data []byte) []byte {
	b := make([]byte, undoRecord, undoRecord+len(data))
	b[4] = kind
	binary.LittleEndian.PutUint32(b[5:], file)
	binary.LittleEndian.PutUint64(b[9:], uint64(off))
	binary.LittleEndian.PutUint64(b[17:], uint64(len(data)))
	b = append(b, data...)
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:], crcTable))
	return b
}

var errUndoHeader = errors.New("the undo log has no whole header")

// readUndo returns the header of a log and how far its persist came: undoBegin,
// undoComplete or undoSettled. apply, if
// not nil, is called for each piece of data; its errors and those of r are returned.
func readUndo(r io.Reader, apply func(h *undoHeader, file int, off int64, data []byte) error) (h undoHeader, end uint8, err error) {
	end = undoBegin
	in := bufio.NewReaderSize(r, 1<<20)
	begun := false
	for {
		kind, file, off, data, ok, err := nextUndo(in)
		if err != nil {
			return h, end, err
		}
		switch {
		case !ok && !begun:
			return h, end, errUndoHeader
		case !ok:
			return h, end, nil
		case kind == undoBegin && !begun:
			if err := json.Unmarshal(data, &h); err != nil || !h.valid() {
				return h, end, errUndoHeader
			}
			begun = true
		case !begun:
			return h, end, errUndoHeader
		case kind == undoComplete || kind == undoSettled:
			end = kind
		case kind == undoData && int64(file) < int64(len(h.Files)) && off >= 0 && off+int64(len(data)) <= h.Files[file].Size:
			if apply == nil {
				continue
			}
			if err := apply(&h, int(file), off, data); err != nil {
				return h, end, err
			}
		default:
			return h, end, nil // written by nobody: as a record that is cut short
		}
	}
}

// valid reports whether a header names plain files of a folder below DIR. What it
// names is opened beneath DIR in any case.
func (h undoHeader) valid() bool {
	for _, f := range h.Files {
		if f.Name == "" || f.Name == "." || f.Name == ".." || strings.ContainsAny(f.Name, "/\x00") || f.Size < 0 {
			return false
		}
	}
	return len(h.Folder) > 0
}

// nextUndo reads a record; ok is false at the end, or what counts as such.
func nextUndo(in *bufio.Reader) (kind uint8, file uint32, off int64, data []byte, ok bool, err error) {
	head := make([]byte, undoRecord)
	if _, err := io.ReadFull(in, head); err != nil {
		return 0, 0, 0, nil, false, endOf(err)
	}
	length := binary.LittleEndian.Uint64(head[17:])
	if length > maxUndoData {
		return 0, 0, 0, nil, false, nil
	}
	var body bytes.Buffer // grows with what is there, whatever the length says
	if n, err := io.CopyN(&body, in, int64(length)); err != nil || uint64(n) != length {
		return 0, 0, 0, nil, false, endOf(err)
	}
	sum := crc32.Update(crc32.Checksum(head[4:], crcTable), crcTable, body.Bytes())
	if sum != binary.LittleEndian.Uint32(head) {
		return 0, 0, 0, nil, false, nil
	}
	return head[4], binary.LittleEndian.Uint32(head[5:]), int64(binary.LittleEndian.Uint64(head[9:])), body.Bytes(), true, nil
}

// endOf makes an early end of the log no error.
func endOf(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
