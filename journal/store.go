package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/failpoint"
	"github.com/chromafs/chromafs/internal/tree"
)

// Names in DIR/.chromafs.
const (
	fileName = "journal.db"
	newName  = "journal.db.new" // being written by rewrite
)

// The buckets of journal.db.
const (
	headBucket = "head" // one key, headKey: the header
	markBucket = "mark" // path → mark
	baseBucket = "base" // path → tree.Record
	statBucket = "stat" // path → stat
	headKey    = "header"
)

// lockTimeout bounds the wait for a process that is just letting go of the file.
const lockTimeout = 2 * time.Second

// content is everything that the journal holds.
type content struct {
	head  header
	marks map[string]mark
	base  map[string]tree.Record
	stats map[string]stat
}

// update is a change of a content; a nil value takes the key out.
type update struct {
	head  header
	marks map[string]*mark
	base  map[string]*tree.Record
	stats map[string]*stat
}

func newUpdate(h header) update {
	return update{head: h, marks: map[string]*mark{}, base: map[string]*tree.Record{}, stats: map[string]*stat{}}
}

// apply makes u part of c. The maps of c change in place.
func (c *content) apply(u update) {
	applyMap(c.marks, u.marks)
	applyMap(c.base, u.base)
	applyMap(c.stats, u.stats)
	c.head = u.head
	c.head.Counts = counts{Marks: len(c.marks), Base: len(c.base), Stats: len(c.stats)}
}

func applyMap[V any](m map[string]V, changes map[string]*V) {
	for k, v := range changes {
		if v == nil {
			delete(m, k)
		} else {
			m[k] = *v
		}
	}
}

func sizeAfter[V any](m map[string]V, changes map[string]*V) int {
	n := len(m)
	for k, v := range changes {
		if _, had := m[k]; had && v == nil {
			n--
		} else if !had && v != nil {
			n++
		}
	}
	return n
}

// store keeps a content in journal.db. Its methods are called with
// Journal.commitMu held.
type store struct {
	dir   *os.File // DIR/.chromafs
	log   *slog.Logger
	fault func(step string) error

	db   *bolt.DB // nil: none could be opened or it was given up
	file *os.File // that db works on
	// broken: the last commit failed, so what the file holds, and what of it the
	// disk holds, is uncertain (a page whose sync failed counts as clean from then
	// on, fsync(2)). The next commit writes a new file.
	broken bool
	// suspect: what open read may lack the last transaction, see verify.
	suspect bool
}

