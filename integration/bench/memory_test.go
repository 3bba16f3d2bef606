//go:build bench

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

// TestMemory measures what the daemon takes: right after the start, after a load of
// size bytes through the mount, and after its snapshot; and, as the most that was
// ever taken, what came between.
func TestMemory(t *testing.T) {
	fmt.Println("| data\t| at the start\t| after writing and reading it\t| after its snapshot\t| one minute later\t| at most\t|")
	fmt.Println("|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, size := range []int64{10 << 20, 100 << 20, 1 << 30} {
		folder := t.TempDir()
		point := filepath.Join(folder, "mount")
		m := harness.Start(t, harness.Options{Dir: filepath.Join(folder, "disk"), Point: point, Store: harness.NewFileStore(t), Flags: quiet})
		start := resident(t, m, "VmRSS")
		name := filepath.Join(point, "data")
		writeRandom(t, name, size)
		if _, err := os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
		loaded := resident(t, m, "VmRSS")
		m.Snapshot()
		after := resident(t, m, "VmRSS")
		time.Sleep(time.Minute)
		idle := resident(t, m, "VmRSS")
		fmt.Printf("| %d MiB\t| %d MiB\t| %d MiB\t| %d MiB\t| %d MiB\t| %d MiB\t|\n", size>>20, start, loaded, after, idle, resident(t, m, "VmHWM"))
		m.Unmount()
	}
}

// resident returns a line of the daemon's /proc/PID/status, in MiB.
func resident(t *testing.T, m *harness.Mount, line string) int {
	status, err := os.ReadFile(m.Proc("status"))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(l, line+":"); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return (kib + 512) / 1024
		}
	}
	t.Fatalf("no %s in %s", line, status)
	return 0
}
