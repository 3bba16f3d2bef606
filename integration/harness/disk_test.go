package harness

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A power cut loses what was not synced, overwritten blocks and new files alike, and
// nothing that was; and it is over before anyone's fsync can succeed again.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	d := NewDisk(t)
	old, fresh := bytes.Repeat([]byte("old."), 64<<10), bytes.Repeat([]byte("new."), 64<<10)
	synced, inPlace := filepath.Join(d.Point, "synced"), filepath.Join(d.Point, "in place")
	for _, name := range []string{synced, inPlace} {
		write(t, name, old).Close()
	}
	d.Sync()
	write(t, filepath.Join(d.Point, "made"), fresh).Close()
	f := write(t, inPlace, fresh)
	defer f.Close()
	// The sync of another file that grew commits ext4's log, with the names in it, but
	// no data of others.
	longer := append(fresh, fresh...)
	other := write(t, synced, longer)
	defer other.Close()
	if err := other.Sync(); err != nil {
		t.Fatal(err)
	}
	d.CutPower()
	if err := f.Sync(); err == nil {
		t.Error("an fsync succeeded without power")
	}
	f.Close()
	other.Close()
	d.Off()
	d.PowerOn()
	for name, want := range map[string][]byte{"synced": longer, "in place": old, "made": nil} {
		got, err := os.ReadFile(filepath.Join(d.Point, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes (%.8q…), %v, want %d (%.8q…)", name, len(got), got, err, len(want), want)
		}
	}
}

// write overwrites a file in place, or makes it.
func write(t *testing.T, name string, data []byte) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	return f
}
