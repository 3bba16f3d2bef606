package proof

import (
	"testing"
	"time"
)

// mechanism is a part of what makes a cut one instant, or of what makes an fsync a
// barrier, that a build with failpoints can leave out; and a proof that fails then.
type mechanism struct {
	name   string
	chroma bool // ChromaDB shows it, and not only a sharper writer
	prove  func(t testing.TB, p Plan, v Variant) Table
	with   Variant // what makes it show; with the mechanism itself, all is whole
	copies int     // of which one must show it
}

func (m mechanism) variant() Variant { return m.with.without(m.name) }

func mechanisms() []mechanism {
	return []mechanism{
		{name: "fusefs/wait-for-quiet", chroma: true, prove: proveMounted, copies: 40, with: Variant{Name: "stopped persists", Aimed: true,
			Failpoints: []string{stopped(80 * time.Millisecond)}}},
		// Persists then never seem to end, so no cut finds a quiet moment.
		{name: "fusefs/pickle-push", chroma: true, prove: proveMounted, copies: 10, with: Variant{Name: "slow persists", Aimed: true,
			Failpoints: delayedPersist(25 * time.Millisecond), Flags: []string{"--quiesce-timeout", "2s"}}},
		{name: "fusefs/second-push", prove: proveOrdered, copies: 100, with: Variant{Name: "counting"}},
		{name: "fusefs/no-write-between", prove: proveOrdered, copies: 100, with: Variant{Name: "counting, slow WRITEs",
			Failpoints: []string{delay("first", time.Millisecond)}}},
		{name: "fusefs/gate", prove: proveOrdered, copies: 40, with: Variant{Name: "counting, slow freeze",
			Failpoints: []string{"fusefs/frozen=sleep:30ms"}}},
		{name: "fusefs/copy-before-write", prove: proveOrdered, copies: 20, with: Variant{Name: "counting, slow reading",
			Failpoints: []string{"uploader/after-cut=sleep:50ms"}}},
		{name: "fusefs/barrier-push", prove: proveKilled, copies: 3, with: Variant{Name: "counting, killed"}},
	}
}

// A proof that cannot fail proves nothing: each mechanism is missed where it is left
// out, under the same circumstances in which all is whole with it.
func TestEachMechanismIsMissed(t *testing.T) {
	t.Parallel()
	for _, m := range mechanisms() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			p := Plan{Copies: m.copies, Seed: *seed, UntilBroken: true}
			table := m.prove(t, p, m.variant())
			if !table.Failed() {
				t.Errorf("nobody misses %s: all %d copies are whole; seed %d", m.name, table.Taken, p.Seed)
			}
			t.Logf("seed %d\n%s\n%s\n%s", p.Seed, TableHead, table.Line(m.variant().Name), table.Why(1))
		})
	}
}

// S1 and F3 with a writer that is sharper than ChromaDB.
func TestEverySnapshotOfACountingWriterIsOneInstant(t *testing.T) {
	t.Parallel()
	variants := []mechanism{
		{prove: proveOrdered, with: Variant{Name: "as released"}, copies: 30},
		{prove: proveOrdered, with: Variant{Name: "one processor", Failpoints: []string{delay("second", time.Millisecond)},
			Env: []string{"GOMAXPROCS=1"}}, copies: 15},
	}
	for _, m := range mechanisms() {
		if !m.chroma {
			m.copies = min(m.copies, 15)
			variants = append(variants, m)
		}
	}
	for _, m := range variants {
		t.Run(m.with.Name, func(t *testing.T) {
			t.Parallel()
			p := Plan{Copies: m.copies, Seed: *seed}
			table := m.prove(t, p, m.with)
			if table.Failed() || table.Whole != m.copies {
				t.Errorf("seed %d\n%s\n%s\n%s", p.Seed, TableHead, table.Line(m.with.Name), table.Why(5))
			}
		})
	}
}

func switchNamed(t testing.TB, name string) mechanism {
	t.Helper()
	for _, m := range mechanisms() {
		if m.name == name {
			return m
		}
	}
	t.Fatalf("no such mechanism: %s", name)
	return mechanism{}
}
