package dbcheck

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ncruces/go-sqlite3/vfs"
)

const (
	blockSize  = 4 << 10
	maxOverlay = 64 << 20 // bytes that SQLite may write while it recovers one database (D3)
)

// errOverlay: the recovery of a database needs more than maxOverlay.
var errOverlay = errors.New("its journal is too big to be rolled back in memory")

// overlay is a file of the view, and what SQLite wrote to it since. It is used by
// one goroutine.
type overlay struct {
	v      *viewVFS
	name   string
	base   io.ReaderAt // nil: the view has no such file
	seen   int64       // bytes of base that are not cut off
	size   int64
	blocks map[int64]*[blockSize]byte // written to, by number
}

// ReadAt implements io.ReaderAt.
func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	if o.v.ctx.Err() != nil {
		return 0, o.v.fail(context.Cause(o.v.ctx))
	}
	if off >= o.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > o.size-off
	if short {
		p = p[:o.size-off]
	}
	if err := o.fill(p, off); err != nil {
		return 0, err
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// fill reads what lies within the file.
func (o *overlay) fill(p []byte, off int64) error {
	if len(o.blocks) == 0 {
		return o.fillFromBase(p, off)
	}
	for len(p) > 0 {
		number, within := off/blockSize, off%blockSize
		n := min(int64(len(p)), blockSize-within)
		if block := o.blocks[number]; block != nil {
			copy(p[:n], block[within:])
		} else if err := o.fillFromBase(p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (o *overlay) fillFromBase(p []byte, off int64) error {
	n := max(0, min(int64(len(p)), o.seen-off))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	if got, err := o.base.ReadAt(p[:n], off); int64(got) < n {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return o.v.fail(fmt.Errorf("read %s: %w", o.name, err))
	}
	return nil
}

// WriteAt implements io.WriterAt.
func (o *overlay) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		number, within := (off+int64(done))/blockSize, (off+int64(done))%blockSize
		block := o.blocks[number]
		if block == nil {
			if o.v.overlaid+blockSize > o.v.limit {
				return done, o.v.fail(errOverlay)
			}
			block = new([blockSize]byte)
			if err := o.fillFromBase(block[:], number*blockSize); err != nil {
				return done, err
			}
			o.blocks[number] = block
			o.v.overlaid += blockSize
		}
		done += copy(block[within:], p[done:])
	}
	if done > 0 {
		o.size = max(o.size, off+int64(done))
	}
	return done, nil
}

// Truncate implements vfs.File. What lies beyond the end reads as zero should the
// file grow again.
func (o *overlay) Truncate(size int64) error {
	o.seen = min(o.seen, size)
	o.size = size
	for number, block := range o.blocks {
		switch start := number * blockSize; {
		case start >= size:
			delete(o.blocks, number)
			o.v.overlaid -= blockSize
		case start+blockSize > size:
			clear(block[size-start:])
		}
	}
	return nil
}

// Size implements vfs.File.
func (o *overlay) Size() (int64, error) { return o.size, nil }

// Close implements io.Closer; what was written stays until the VFS is closed.
func (o *overlay) Close() error { return nil }

// Nobody else has the view open, and nothing of the overlay is ever on a disk.

// Sync implements vfs.File.
func (o *overlay) Sync(vfs.SyncFlag) error { return nil }

// Lock implements vfs.File.
func (o *overlay) Lock(vfs.LockLevel) error { return nil }

// Unlock implements vfs.File.
func (o *overlay) Unlock(vfs.LockLevel) error { return nil }

// CheckReservedLock implements vfs.File: a journal that is there is a hot one.
func (o *overlay) CheckReservedLock() (bool, error) { return false, nil }

// SectorSize implements vfs.File.
func (o *overlay) SectorSize() int { return blockSize }

// DeviceCharacteristics implements vfs.File.
func (o *overlay) DeviceCharacteristics() vfs.DeviceCharacteristic { return 0 }
