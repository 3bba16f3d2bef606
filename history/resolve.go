package history

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Choice is the snapshot that a person meant.
type Choice struct {
	ID ID
	At time.Time // the time that was named; zero where it was the id, its beginning or the newest
}

// Choose returns which of ids, oldest first, a person means by text:
//
//   - "" or "latest": the last one
//   - an id, or the beginning of one that no other has
//   - a time: the newest that is not newer. 2026-11-24, with 15:04 or 15:04:05 and a
//     zone or none (that of now), stands for all of that day, minute or second; 2h or
//     3d12h is that long before now.
//
// Times are those in the ids, by the clocks of their writers; which of two is newer is
// a matter of their order. It fails with an *UnknownIDError.
func Choose(text string, ids []ID, now time.Time) (Choice, error) {
	if len(ids) > 0 && (text == "" || text == "latest") {
		return Choice{ID: ids[len(ids)-1]}, nil
	}
	var found []ID
	for _, id := range ids {
		if string(id) == text {
			return Choice{ID: id}, nil
		}
		if text != "" && strings.HasPrefix(string(id), text) {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 0:
	case 1:
		return Choice{ID: found[0]}, nil
	default:
		return Choice{}, &UnknownIDError{Text: text, Candidates: found}
	}
	at, ok := parseMoment(text, now)
	if !ok {
		return Choice{}, &UnknownIDError{Text: text}
	}
	for i := len(ids) - 1; i >= 0; i-- {
		if !ids[i].Time().After(at) {
			return Choice{ID: ids[i], At: at}, nil
		}
	}
	e := &UnknownIDError{Text: text, At: at}
	if len(ids) > 0 {
		e.Oldest = ids[0]
	}
	return Choice{}, e
}

// moments are the forms of a time, with what the last unit of each stands for.
var moments = []struct {
	layout string
	unit   time.Duration
}{
	{"2006-01-02", 24 * time.Hour},
	{"2006-01-02 15:04", time.Minute}, {"2006-01-02T15:04", time.Minute},
	{"2006-01-02 15:04Z07:00", time.Minute}, {"2006-01-02T15:04Z07:00", time.Minute},
	{"2006-01-02 15:04:05", time.Second}, {"2006-01-02T15:04:05", time.Second},
	{"2006-01-02 15:04:05Z07:00", time.Second}, {time.RFC3339, time.Second},
}

var daysPattern = regexp.MustCompile(`^(\d{1,5})d(.*)$`)

// parseMoment reads a time, and returns the last instant of what it stands for.
func parseMoment(text string, now time.Time) (time.Time, bool) {
	for _, m := range moments {
		t, err := time.ParseInLocation(m.layout, text, now.Location())
		switch {
		case err != nil:
		case m.unit == 24*time.Hour:
			return t.AddDate(0, 0, 1).Add(-1), true // a day may have 23 or 25 hours
		case t.Nanosecond() != 0: // seconds may have a fraction in any layout
			return t, true
		default:
			return t.Add(m.unit - 1), true
		}
	}
	text = strings.TrimSuffix(text, " ago")
	days := 0
	if m := daysPattern.FindStringSubmatch(text); m != nil {
		days, _ = strconv.Atoi(m[1]) // at most five digits, by the pattern
		if text = m[2]; text == "" {
			text = "0s"
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || strings.ContainsAny(text, "+-") {
		return time.Time{}, false
	}
	return now.Add(-d).Add(-time.Duration(days) * 24 * time.Hour), true
}

// Resolve is Choose among the listed snapshots. What names none of them may name a
// branch, by its id or the beginning of it.
func (c *Catalog) Resolve(ctx context.Context, text string, now time.Time) (Choice, error) {
	if ID(text).IsBranch() { // there may be no listed one
		return c.resolveBranch(ctx, text)
	}
	h, _, err := c.Head(ctx)
	if err != nil {
		return Choice{}, err
	}
	choice, err := Choose(text, h.History, now)
	var none *UnknownIDError
	if !errors.As(err, &none) || len(none.Candidates) > 0 || !none.At.IsZero() {
		return choice, err
	}
	branch, berr := c.resolveBranch(ctx, text)
	if errors.As(berr, &none) && len(none.Candidates) == 0 {
		return Choice{}, err
	}
	return branch, berr
}

// ResolveAdoptable is Choose among the whole snapshots that Adopt could make the newest.
// It refuses where that would.
func (c *Catalog) ResolveAdoptable(ctx context.Context, text string, now time.Time) (Choice, error) {
	if _, _, err := c.adoptable(ctx); err != nil {
		return Choice{}, fmt.Errorf("adopt: %w", err)
	}
	found, err := c.scan(ctx, HistoryPrefix)
	if err != nil {
		return Choice{}, fmt.Errorf("adopt: %w", err)
	}
	all, err := c.whole(ctx, found)
	if err != nil {
		return Choice{}, fmt.Errorf("adopt: %w", err)
	}
	ids := make([]ID, len(all))
	for i := range all {
		ids[i] = all[i].ID
	}
	return Choose(text, ids, now)
}
