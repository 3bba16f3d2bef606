// Package sqlitelock takes SQLite's own file locks on the databases of a
// directory, and finds the processes that have them open.
//
// The model: SQLite guards a database with locks on 512 bytes at offset 1 GiB,
// where no data ever is: one PENDING byte, one RESERVED byte, 510 SHARED bytes. A
// reader holds a read lock on SHARED, whoever writes the database file a write
// lock on it. The locks here are OFD locks (fcntl(2)): they belong to the open
// file, conflict with SQLite's POSIX locks, survive other descriptors of this
// process being closed, and end with the process, however it ends.
//
// Freeze serves an offline snapshot (S1): while it holds, no database file
// changes. In rollback-journal mode the lock of a reader is enough for that: a
// writer may prepare a journal meanwhile but cannot touch the database, and
// readers go on. (A lock on RESERVED too would make readers take a hot journal
// for a live one and skip rolling it back.) In WAL mode a reader's lock stops
// nobody, because writers and checkpoints go by the -shm file; but every
// connection holds a read lock on SHARED as long as it is open, so a write lock
// on it proves that there is no connection and keeps new ones out.
//
// Guard serves a mount whose DIR is elsewhere (DESIGN §3): a write lock on all
// 512 bytes, so that SQLite on DIR says "database is locked" instead of changing
// files behind the journal's back. Locks that applications take on the mount
// belong to the mount's own inodes in the kernel and never meet these.
//
// What is not promised: files that are no databases (HNSW segments) have no locks.
// An offline snapshot must look at every file again afterwards.
package sqlitelock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/tree"
)

// The lock bytes (SQLite's os.h).
const (
	pendingByte = 0x40000000
	sharedFirst = pendingByte + 2
	sharedSize  = 510
	allSize     = 2 + sharedSize
)

// magic begins every database; the two bytes at 18 and 19 are 2 in WAL mode
// (SQLite's file format, section 1.3).
const (
	magic        = "SQLite format 3\x00"
	headerSize   = 20
	versionsAt   = 18
	versionOfWAL = 2
)

// Database is a SQLite database found in a directory.
type Database struct {
	Path  string // relative to the directory
	Inode uint64
	WAL   bool
}

// Find returns every database below root, sorted by path, known by its header
// and not by its name. Entries for which skip returns true are left out with all
// below them. Files that this process may not read are left out: neither could a
// snapshot read them, and it says so itself.
func Find(root *os.File, skip func(path string) bool) ([]Database, error) {
	entries, _, err := tree.Walk(root, skip)
	if err != nil {
		return nil, fmt.Errorf("look for databases: %w", err)
	}
	var found []Database
	for _, e := range entries {
		if e.Type != tree.File || e.Size < headerSize {
			continue
		}
		db, ok, err := inspect(root, e)
		if err != nil {
			return nil, fmt.Errorf("look for databases: %w", err)
		}
		if ok {
			found = append(found, db)
		}
	}
	return found, nil
}

func inspect(root *os.File, e tree.Entry) (db Database, ok bool, err error) {
	f, err := tree.OpenBeneath(root, e.Path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return Database{}, false, nil
	}
	if err != nil {
		return Database{}, false, err
	}
	defer f.Close()
	var header [headerSize]byte
	n, err := f.ReadAt(header[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Database{}, false, fmt.Errorf("read %s: %w", e.Path, err)
	}
	wal, ok := parseHeader(header[:n])
	return Database{Path: e.Path, Inode: e.Inode, WAL: wal}, ok, nil
}

func parseHeader(b []byte) (wal, ok bool) {
	if len(b) < headerSize || string(b[:len(magic)]) != magic {
		return false, false
	}
	const both = versionOfWAL<<8 | versionOfWAL
	return binary.BigEndian.Uint16(b[versionsAt:]) == both, true
}
