package uploader

import (
	"errors"
	"log/slog"
	"sync"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/journal"
)

// syncEvery is how much may be stored until the notes of it have to outlast a power
// cut. They outlast the end of the process at once.
const syncEvery = 64 << 20

// ledger notes in the journal what is stored, for the attempt after this one. That it
// cannot fails no snapshot: the bytes would be sent again. A nil one notes nothing.
type ledger struct {
	queue Queue
	log   *slog.Logger

	mu       sync.Mutex       // guards what follows; no I/O under it
	unsynced map[string]int64 // bytes, by id
	failed   bool             // that was logged
}

func newLedger(q Queue, log *slog.Logger) *ledger {
	return &ledger{queue: q, log: log, unsynced: map[string]int64{}}
}

// note records what is stored for id.
func (l *ledger) note(id string, s journal.Stored) {
	if l == nil {
		return
	}
	err := l.queue.AddStored(id, s)
	if err == nil && l.due(id, s) {
		err = l.queue.SyncStored(id)
	}
	l.complain(err)
}

func (l *ledger) due(id string, s journal.Stored) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.Upload != "" || len(s.Hashes) <= 1 { // else its parts were counted
		l.unsynced[id] += s.Size
	}
	if l.unsynced[id] < syncEvery {
		return false
	}
	l.unsynced[id] = 0
	return true
}

func (l *ledger) complain(err error) {
	if err == nil {
		return
	}
	l.mu.Lock()
	first := !l.failed
	l.failed = true
	l.mu.Unlock()
	if first {
		l.log.Warn("what is stored cannot be noted: if this snapshot fails, the next one sends it again", "error", err)
	}
}

// flush makes all notes outlast a power cut, after an attempt that failed.
func (l *ledger) flush() {
	if l == nil {
		return
	}
	l.mu.Lock()
	ids := make([]string, 0, len(l.unsynced))
	for id := range l.unsynced {
		ids = append(ids, id)
	}
	l.mu.Unlock()
	var errs []error
	for _, id := range ids {
		errs = append(errs, l.queue.SyncStored(id))
	}
	l.complain(errors.Join(errs...))
}

// object notes that an object holds the content of a file.
func (l *ledger) object(id string, o objstore.Object, it *item) {
	if it.rec.Size == 0 {
		return
	}
	l.note(id, journal.Stored{Key: o.Key, Size: it.rec.Size, PartSize: it.rec.PartSize, ETag: o.ETag, Hashes: it.rec.Parts})
}
