package history

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// Oldest first by sequence; the clock of the fourth one's writer was two days behind.
var listedIDs = []ID{
	"20261122T201530.123Z-4f2a", "20261123T101530.000Z-0001", "20261123T101530.000Z-0102", "20261121T230000.500Z-beef", "20261124T150431.000Z-aaaa",
}

func TestChoose(t *testing.T) {
	berlin := time.FixedZone("", 3600)
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, berlin)
	for text, want := range map[string]int{
		"": 4, "latest": 4, string(listedIDs[0]): 0, "20261122": 0, "20261123T101530.000Z-00": 1, "20261124": 4,
		// Times: the newest by sequence that is not newer.
		"2026-11-25": 4, "2026-11-24": 4, "2026-11-23": 3, "2026-11-22": 3,
		"2026-11-24 16:04": 4, "2026-11-24T16:04": 4, "2026-11-24 16:03": 3, "2026-11-24 16:04:31": 4, "2026-11-24 16:04:30": 3,
		"2026-11-24T15:04:31Z": 4, "2026-11-24T15:04:30.999Z": 3, "2026-11-24T15:04:31.000000001Z": 4, "2026-11-24T15:04Z": 4, "2026-11-24 17:04+02:00": 4,
		"2026-11-22T00:00:00+01:00": 3, "2026-11-22T00:00:00.5+01:00": 3,
		"1h": 4, "19h55m": 4, "19h56m": 3, "0s": 4, "1d": 3, "1d ago": 3, "3d": 3, "3d11h59m": 3, "2h30m ago": 4,
	} {
		got, err := Choose(text, listedIDs, now)
		if err != nil || got.ID != listedIDs[want] {
			t.Errorf("%q: %+v, %v; want %s", text, got, err, listedIDs[want])
		}
	}
	for text, say := range map[string]string{
		"2026":                          "begins the ids of 5 snapshots: 20261122T201530.123Z-4f2a, ",
		"20261123T10":                   "20261123T101530.000Z-0001, 20261123T101530.000Z-0102",
		"2026-11-21T22:59:59Z":          "the oldest is " + string(listedIDs[0]),
		"2026-11-22T00:00:00.499+01:00": "the oldest is",
		"2026-11-21":                    "the oldest is",
		"4d":                            "the oldest is", "99999d": "the oldest is",
		"yesterday": "no such snapshot", "-2h": "no such snapshot", "2d-3h": "no such snapshot", "2026-13-01": "no such snapshot",
		"20261122T201530.123Z-4f2ax": "no such snapshot", "2026-11-24 25:00": "no such snapshot", "5": "no such snapshot", "d": "no such snapshot",
	} {
		got, err := Choose(text, listedIDs, now)
		var unknown *UnknownIDError
		if !errors.As(err, &unknown) || !errors.Is(err, ErrUnknownID) || !strings.Contains(err.Error(), say) ||
			exitcode.Of(err) != exitcode.Usage || !strings.Contains(exitcode.Hint(err), "history list") {
			t.Errorf("%q: %+v, %v; want %q", text, got, err, say)
		}
	}
	if _, err := Choose("", nil, now); !errors.Is(err, ErrUnknownID) {
		t.Errorf("of none: %v", err)
	}
	branch := ID("20261124T150431.000Z-bbbb-branch-8c51") // whoever lists branches adds them
	if got, err := Choose(string(branch), append([]ID{branch}, listedIDs...), now); err != nil || got.ID != branch {
		t.Errorf("a branch: %+v, %v", got, err)
	}
}

func TestChooseAmongMany(t *testing.T) {
	var ids []ID
	for i := range 24 {
		ids = append(ids, ID("20261122T201530.123Z-00"+string("0123456789abcdef"[i/16])+string("0123456789abcdef"[i%16])))
	}
	_, err := Choose("2026", ids, testTime)
	if err == nil || !strings.Contains(err.Error(), string(ids[23])) || strings.Contains(err.Error(), string(ids[13])) || !strings.Contains(err.Error(), "14 older ones") {
		t.Errorf("%v", err)
	}
}
