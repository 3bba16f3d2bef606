package integration

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

const wirePart = 8 * mib

// noise is n bytes that nothing compresses or finds elsewhere.
func noise(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// wholeParts counts the parts of a file that hold what they should.
func wholeParts(t *testing.T, name string, want []byte) (n int) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, wirePart)
	for off := 0; off < len(want); off += wirePart {
		part := want[off:min(off+wirePart, len(want))]
		if read, _ := f.ReadAt(got[:len(part)], int64(off)); bytes.Equal(got[:read], part) { // it may be short
			n++
		}
	}
	return n
}

// R2: a mount that is killed with -9 in the middle of a restore goes on at its next
// start, and fetches what is missing: counted on the wire, part by part.
func TestKilledRestoreFetchesOnlyWhatIsMissing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewS3Store(t))
	big := noise(t, 20*wirePart)
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(w.dir, "big"), string(big))
	writeFile(t, filepath.Join(w.dir, "small"), "small")
	id := w.publish().ID
	w.lose()

	meter, through := harness.NewMeter(t, w.store)
	w.store = through
	const before = 15 * wirePart
	meter.Reset(before)
	m := harness.Launch(t, w.options())
	harness.Eventually(t, time.Minute, "most of the snapshot has come", meter.Held)
	m.Kill()
	staged := wholeParts(t, filepath.Join(w.dir, ".chromafs", "scratch", "restore-"+id, "big"), big)
	if least := before/wirePart - 8; staged < least { // as many are under way at once
		t.Errorf("%d parts were left whole by the restore that was killed, want %d", staged, least)
	}

	meter.Reset(0)
	w.mountOnce()
	missing := int64(len(big) - staged*wirePart)
	if got := meter.Bytes(); got < missing || got > missing+mib {
		t.Errorf("%d bytes were sent for the %d that were missing", got, missing)
	}
	if got := readFile(t, filepath.Join(w.dir, "big")); got != string(big) {
		t.Error("what was restored is not what was stored")
	}
	t.Logf("%d of 20 parts were left; %d bytes were fetched", staged, meter.Bytes())
}

// S4 the other way round: a copy that is one snapshot old fetches the parts that differ,
// and one that is the same fetches none.
func TestOnlyDifferingPartsAreFetched(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewS3Store(t))
	big := noise(t, 6*wirePart+12345)
	m := w.mount()
	writeFile(t, filepath.Join(w.point, "big"), string(big))
	m.Snapshot()
	m.Unmount()
	old := w.another()
	old.mountOnce()
	m = w.mount()
	overwrite(t, filepath.Join(w.point, "big"), 3*wirePart+5, []byte("changed"))
	m.Snapshot()
	m.Unmount()

	meter, through := harness.NewMeter(t, w.store)
	old.store = through
	meter.Reset(0)
	old.mountOnce()
	if got := meter.Bytes(); got < wirePart || got > wirePart+mib {
		t.Errorf("%d bytes were sent for one part", got)
	}
	copy(big[3*wirePart+5:], "changed")
	if got := readFile(t, filepath.Join(old.dir, "big")); got != string(big) {
		t.Error("what was restored is not what was stored")
	}
	meter.Reset(0)
	old.mountOnce()
	if got := meter.Bytes(); got > mib {
		t.Errorf("%d bytes were sent for nothing", got)
	}
}
