package writers

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/chromafs/chromafs/integration/harness"
)

// head is manifest.json as the oracle looks at it.
type head struct {
	Lineage  string   `json:"lineage"`
	Sequence uint64   `json:"sequence"`
	Epoch    uint64   `json:"epoch"`
	History  []string `json:"history"`
}

// oracle looks at the store behind everybody's back, and knows what it said before.
type oracle struct {
	store  *harness.Store
	last   head
	seen   map[string]tokens // of every snapshot that was ever listed
	acked  tokens            // what is in the newest snapshot for ever
	synced tokens            // every token that an fsync acknowledged
}

func newOracle(store *harness.Store) *oracle {
	return &oracle{store: store, seen: map[string]tokens{}, acked: tokens{}, synced: tokens{}}
}

// look compares the store with what it must be (1, 2 and 3 of the package).
func (o *oracle) look() error {
	text, err := readStable(filepath.Join(o.store.Folder, "manifest.json"))
	if os.IsNotExist(err) && o.last.Lineage == "" {
		return nil
	}
	if err != nil {
		return err
	}
	var h head
	if err := json.Unmarshal(text, &h); err != nil {
		return fmt.Errorf("manifest.json: %w: %s", err, text)
	}
	defer func() { o.last = h }()
	if o.last.Lineage != "" {
		if err := follows(o.last, h); err != nil {
			return err
		}
	}
	for i, id := range h.History {
		if o.seen[id] != nil {
			continue
		}
		now, err := readTokens(filepath.Join(o.store.Snapshot(id), logName))
		if err != nil {
			return err
		}
		if i > 0 {
			before := h.History[i-1]
			if lost := now.lacks(o.seen[before]); lost != "" {
				return fmt.Errorf("%s follows %s and lacks %s, which that holds", id, before, lost)
			}
		}
		o.seen[id] = now
	}
	return o.lookForAcknowledged(h)
}

func (o *oracle) lookForAcknowledged(h head) error {
	if len(h.History) == 0 {
		if len(o.acked) > 0 {
			return fmt.Errorf("nothing is listed any more, and %d tokens were acknowledged", len(o.acked))
		}
		return nil
	}
	newest := h.History[len(h.History)-1]
	if lost := o.seen[newest].lacks(o.acked); lost != "" {
		return fmt.Errorf("the newest snapshot, %s, lacks %s, which an acknowledged snapshot holds", newest, lost)
	}
	return nil
}

// follows says what is wrong with a head that comes after another.
func follows(was, is head) error {
	switch {
	case is.Lineage != was.Lineage:
		return fmt.Errorf("the lineage changed from %s to %s", was.Lineage, is.Lineage)
	case is.Epoch < was.Epoch:
		return fmt.Errorf("the epoch went back from %d to %d", was.Epoch, is.Epoch)
	case is.Sequence < was.Sequence:
		return fmt.Errorf("the sequence went back from %d to %d", was.Sequence, is.Sequence)
	}
	grown := int(is.Sequence - was.Sequence)
	all := slices.Clone(was.History)
	all = append(all, is.History[max(0, len(is.History)-grown):]...)
	if len(is.History) <= grown { // everything that was listed before is rotated away
		return nil
	}
	if at := len(all) - len(is.History); at < 0 || !slices.Equal(all[at:], is.History) {
		return fmt.Errorf("the list at sequence %d, %v, is not that at %d, %v, with %d more at its end",
			is.Sequence, is.History, was.Sequence, was.History, grown)
	}
	return nil
}

// acknowledged takes the result of a `chromafs snapshot`.
func (o *oracle) acknowledged(m *machine, c *call, r harness.Result) error {
	var s struct {
		ID string `json:"id"`
	}
	switch {
	case r.Code == 0:
		if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
			return fmt.Errorf("snapshot --json of %s printed %q: %w", m.name, r.Stdout, err)
		}
		if s.ID == "" && len(c.holds) > 0 {
			return fmt.Errorf("snapshot of %s names nothing, and there is something: %q", m.name, r.Stdout)
		}
		for token := range c.holds {
			o.acked[token] = true
		}
		return nil
	case r.Code == exitConflict || c.excused:
		return nil
	}
	return fmt.Errorf("snapshot of %s exited with %d: %s", m.name, r.Code, r.Output())
}
