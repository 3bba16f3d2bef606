package integration

import (
	"encoding/binary"
	"errors"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/integration/harness"
)

// commits watches a ChromaDB on a mount for the moments at which SQLite has committed
// something after a persist of a segment: the file system says when the pickle was
// closed, and then when the rollback journal went, which is when the commit counts.
type commits struct {
	fd      int
	segment int32 // watches
	root    int32
}

func watchCommits(t *testing.T, point, segment string) *commits {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	c := &commits{fd: fd}
	for _, w := range []struct {
		watch *int32
		path  string
		mask  uint32
	}{{&c.segment, filepath.Join(point, segment), unix.IN_CLOSE_WRITE}, {&c.root, point, unix.IN_DELETE}} {
		wd, err := unix.InotifyAddWatch(fd, w.path, w.mask)
		if err != nil {
			t.Fatalf("watch %s: %v", w.path, err)
		}
		*w.watch = int32(wd)
	}
	return c
}

// wait returns at the nth commit after a persist.
func (c *commits) wait(t *testing.T, nth int) {
	t.Helper()
	buffer := make([]byte, 64<<10)
	deadline := time.Now().Add(time.Minute)
	for persisted := false; ; {
		ready := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, int(time.Until(deadline).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("no %d. commit after a persist within a minute (%v)", nth, err)
		}
		if n, err = unix.Read(c.fd, buffer); err != nil {
			t.Fatal(err)
		}
		for b := buffer[:n]; len(b) > 0; {
			watch, length := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[12:])
			end := unix.SizeofInotifyEvent + length
			name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:end]), "\x00")
			b = b[end:]
			switch {
			case watch == c.segment && name == pickle:
				persisted = true
			case watch == c.root && name == "chroma.sqlite3-journal" && persisted:
				if nth--; nth == 0 {
					return
				}
			}
		}
	}
}

// vectorsCommitted is the number up to which SQLite says that vectors are in the
// index on disk, by a copy of the database.
func vectorsCommitted(t *testing.T, dir string) int {
	t.Helper()
	copied := t.TempDir()
	for _, name := range []string{"chroma.sqlite3", "chroma.sqlite3-journal"} {
		if from := filepath.Join(dir, name); harness.Exists(t, from) {
			harness.CopyTree(t, from, copied)
		}
	}
	out, err := exec.Command("sqlite3", filepath.Join(copied, "chroma.sqlite3"),
		"SELECT max(m.seq_id) FROM max_seq_id m JOIN segments s ON s.id = m.segment_id WHERE s.scope = 'VECTOR'").CombinedOutput()
	if err != nil {
		t.Fatalf("sqlite3: %v: %s", err, out)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// F5: the daemon is killed right after the first commits that follow a persist, one
// of which tells ChromaDB never to look at these vectors' rows again. If the kernel
// still had pages of the index for the daemon, they would be gone.
func TestKilledAtCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, harness.NewFileStore(t))
	w.seed()
	folders, err := filepath.Glob(filepath.Join(w.dir, "*", pickle))
	if err != nil || len(folders) != 1 {
		t.Fatalf("segments: %v, %v", folders, err)
	}
	segment := filepath.Base(filepath.Dir(folders[0]))
	counts, advanced := seedDocuments(), 0
	for nth := 1; nth <= 3; nth++ {
		before := vectorsCommitted(t, w.dir)
		o := w.options("--interval", "1h")
		o.Failpoints = strings.Join(without(), ";")
		m := harness.Start(t, o)
		watch := watchCommits(t, w.point, segment)
		server := harness.StartServer(t, w.point)
		l := startLoad(server, counts)
		watch.wait(t, nth)
		m.Kill()
		server.Kill()
		l.wg.Wait()
		counts = l.counts()
		after := vectorsCommitted(t, w.dir)
		if after > before {
			advanced++
		}
		m = w.mount()
		harness.VerifyAtLeast(t, w.point, counts)
		m.Unmount()
		t.Logf("killed at commit %d: vectors up to %d are committed, before %d; nothing is missing of %v", nth, after, before, counts)
	}
	if advanced == 0 {
		t.Error("no kill came after a commit of vectors: this test proves nothing")
	}
}
