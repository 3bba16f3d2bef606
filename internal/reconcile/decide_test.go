package reconcile

import (
	"errors"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// The two sides of the table, as they mostly are.
var (
	empty    = Local{Empty: true, Fresh: true}
	stranger = Local{Fresh: true}
	first    = Local{Lineage: "L", Dirty: true} // a journal that never published
	newest   = Local{Published: true, Lineage: "L", Sequence: 7, BaseID: "seven"}
	older    = Local{Published: true, Lineage: "L", Sequence: 5, BaseID: "five"}

	none     = Store{Kind: NoBackup}
	seven    = Store{Kind: Snapshots, Lineage: "L", Sequence: 7, Newest: "seven", History: []string{"five", "six", "seven"}}
	lost     = Store{Kind: HeadLost, Err: errors.New("lost")}
	refused  = Store{Kind: Refused, Err: errors.New("403")}
	silent   = Store{Kind: Unavailable, Err: errors.New("503")}
	anySides = []Local{empty, stranger, first, newest, older, dirty(newest), dirty(older)}
)

func dirty(l Local) Local { l.Dirty = true; return l }

func with(l Local, c Content) Local { l.Content = c; return l }

func of(l Local, lineage string) Local { l.Lineage = lineage; return l }

func intent(l Local, id string) Local { l.Intent = id; return l }

// One case per row of DESIGN §7, and what the flags make of it.
func TestTable(t *testing.T) {
	noBackup, preferLocal, offline := Flags{NoLocalBackup: true}, Flags{PreferLocal: true}, Flags{Offline: true}
	for _, c := range []struct {
		row    Row
		local  Local
		store  Store
		flags  Flags
		action Action
	}{
		{RowNewAndEmpty, empty, none, Flags{}, StartEmpty},
		{RowUnpublished, empty, Store{Kind: NoBackup, Unpublished: "one"}, Flags{}, Refuse},
		{RowEmpty, empty, seven, Flags{}, Restore},
		{RowEmpty, empty, seven, noBackup, Restore},
		{RowFirst, first, none, Flags{}, KeepAll},
		{RowFirst, stranger, none, Flags{}, KeepAll},
		{RowFirst, stranger, Store{Kind: NoBackup, Unpublished: "one"}, Flags{}, KeepAll},
		{RowCurrent, newest, seven, Flags{}, Nothing},
		{RowOlder, older, seven, Flags{}, Update},
		{RowOlder, older, seven, noBackup, Update},
		{RowOlder, older, seven, preferLocal, Update},
		{RowDirty, dirty(newest), seven, Flags{}, Keep},
		{RowDirty, dirty(newest), seven, noBackup, Keep},
		{RowIntent, intent(dirty(older), "seven"), seven, Flags{}, FinishIntent},
		{RowIntent, intent(dirty(older), "six"), seven, Flags{}, FinishIntent},
		{RowIntent, intent(first, "seven"), seven, Flags{}, FinishIntent},
		{RowDiverged, dirty(older), seven, Flags{}, Fork},
		{RowDiverged, dirty(older), seven, noBackup, Fork},
		{RowDiverged, dirty(older), seven, preferLocal, Fork},
		{RowDiverged, intent(dirty(older), "not listed"), seven, Flags{}, Fork},
		{RowUnknown, stranger, seven, Flags{}, Compare},
		{RowUnknownEqual, with(stranger, Equal), seven, Flags{}, Adopt},
		{RowUnknownEqual, with(stranger, Equal), seven, noBackup, Adopt},
		{RowUnknown, with(stranger, Different), seven, Flags{}, Replace},
		{RowUnknown, with(stranger, Different), seven, preferLocal, KeepOver},
		{RowUnknown, with(stranger, Different), seven, noBackup, Refuse},
		{RowUnknown, with(stranger, Different), seven, Flags{NoLocalBackup: true, PreferLocal: true}, KeepOver},
		{RowUnknown, of(with(first, Different), ""), seven, Flags{}, Replace},
		{RowUnknown, of(with(first, Different), "other"), seven, noBackup, Refuse},
		{RowDiverged, of(with(first, Different), "L"), seven, Flags{}, Fork},
		{RowDiverged, of(with(first, Different), "L"), seven, noBackup, Fork},
		{RowUnknown, of(with(first, Different), "L"), seven, preferLocal, KeepOver},
		{RowUnknown, of(with(stranger, Different), "L"), seven, noBackup, Refuse},
		{RowForeign, Local{Published: true, Lineage: "other", Sequence: 1, BaseID: "x"}, seven, Flags{}, Refuse},
		{RowForeign, Local{Published: true, Lineage: "other", Sequence: 1, BaseID: "x"}, seven, preferLocal, Refuse},
		{RowForeign, Local{Published: true, Lineage: "L", Sequence: 8, BaseID: "eight"}, seven, Flags{}, Refuse},
		{RowForeign, Local{Published: true, Lineage: "L", Sequence: 7, BaseID: "another seven"}, seven, Flags{}, Refuse},
		{RowForeign, newest, none, Flags{}, Refuse},
		{RowForeign, dirty(newest), none, Flags{}, Refuse},
		{RowUnfinished, Local{Unfinished: true, Fresh: true}, seven, Flags{}, FinishRestore},
		{RowUnfinished, Local{Unfinished: true, Empty: true}, none, Flags{}, FinishRestore},
		{RowUnavailable, Local{Unfinished: true}, silent, offline, Refuse},
		{RowHeadLost, newest, lost, Flags{}, Refuse},
		{RowRefused, newest, refused, Flags{}, Refuse},
		{RowRefused, newest, refused, offline, ServeOffline},
		{RowRefused, empty, refused, offline, Refuse},
		{RowUnavailable, newest, silent, Flags{}, Refuse},
		{RowUnavailable, dirty(older), silent, offline, ServeOffline},
		{RowUnavailable, stranger, silent, offline, ServeOffline},
		{RowUnavailable, empty, silent, offline, Refuse},
		{RowCurrent, newest, seven, offline, Nothing}, // the store does answer
	} {
		t.Run(string(c.row), func(t *testing.T) {
			if got := Decide(c.local, c.store, c.flags); got != (Decision{c.row, c.action}) {
				t.Errorf("Decide(%+v, %+v, %+v) = %q: %s, want %q: %s", c.local, c.store, c.flags, got.Row, got.Action, c.row, c.action)
			}
		})
	}
}

// Unreachable, unreadable and unfinished come before all others, empty before the
// journal's word.
func TestPrecedence(t *testing.T) {
	for _, l := range anySides {
		for _, unfinished := range []bool{false, true} {
			l.Unfinished = unfinished
			for _, s := range []struct {
				store Store
				row   Row
			}{{silent, RowUnavailable}, {refused, RowRefused}, {lost, RowHeadLost}} {
				if d := Decide(l, s.store, Flags{}); d != (Decision{s.row, Refuse}) {
					t.Errorf("%+v with %s: %q: %s", l, s.row, d.Row, d.Action)
				}
			}
			if d := Decide(l, seven, Flags{PreferLocal: true}); unfinished && d.Action != FinishRestore {
				t.Errorf("%+v unfinished: %q: %s", l, d.Row, d.Action)
			}
		}
		l.Unfinished, l.Empty = false, true
		for _, l := range []Local{l, intent(l, "seven")} {
			if d := Decide(l, seven, Flags{}); d.Action != Restore {
				t.Errorf("a wiped %+v: %q: %s", l, d.Row, d.Action)
			}
			if d := Decide(l, none, Flags{}); d.Action != StartEmpty {
				t.Errorf("a wiped %+v, no backup: %q: %s", l, d.Row, d.Action)
			}
		}
	}
}

// R3: nothing that the store may not have is replaced without a backup, whatever
// the flags and the sides are.
func TestNoLocalChangeIsLost(t *testing.T) {
	for _, l := range anySides {
		for _, c := range []Content{Equal, Different} {
			l.Content = c
			for _, s := range []Store{none, seven, lost, refused, silent} {
				for bits := range 8 {
					f := Flags{NoLocalBackup: bits&1 > 0, PreferLocal: bits&2 > 0, Offline: bits&4 > 0}
					d := Decide(l, s, f)
					saved := l.Empty || l.Published && !l.Dirty
					if (d.Action == Restore || d.Action == Update) && !saved {
						t.Errorf("%+v, %+v, %+v: %s without a backup", l, s, f, d.Action)
					}
					if d.Action == Replace && f.NoLocalBackup {
						t.Errorf("%+v, %+v, %+v: a backup that was not to be made", l, s, f)
					}
					if d.Action == StartEmpty && !l.Empty {
						t.Errorf("%+v, %+v, %+v: starts empty", l, s, f)
					}
				}
			}
		}
	}
}

func TestEveryActionHasAName(t *testing.T) {
	for a := FinishRestore; a <= Refuse; a++ {
		if a.String() == "" {
			t.Errorf("action %d", a)
		}
	}
}

// A refusal names both sides and says what to do; its code is that of DESIGN §9.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		row  Row
		l    Local
		s    Store
		f    Flags
		code int
		say  []string
	}{
		{RowUnavailable, newest, silent, Flags{}, exitcode.Store, []string{"503", "--offline"}},
		{RowUnavailable, empty, silent, Flags{Offline: true}, exitcode.Store, []string{"503", "no whole local copy"}},
		{RowRefused, newest, refused, Flags{}, exitcode.Store, []string{"403"}},
		{RowHeadLost, newest, lost, Flags{}, exitcode.Integrity, []string{"history adopt"}},
		{RowUnpublished, empty, Store{Kind: NoBackup, Unpublished: "one"}, Flags{}, exitcode.Integrity, []string{"history adopt one"}},
		{RowForeign, newest, none, Flags{}, exitcode.Conflict, []string{"/dir", "mem://", "seven", "no snapshot", "--prefer-local", "journal.db"}},
		{RowUnknown, with(stranger, Different), seven, Flags{NoLocalBackup: true}, exitcode.Conflict, []string{"seven", "--prefer-local"}},
	} {
		d := Decide(c.l, c.s, c.f)
		if d != (Decision{c.row, Refuse}) {
			t.Errorf("%s: decided %q: %s", c.row, d.Row, d.Action)
		}
		var err error = &Refusal{Decision: d, Dir: "/dir", Address: "mem://", Local: c.l, Store: c.s, Flags: c.f}
		if !errors.Is(err, ErrRefused) || exitcode.Of(err) != c.code {
			t.Errorf("%s: exit code %d, want %d", c.row, exitcode.Of(err), c.code)
		}
		if c.s.Err != nil && !errors.Is(err, c.s.Err) {
			t.Errorf("%s: the store's error is lost", c.row)
		}
		text := err.Error() + "\n" + exitcode.Hint(err)
		for _, word := range c.say {
			if !strings.Contains(text, word) {
				t.Errorf("%s: %q is not in:\n%s", c.row, word, text)
			}
		}
		if !strings.Contains(text, "nothing was touched") {
			t.Errorf("%s: does not say that nothing was touched:\n%s", c.row, text)
		}
	}
}
