package integration

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

// S4: a daemon that is killed in the middle of a first backup has not sent in vain.
// The next mount sends what was missing, and nothing else.
func TestKilledInTheMiddleOfAFirstBackup(t *testing.T) {
	t.Parallel()
	const part, parts, before = 8 << 20, 25, 14
	w := newWorld(t, harness.NewS3Store(t))
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, parts*part-1000)
	rand.NewChaCha8([32]byte{1}).Read(data)
	if err := os.WriteFile(filepath.Join(w.dir, "big.bin"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	total := int64(len(data))
	for i := range 50 {
		small := data[i*10_000 : (i+1)*10_000]
		if err := os.WriteFile(filepath.Join(w.dir, "small"+strconv.Itoa(i)), small, 0o644); err != nil {
			t.Fatal(err)
		}
		total += int64(len(small))
	}
	o := w.options()
	o.Failpoints = harness.KillAt("uploader/stored-part", before)
	m := harness.Launch(t, o) // the first backup begins by itself
	harness.Eventually(t, 2*time.Minute, "the daemon is killed", m.Ended)
	m.Kill()
	if !m.Hit("uploader/stored-part") || len(w.store.Stored()) == 0 {
		t.Fatalf("it was not killed where it should have been: %s", m.Log())
	}

	m = w.mount()
	m.Snapshot()
	sent := uploaded(t, m)
	t.Logf("%d of %d MiB were sent by the second daemon", sent>>20, total>>20)
	if sent == 0 || sent > total-before*part {
		t.Errorf("%d parts had arrived, yet %d of %d bytes were sent", before, sent, total)
	}
	m.Unmount()
	w.store.CheckWhole()
	w.store.CheckNoUploads()
	got, err := os.ReadFile(filepath.Join(w.store.Snapshot(w.store.Newest()), "big.bin"))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("the snapshot's file is not what was there: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(w.dir, ".chromafs", "stored.*")); err != nil || len(left) != 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

var publishedBytes = regexp.MustCompile(`snapshot published.* bytes_uploaded=(\d+)`)

// uploaded returns how many bytes the snapshots of a daemon sent, by its log.
func uploaded(t *testing.T, m *harness.Mount) (sum int64) {
	t.Helper()
	for _, match := range publishedBytes.FindAllStringSubmatch(m.Log(), -1) {
		n, err := strconv.ParseInt(match[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}
