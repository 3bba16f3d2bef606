package journal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/tree"
)

// Open opens the journal in state, which is DIR/.chromafs, or begins one. Where
// there was none, or one that was copied here from elsewhere (it is set aside),
// State().Fresh says so and why. A damaged one is a *DamagedError, one of a newer
// format a *NewerFormatError; SetAside is the way out of both. state is the
// caller's and may be closed.
func Open(state *os.File, o Options) (*Journal, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	fd, err := unix.FcntlInt(state.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	dir := os.NewFile(uintptr(fd), state.Name())
	j := &Journal{now: o.Now, log: o.Log, dir: dir}
	j.store = &store{dir: dir, log: o.Log, fault: o.fault}
	if err := j.open(o.Rand); err != nil {
		err = errors.Join(err, j.closeFiles())
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = exitcode.New(exitcode.NoSpace, err, "Make a little room on the disk of DIR: the journal needs some 100 KiB to begin.")
		}
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	if err := j.sweepStored(); err != nil {
		j.log.Warn("could not look for lists of what was stored", "error", err)
	}
	return j, nil
}

func (j *Journal) open(rnd io.Reader) error {
	var err error
	if j.writer, err = randomID(rnd); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	c, err := j.store.open(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return j.begin(rnd, "there was no journal")
	case err != nil:
		return err
	}
	inode, born, err := identity(j.store.file)
	if err != nil {
		return err
	}
	if inode != c.head.Inode || born != c.head.Born && born != 0 && c.head.Born != 0 {
		return j.discardCopy(rnd, c.head, inode, born)
	}
	j.content = *c
	return j.openReserve()
}

// discardCopy begins anew in place of a journal that was made elsewhere: two
// folders must not both pass for the one that the store knows.
func (j *Journal) discardCopy(rnd io.Reader, was header, inode uint64, born int64) error {
	if err := j.store.close(); err != nil {
		return err
	}
	name, err := setAside(j.dir, "copied", j.now())
	if err != nil {
		return err
	}
	j.log.Warn("the journal was copied here from elsewhere and does not count",
		"kept", name, "recorded_inode", was.Inode, "inode", inode, "recorded_birth", was.Born, "birth", born)
	return j.begin(rnd, "the journal was copied here from elsewhere (kept as "+name+")")
}

// begin writes the first journal.db. The reserve comes first: a journal without
// one would stop the application on a full disk.
func (j *Journal) begin(rnd io.Reader, why string) error {
	id, err := randomID(rnd)
	if err != nil {
		return err
	}
	r, _, _, err := openReserve(j.dir)
	if err != nil {
		return err
	}
	j.reserve = r
	if err := r.prepare(nil); err != nil {
		return err
	}
	j.content = content{
		head:  header{Format: formatVersion, JournalID: id, FreshReason: why},
		marks: map[string]mark{}, base: map[string]tree.Record{}, stats: map[string]stat{},
	}
	return j.store.rewrite(&j.content)
}

func (j *Journal) openReserve() error {
	r, m, usable, err := openReserve(j.dir)
	if err != nil {
		return err
	}
	j.reserve = r
	if !usable || j.store.suspect {
		// Marks may be missing, or the one that stood for them: everything is dirty.
		now := j.now().UnixNano()
		if m == nil {
			m = &mark{first: now, at: now}
		}
		m.cut = max(m.cut, j.content.head.Cut)
		j.log.Warn("the journal may lack marks: everything counts as changed",
			"reserve_usable", usable, "meta_page_damaged", j.store.suspect)
		if err := r.prepare(m); err != nil {
			return err
		}
	}
	if j.all = m; m != nil {
		// A commit had failed: what was read may be in the page cache only.
		j.store.broken = true
	}
	return nil
}

func randomID(rnd io.Reader) (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(rnd, b[:]); err != nil {
		return "", fmt.Errorf("random id: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}
