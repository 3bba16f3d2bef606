package dbcheck

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path"
)

// The files of a segment. ChromaDB writes the pickle last: a folder without one is
// no segment yet.
const (
	headerName = "header.bin"
	level0Name = "data_level0.bin"
	lengthName = "length.bin"
	linksName  = "link_lists.bin"
	pickleName = "index_metadata.pickle"

	pickleStop = '.' // the opcode that ends every pickle
)

var segmentNames = []string{headerName, level0Name, lengthName, linksName, pickleName}

// header is what is read of header.bin, as hnswlib's persistHeader writes it:
// fields of 8 bytes, little-endian, packed, after a version of 4.
type header struct {
	count       uint64 // vectors, deleted ones included
	elementSize uint64 // bytes in data_level0.bin per vector
	labelOffset uint64 // within these
}

const (
	headerSize    = 100
	headerVersion = 1
	labelSize     = 8
	lengthSize    = 4 // bytes in length.bin per vector
	leastLinkSize = 4 // bytes in link_lists.bin per vector, at the least
)

// errUnknownHeader: a version of hnswlib that nothing is known of.
var errUnknownHeader = errors.New("the version of header.bin is not known")

func parseHeader(b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, fmt.Errorf("%s has %d bytes, not %d", headerName, len(b), headerSize)
	}
	if binary.LittleEndian.Uint32(b) != headerVersion {
		return header{}, errUnknownHeader
	}
	field := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	h := header{count: field(20), elementSize: field(28), labelOffset: field(36)}
	if h.elementSize <= labelSize || h.labelOffset != h.elementSize-labelSize {
		return header{}, fmt.Errorf("%s contradicts itself: %d bytes per vector, the label at %d", headerName, h.elementSize, h.labelOffset)
	}
	return h, nil
}

// agree says what is wrong with the sizes of a segment's files, "" if nothing.
//
// hnswlib makes data_level0.bin and length.bin for as many vectors as the index has
// room for at first, and then writes whole vectors and lengths at their places, of
// all vectors that are new. So both hold equally many, and at least as many as
// header.bin, which is written first, counts. How many more is not known: the room
// at first is the application's choice, and header.bin forgets it. In
// link_lists.bin each counted vector has an entry.
func (h header) agree(level0, length, links uint64) string {
	held := level0 / h.elementSize
	switch {
	case level0%h.elementSize != 0:
		return fmt.Sprintf("%s has %d bytes, which are no whole vectors of %d bytes", level0Name, level0, h.elementSize)
	case length%lengthSize != 0 || length/lengthSize != held:
		return fmt.Sprintf("%s holds %d vectors, but %s has %d bytes, not %d", level0Name, held, lengthName, length, held*lengthSize)
	case h.count > held:
		return fmt.Sprintf("%s counts %d vectors, but %s holds %d", headerName, h.count, level0Name, held)
	case h.count > links/leastLinkSize:
		return fmt.Sprintf("%s counts %d vectors, but %s, of %d bytes, cannot hold the links of so many", headerName, h.count, linksName, links)
	}
	return ""
}

// segment checks a folder with a pickle.
func (c *checker) segment(folder string) error {
	size := func(name string) uint64 { return uint64(c.files[path.Join(folder, name)].Size) }
	for _, name := range segmentNames {
		if _, ok := c.files[path.Join(folder, name)]; !ok {
			return c.torn(folder, "%s is missing", name)
		}
	}
	if size(pickleName) == 0 {
		return c.torn(folder, "%s is empty", pickleName)
	}
	last, err := c.read(path.Join(folder, pickleName), int64(size(pickleName))-1, 1)
	if err != nil {
		return err
	}
	if last[0] != pickleStop {
		return c.torn(folder, "%s is cut off", pickleName)
	}
	head, err := c.read(path.Join(folder, headerName), 0, int64(min(size(headerName), headerSize)))
	if err != nil {
		return err
	}
	h, err := parseHeader(head)
	switch {
	case errors.Is(err, errUnknownHeader):
		c.doubt(folder, "not checked: %v", err)
	case err != nil:
		return c.torn(folder, "%v", err)
	default:
		if what := h.agree(size(level0Name), size(lengthName), size(linksName)); what != "" {
			return c.torn(folder, "%s", what)
		}
	}
	return nil
}
