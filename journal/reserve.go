package journal

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// reserveName is the block's name in DIR/.chromafs.
const reserveName = "reserve"

// reserveSize is one block on every file system in use.
const reserveSize = 4096

const reserveMagic = "chromafs reserve"

// reserve is a block on disk that was allocated and written in good times, so
// that it can be overwritten in place on a full disk. It holds at most one mark,
// on ".": everything is dirty since the cut of that number. All but the file
// itself is guarded by Journal.commitMu.
type reserve struct{ f *os.File }

// openReserve opens the block and returns the mark in it. usable is false where
// there is none, or none that can be believed: then it is as if it had been set.
func openReserve(dir *os.File) (r *reserve, m *mark, usable bool, err error) {
	fd, err := openat(dir, reserveName, unix.O_RDWR|unix.O_CREAT|unix.O_DSYNC, 0o600)
	if err != nil {
		return nil, nil, false, err
	}
	b := make([]byte, reserveSize)
	if n, err := fd.ReadAt(b, 0); err == nil && n == reserveSize {
		if m, err := decodeReserve(b); err == nil {
			return &reserve{fd}, m, true, nil
		}
	}
	return &reserve{fd}, nil, false, nil
}

// prepare allocates the block and writes m to it, durably.
func (r *reserve) prepare(m *mark) error {
	// Not every file system has fallocate; written zeros are as good where
	// blocks are not copied on write, and the most that can be had elsewhere.
	if err := unix.Fallocate(int(r.f.Fd()), 0, 0, reserveSize); err != nil && err != unix.EOPNOTSUPP {
		return &os.PathError{Op: "allocate", Path: reserveName, Err: err}
	}
	if err := r.write(m); err != nil {
		return err
	}
	return r.f.Sync()
}

// write replaces the mark in place; nil clears it. O_DSYNC makes it durable.
func (r *reserve) write(m *mark) error {
	_, err := r.f.WriteAt(encodeReserve(m), 0)
	return err
}

// check reads back what write wrote.
func (r *reserve) check(want *mark) error {
	b := make([]byte, reserveSize)
	if _, err := r.f.ReadAt(b, 0); err != nil {
		return fmt.Errorf("read %s: %w", reserveName, err)
	}
	m, err := decodeReserve(b)
	if err != nil {
		return err
	}
	if (m == nil) != (want == nil) || m != nil && *m != *want {
		return fmt.Errorf("%w: %s holds %v, not %v", errValue, reserveName, m, want)
	}
	return nil
}

// The block: magic, format, 1 where a mark is set, the mark, checksum; zeros.
func encodeReserve(m *mark) []byte {
	b := append(make([]byte, 0, reserveSize), reserveMagic...)
	b = binary.LittleEndian.AppendUint32(b, formatVersion)
	if m == nil {
		b = append(b, 0)
		m = &mark{}
	} else {
		b = append(b, 1)
	}
	b = append(b, encodeMark(*m)...)
	b = seal(reserveName, "", b)
	return b[:reserveSize]
}

func decodeReserve(b []byte) (*mark, error) {
	const length = len(reserveMagic) + 4 + 1 + markSize + 4
	if len(b) != reserveSize {
		return nil, fmt.Errorf("%w: %s: %d bytes", errValue, reserveName, len(b))
	}
	payload, err := unseal(reserveName, "", b[:length])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", reserveName, err)
	}
	rest := payload[len(reserveMagic):]
	if string(payload[:len(reserveMagic)]) != reserveMagic || binary.LittleEndian.Uint32(rest) != formatVersion || rest[4] > 1 {
		return nil, fmt.Errorf("%w: %s: not of format %d", errValue, reserveName, formatVersion)
	}
	m, err := decodeMark(rest[5:])
	if err != nil || rest[4] == 0 {
		return nil, err
	}
	return &m, nil
}
