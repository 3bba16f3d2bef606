package lease

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Key is the object in which the lease is kept, below the store's prefix.
const Key = "lease.json"

// format is the version of the record that this program writes, and the only one
// that it reads.
const format = 1

// State is what a holder says of itself.
type State string

// The states of a lease.
const (
	Held     State = "held"     // it publishes
	Yielding State = "yielding" // it has seen a request, and takes its final snapshot
	Yielded  State = "yielded"  // it serves, and publishes nothing any more
	Released State = "released" // it has stopped
)

// Party is one of those who hold, or want to hold, the store.
type Party struct {
	Writer string `json:"writer"`         // random; of one process
	Dir    string `json:"dir"`            // random; of the journal of its DIR, which a copy does not share
	Host   string `json:"host,omitempty"` // for people
}

// String names a party for people.
func (p Party) String() string {
	if p.Host == "" {
		return fmt.Sprintf("%.8s", p.Writer)
	}
	return fmt.Sprintf("%.8s on %s", p.Writer, p.Host)
}

// Request asks the holder to yield.
type Request struct {
	Party
	Nonce    string        `json:"nonce"`
	Patience time.Duration `json:"patience_ns"` // how long the waiter waits at most
}

// Record is what lease.json holds.
type Record struct {
	Format int    `json:"format"`
	Nonce  string `json:"nonce"` // random; of this very write
	State  State  `json:"state"`
	Holder Party  `json:"holder"`
	Epoch  uint64 `json:"epoch"` // of the holder's takeover
	// Current is the snapshot that `current` in the store was known to follow when
	// this was written, "" where that was not known.
	Current string   `json:"current,omitempty"`
	Request *Request `json:"request,omitempty"`
	Answer  string   `json:"answer,omitempty"` // nonce of the last request that the holder has seen
}

// pending reports whether there is a request that the holder has not answered.
func (r Record) pending() bool { return r.Request != nil && r.Request.Nonce != r.Answer }

// answered reports whether the holder has seen the request that is there.
func (r Record) answered() bool { return r.Request != nil && r.Request.Nonce == r.Answer }

// Limits of what is believed: a record comes from elsewhere.
const (
	maxBytes    = 64 << 10
	maxName     = 256
	maxPatience = time.Hour
)

// errUnreadable: the object is there, but it is no lease that this program knows.
var errUnreadable = errors.New("it cannot be understood")

// Decode parses a record. Its error is for people; the record counts as none.
func Decode(data []byte) (Record, error) {
	var r Record
	if len(data) > maxBytes {
		return Record{}, fmt.Errorf("%w: it is bigger than %d bytes", errUnreadable, maxBytes)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	if err := r.check(); err != nil {
		return Record{}, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return r, nil
}

func (r Record) check() error {
	if r.Format != format {
		return fmt.Errorf("its format is %d, not %d", r.Format, format)
	}
	switch r.State {
	case Held, Yielding, Yielded, Released:
	default:
		return fmt.Errorf("no such state: %.40q", string(r.State))
	}
	names := []string{r.Nonce, r.Holder.Writer, r.Holder.Dir, r.Holder.Host, r.Current, r.Answer}
	if r.Nonce == "" || r.Holder.Writer == "" || r.Epoch == 0 {
		return errors.New("it names no nonce, no holder or no epoch")
	}
	if q := r.Request; q != nil {
		names = append(names, q.Writer, q.Dir, q.Host, q.Nonce)
		if q.Nonce == "" || q.Writer == "" || q.Patience < 0 {
			return errors.New("its request names no nonce or no writer, or a time that cannot be")
		}
	}
	for _, name := range names {
		if len(name) > maxName {
			return fmt.Errorf("a name is longer than %d bytes", maxName)
		}
	}
	return nil
}

// Encode returns the bytes of a record.
func Encode(r Record) ([]byte, error) {
	r.Format = format
	data, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		_, err = Decode(data)
	}
	if err != nil {
		return nil, fmt.Errorf("encode the lease: %w", err)
	}
	return append(data, '\n'), nil
}
