package uploader

import (
	"bytes"
	"io"
)

// memFile is a file of a view. Blocks of zeros are its holes.
type memFile struct {
	io.ReaderAt
	data []byte
}

const memBlock = 4096

func (f memFile) Close() error { return nil }

// NextData implements tree.Sparse.
func (f memFile) NextData(off, end int64) int64 {
	for off < end && f.hole(off) {
		off = min(end, off-off%memBlock+memBlock)
	}
	return off
}

func (f memFile) hole(off int64) bool {
	from := off - off%memBlock
	block := f.data[from:min(from+memBlock, int64(len(f.data)))]
	return len(bytes.Trim(block, "\x00")) == 0
}

// Allocated implements tree.Sparse.
func (f memFile) Allocated() (n int64, err error) {
	for off := int64(0); off < int64(len(f.data)); off += memBlock {
		if !f.hole(off) {
			n += min(memBlock, int64(len(f.data))-off)
		}
	}
	return n, nil
}