// step is where a test or a failpoint may end, hold or fail what is done.
func (s *store) step(name string) error {
	if s.fault != nil {
		if err := s.fault(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := failpoint.Hit("journal/" + name); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// commit makes u durable on top of c, which holds what the file holds, and then
// part of c; lock guards the latter. After an error c is as it was, and u may or
// may not be found by the next Open.
func (s *store) commit(op string, c *content, u update, lock func(change func())) error {
	u.head.Counts = counts{Marks: sizeAfter(c.marks, u.marks), Base: sizeAfter(c.base, u.base), Stats: sizeAfter(c.stats, u.stats)}
	if err := s.step(op + "-before"); err != nil {
		return err
	}
	if s.broken || s.db == nil {
		next := content{marks: maps.Clone(c.marks), base: maps.Clone(c.base), stats: maps.Clone(c.stats)}
		next.apply(u)
		if err := s.rewrite(&next); err != nil {
			return err
		}
		u.head = next.head // its identity is the new file's
	} else if err := s.update(u); err != nil {
		s.broken = true
		return err
	}
	if err := s.step(op + "-after"); err != nil {
		s.broken = true
		return err
	}
	lock(func() { c.apply(u) })
	return nil
}

func (s *store) update(u update) error {
	err := guarded(func() error {
		return s.db.Update(func(tx *bolt.Tx) error {
			if err := putAll(tx, markBucket, u.marks, encodeMark); err != nil {
				return err
			}
			if err := putAll(tx, baseBucket, u.base, encodeRecord); err != nil {
				return err
			}
			if err := putAll(tx, statBucket, u.stats, encodeStat); err != nil {
				return err
			}
			if err := putHeader(tx, u.head); err != nil {
				return err
			}
			return s.step("commit")
		})
	})
	if errors.Is(err, errPanic) {
		s.abandon()
	}
	if err != nil {
		return fmt.Errorf("commit %s: %w", fileName, err)
	}
	return nil
}

func putHeader(tx *bolt.Tx, h header) error {
	b, err := encodeHeader(h)
	if err != nil {
		return err
	}
	return tx.Bucket([]byte(headBucket)).Put([]byte(headKey), seal(headBucket, headKey, b))
}

func putAll[V any](tx *bolt.Tx, bucket string, changes map[string]*V, encode func(V) []byte) error {
	b := tx.Bucket([]byte(bucket))
	for k, v := range changes {
		var err error
		if v == nil {
			err = b.Delete([]byte(k))
		} else {
			err = b.Put([]byte(k), seal(bucket, k, encode(*v)))
		}
		if err != nil {
			return fmt.Errorf("%s %q: %w", bucket, k, err)
		}
	}
	return nil
}

// rewrite replaces journal.db by a new file that holds c: how a journal begins,
// and how it recovers from a failed commit. A reader finds the old or the new.
func (s *store) rewrite(c *content) (err error) {
	defer func() {
		if err != nil {
			s.broken = true
			err = fmt.Errorf("write a new %s: %w", fileName, err)
		}
	}()
	if err := s.step("rewrite-create"); err != nil {
		return err
	}
	if err := unix.Unlinkat(int(s.dir.Fd()), newName, 0); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "unlink", Path: newName, Err: err}
	}
	f, err := openat(s.dir, newName, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if c.head.Inode, c.head.Born, err = identity(f); err != nil {
		f.Close()
		return err
	}
	next := &store{dir: s.dir, log: s.log, fault: s.fault, file: f}
	if err := next.fill(c); err != nil {
		next.discard(err)
		unix.Unlinkat(int(s.dir.Fd()), newName, 0) // the error that counts is err; Open removes it too
		return err
	}
	if err := s.replace(); err != nil {
		next.discard(err)
		return err
	}
	if err := s.close(); err != nil {
		s.log.Warn("closing the replaced journal failed", "error", err)
	}
	s.db, s.file, s.broken = next.db, next.file, false
	return nil
}

// fill writes c into the empty file.
func (s *store) fill(c *content) error {
	if err := s.openDB(); err != nil {
		return err
	}
	return guarded(func() error {
		return s.db.Update(func(tx *bolt.Tx) error {
			for _, name := range []string{headBucket, markBucket, baseBucket, statBucket} {
				if _, err := tx.CreateBucket([]byte(name)); err != nil {
					return err
				}
			}
			if err := putAll(tx, markBucket, pointers(c.marks), encodeMark); err != nil {
				return err
			}
			if err := putAll(tx, baseBucket, pointers(c.base), encodeRecord); err != nil {
				return err
			}
			if err := putAll(tx, statBucket, pointers(c.stats), encodeStat); err != nil {
				return err
			}
			if err := putHeader(tx, c.head); err != nil {
				return err
			}
			return s.step("rewrite-commit")
		})
	})
}

func pointers[V any](m map[string]V) map[string]*V {
	p := make(map[string]*V, len(m))
	for k, v := range m {
		p[k] = &v
	}
	return p
}

// replace gives the new file the journal's name, durably.
func (s *store) replace() error {
	if err := s.step("rewrite-rename"); err != nil {
		return err
	}
	if err := unix.Renameat(int(s.dir.Fd()), newName, int(s.dir.Fd()), fileName); err != nil {
		return &os.PathError{Op: "rename", Path: newName, Err: err}
	}
	if err := s.step("rewrite-sync"); err != nil {
		return err
	}
	if err := s.dir.Sync(); err != nil {
		return fmt.Errorf("sync the folder of %s: %w", fileName, err)
	}
	return nil
}

// open opens journal.db and returns what it holds. The errors are fs.ErrNotExist,
// ErrLocked, ErrDamaged, ErrNewerFormat or the system's.
func (s *store) open(ctx context.Context) (*content, error) {
	f, err := openLocked(ctx, s.dir)
	if err != nil {
		return nil, err
	}
	s.file = f
	c, err := s.read()
	if err != nil {
		s.discard(err)
		return nil, err
	}
	return c, nil
}

func (s *store) read() (*content, error) {
	info, err := s.file.Stat()
	if err != nil {
		return nil, err
	}
	if s.suspect, err = verify(s.file, info.Size()); err != nil {
		return nil, damagedUnlessIO(err)
	}
	if err := s.openDB(); err != nil {
		return nil, damagedUnlessIO(err)
	}
	c, err := s.load()
	if err != nil && !errors.Is(err, ErrNewerFormat) {
		return nil, damagedUnlessIO(err)
	}
	return c, err
}

// damagedUnlessIO tells a file that says nonsense from one that the system could
// not read or lock just now, or has no memory for: that may pass.
func damagedUnlessIO(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return fmt.Errorf("read %s: %w", fileName, err)
	}
	return &DamagedError{Name: fileName, Err: err}
}

// openDB hands s.file to bbolt. What is not new was verified before.
func (s *store) openDB() error {
	err := guarded(func() (err error) {
		s.db, err = bolt.Open(fileName, 0o600, &bolt.Options{
			Timeout:      lockTimeout,
			FreelistType: bolt.FreelistMapType,
			NoStatistics: true,
			// The lock is the open file's, and it has it already.
			OpenFile: func(string, int, os.FileMode) (*os.File, error) { return s.file, nil },
		})
		return err
	})
	if err != nil {
		s.db = nil
		return fmt.Errorf("open %s: %w", fileName, err)
	}
	return nil
}

// load reads and checks everything that the file holds.
func (s *store) load() (*content, error) {
	c := &content{marks: map[string]mark{}, base: map[string]tree.Record{}, stats: map[string]stat{}}
	err := guarded(func() error {
		return s.db.View(func(tx *bolt.Tx) error {
			err := getHeader(tx, &c.head)
			if err != nil {
				return err
			}
			err = getAll(tx, markBucket, c.marks, func(_ string, b []byte) (mark, error) { return decodeMark(b) })
			if err == nil {
				err = getAll(tx, baseBucket, c.base, decodeRecord)
			}
			if err == nil {
				err = getAll(tx, statBucket, c.stats, func(_ string, b []byte) (stat, error) { return decodeStat(b) })
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return c, c.valid()
}

// getHeader comes first: a newer format may have other buckets.
func getHeader(tx *bolt.Tx, h *header) error {
	b := tx.Bucket([]byte(headBucket))
	if b == nil {
		return fmt.Errorf("%w: no bucket %q", errValue, headBucket)
	}
	payload, err := unseal(headBucket, headKey, b.Get([]byte(headKey)))
	if err != nil {
		return fmt.Errorf("header: %w", err)
	}
	*h, err = decodeHeader(payload)
	return err
}

func getAll[V any](tx *bolt.Tx, bucket string, to map[string]V, decode func(key string, b []byte) (V, error)) error {
	b := tx.Bucket([]byte(bucket))
	if b == nil {
		return fmt.Errorf("%w: no bucket %q", errValue, bucket)
	}
	return b.ForEach(func(k, v []byte) error {
		key := string(k)
		payload, err := unseal(bucket, key, v)
		if err == nil {
			to[key], err = decode(key, payload)
		}
		if err != nil {
			return fmt.Errorf("%s %q: %w", bucket, key, err)
		}
		return nil
	})
}

// valid checks what no value can say of itself alone.
func (c *content) valid() error {
	got := counts{Marks: len(c.marks), Base: len(c.base), Stats: len(c.stats)}
	if c.head.Counts != got {
		return fmt.Errorf("%w: %+v expected, %+v found", errValue, c.head.Counts, got)
	}
	for p, m := range c.marks {
		if p != "." && !cleanPath(p) || m.cut > c.head.Cut {
			return fmt.Errorf("%w: mark %q of cut %d, the highest is %d", errValue, p, m.cut, c.head.Cut)
		}
	}
	for p, r := range c.base {
		if s, ok := c.stats[p]; !ok {
			return fmt.Errorf("%w: no stat of %q", errValue, p)
		} else if _, marked := c.covered(p, 0); !marked && (s.typ != r.Type || s.size != r.Size) {
			return fmt.Errorf("%w: %q is not dirty, but its stat (%v, %d bytes) is not the base's (%v, %d bytes)", errValue, p, s.typ, s.size, r.Type, r.Size)
		}
	}
	return nil
}

// covered returns the mark that covers name with a number of cut or above.
func (c *content) covered(name string, cut uint64) (mark, bool) {
	for p := range selfAndAbove(name) {
		if m, ok := c.marks[p]; ok && m.cut >= cut {
			return m, true
		}
	}
	return mark{}, false
}

// abandon gives a bbolt that panicked up, locks held as they are. Only the file
// is closed; its memory map stays until the process ends.
func (s *store) abandon() {
	s.db = nil
	if s.file != nil {
		s.file.Close() // for the lock on it; there is nothing to flush
		s.file = nil
	}
}

// discard lets go of a file after err; nothing of it is needed.
func (s *store) discard(err error) {
	if errors.Is(err, errPanic) {
		s.abandon()
	} else if cerr := s.close(); cerr != nil {
		s.log.Debug("closing a file that is not used", "error", cerr)
	}
}

func (s *store) close() error {
	var err error
	if s.db != nil {
		err = guarded(s.db.Close)
		s.db = nil
	} else if s.file != nil {
		err = s.file.Close()
	}
	s.file = nil
	if errors.Is(err, fs.ErrClosed) { // by a bbolt whose Open failed
		return nil
	}
	return err
}

// errPanic is what guarded makes of a panic.
var errPanic = errors.New("bbolt panicked")

// guarded runs fn, in which bbolt works on memory mapped from the file: where
// the disk cannot deliver a page, or it is not what it was, that faults or
// panics, and must not end the mount.
func guarded(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanic, r)
		}
	}()
	return fn()
}
