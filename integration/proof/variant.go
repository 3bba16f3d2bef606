package proof

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Variant is a way in which ChromaDB and the mount are run while snapshots are
// taken.
type Variant struct {
	Name       string
	Client     bool     // a PersistentClient instead of "chroma run"
	Aimed      bool     // most snapshots are asked for within a persist, when a failpoint tells of one
	Failpoints []string // of the daemon; none selects the build that people run
	Env        []string // of the daemon
	Flags      []string // of the daemon
}

// reach is a failpoint that only tells of the WRITEs of a file.
func reach(file string) string { return delay(file, 0) }

// delay is a failpoint at which each WRITE of a file waits.
func delay(file string, d time.Duration) string {
	return fmt.Sprintf("fusefs/write/%s=sleep:%v", file, d)
}

// stopped is a failpoint at which ChromaDB stops in the middle of a persist: the
// other files are written, the pickle is empty.
func stopped(d time.Duration) string {
	return fmt.Sprintf("fusefs/truncated/index_metadata.pickle=sleep:%v", d)
}

// delayedPersist delays each WRITE of the files that a persist rewrites.
func delayedPersist(d time.Duration) (all []string) {
	for _, file := range []string{"header.bin", "data_level0.bin", "length.bin", "link_lists.bin"} {
		all = append(all, delay(file, d))
	}
	return all
}

// Variants are the ways in which every snapshot must be whole.
func Variants() []Variant {
	return []Variant{
		{Name: "as released"},
		{Name: "within persists", Aimed: true, Failpoints: []string{reach("header.bin")}},
		{Name: "within stopped persists", Aimed: true, Failpoints: []string{stopped(80 * time.Millisecond)}},
		{Name: "slow persists", Aimed: true, Failpoints: delayedPersist(25 * time.Millisecond), Env: []string{"GOMAXPROCS=2"}},
		{Name: "slow persists, PersistentClient", Client: true, Aimed: true,
			Failpoints: []string{delay("data_level0.bin", 25*time.Millisecond), stopped(40 * time.Millisecond)}},
		{Name: "slow SQLite, slow reading, one processor", Client: true, Failpoints: []string{
			delay("chroma.sqlite3", 2*time.Millisecond), delay("chroma.sqlite3-journal", time.Millisecond),
			"uploader/after-cut=sleep:200ms"}, Env: []string{"GOMAXPROCS=1"}},
	}
}

// without is a variant with a mechanism switched off, and with it the check before
// publishing, which would hold the broken cuts back.
func (v Variant) without(mechanism string, failpoints ...string) Variant {
	v.Name += ", without " + mechanism
	v.Flags = append(slices.Clone(v.Flags), "--verify", "none")
	v.Failpoints = append(slices.Concat(v.Failpoints, failpoints), mechanism+"=off")
	return v
}

func (v Variant) failpoints(t testing.TB) string {
	seen := map[string]bool{}
	for _, f := range v.Failpoints {
		name, _, _ := strings.Cut(f, "=")
		if seen[name] {
			t.Fatalf("%s sets the failpoint %s twice", v.Name, name)
		}
		seen[name] = true
	}
	return strings.Join(v.Failpoints, ";")
}
