package fusefs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
)

// segmentFiles is a segment as a test begins with it.
var segmentFiles = map[string][]byte{
	"header.bin":      bytes.Repeat([]byte("h"), 100),
	"data_level0.bin": bytes.Repeat([]byte("0123456789abcdef"), 3*undoBlock/16+1),
	"length.bin":      bytes.Repeat([]byte("l"), undoBlock),
	"link_lists.bin":  nil,
	pickleName:        []byte("the old pickle."),
}

// childHalf begins a persist of the segment args[0] the way ChromaDB does, does what
// the rest of args says, says "ready" and holds its files open until it is killed.
func childHalf(args []string) error {
	seg := args[0]
	open := map[string]*os.File{}
	for name := range segmentFiles {
		if name == pickleName {
			continue
		}
		f, err := os.OpenFile(filepath.Join(seg, name), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		open[name] = f
	}
	for _, step := range args[1:] {
		var err error
		switch step {
		case "bins":
			for name, f := range open {
				for _, off := range []int64{0, 8, 2*undoBlock + 5} { // in place, and beyond the end of some
					if _, err := f.WriteAt([]byte("new "+name), off); err != nil {
						return err
					}
				}
			}
		case "shrink":
			err = open["data_level0.bin"].Truncate(undoBlock + 7)
		case "punch":
			err = unix.Fallocate(int(open["length.bin"].Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
		case "fsync":
			err = open["header.bin"].Sync()
		case "truncate pickle":
			var f *os.File
			f, err = os.OpenFile(filepath.Join(seg, pickleName), os.O_WRONLY|os.O_TRUNC|os.O_CREATE, 0o644)
			open[pickleName] = f
		case "pickle":
			err = os.WriteFile(filepath.Join(seg, pickleName), []byte("the new pickle."), 0o644)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// halfPersist makes a segment on a mount (without a pickle if fresh), begins a
// persist by steps, and returns the segment as it was before and the function that
// ends the writer.
func halfPersist(t *testing.T, fresh bool, prepare func(*fixture), steps ...string) (fx *fixture, before map[string]string, end func()) {
	t.Helper()
	fx = mounted(t)
	if prepare != nil {
		prepare(fx)
	}
	must(t, os.Mkdir(in(fx.mnt, "seg"), 0o755))
	for name, data := range segmentFiles {
		if name == pickleName && fresh {
			continue
		}
		must(t, os.WriteFile(filepath.Join(fx.mnt, "seg", name), data, 0o644))
	}
	before = segment(t, fx)
	d, err := os.Open(filepath.Join(fx.mnt, "seg"))
	must(t, err)
	must(t, d.Sync()) // a persist that is over keeps its log until a barrier
	must(t, d.Close())
	if left := undoNames(t, fx); len(left) > 0 {
		t.Fatalf("after a barrier: %v", left)
	}
	cmd := child(t, "half", append([]string{filepath.Join(fx.mnt, "seg")}, steps...)...)
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = testWriter{t}
	must(t, cmd.Start())
	end = func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	line := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(stdout, line); err != nil || string(line) != "ready\n" {
		end()
		t.Fatalf("the writer said %q, %v", line, err)
	}
	return fx, before, end
}

// segment reads the segment from the backing directory.
func segment(t *testing.T, fx *fixture) map[string]string {
	t.Helper()
	files := map[string]string{}
	list, err := os.ReadDir(filepath.Join(fx.dir, "seg"))
	must(t, err)
	for _, e := range list {
		data, err := os.ReadFile(filepath.Join(fx.dir, "seg", e.Name()))
		must(t, err)
		files[e.Name()] = string(data)
	}
	return files
}

func undoNames(t *testing.T, fx *fixture) (names []string) {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(fx.dir, datadir.StateName, undoName, "*"))
	must(t, err)
	return list
}

// recovered runs Recover on the fixture's DIR, as the next daemon would.
func recovered(t *testing.T, fx *fixture) {
	t.Helper()
	dir, err := datadir.Open(fx.dir)
	must(t, err)
	defer dir.Close()
	must(t, Recover(dir, slog.New(slog.NewTextHandler(testWriter{t}, nil))))
}

func wantSegment(t *testing.T, fx *fixture, want map[string]string) {
	t.Helper()
	got := segment(t, fx)
	for name, data := range want {
		if got[name] != data {
			t.Errorf("%s: %d bytes, not the %d of before", name, len(got[name]), len(data))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
}

// F5: whatever a persist has changed when the daemon is killed, the next start finds
// the segment as it was before.
func TestInterruptedPersistIsUndone(t *testing.T) {
	for _, steps := range [][]string{
		{"bins", "fsync"},
		{"truncate pickle"},
		{"bins", "fsync", "truncate pickle"},
		{"shrink", "bins", "fsync"},
		{"bins", "fsync", "shrink", "punch"},
		{"punch", "shrink", "bins", "truncate pickle", "fsync"},
	} {
		t.Run(strings.Join(steps, ","), func(t *testing.T) {
			fx, before, end := halfPersist(t, false, nil, steps...)
			defer end()
			if fmt.Sprint(segment(t, fx)) == fmt.Sprint(before) {
				t.Fatal("the persist has changed nothing yet: this test could not fail")
			}
			recovered(t, fx)
			wantSegment(t, fx, before)
			if left := undoNames(t, fx); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// F5: the first persist of a segment leaves no pickle, so that ChromaDB begins anew.
func TestInterruptedFirstPersist(t *testing.T) {
	fx, before, end := halfPersist(t, true, nil, "bins", "truncate pickle", "fsync")
	defer end()
	recovered(t, fx)
	got := segment(t, fx)
	if _, ok := got[pickleName]; ok || len(got) != len(before) {
		t.Errorf("%d files, pickle %v", len(got), ok)
	}
}

// A persist whose pickle was flushed is over: it stays, unless the power failed
// before a barrier.
func TestCompletePersistStays(t *testing.T) {
	fx, before, end := halfPersist(t, false, nil, "bins", "pickle")
	defer end()
	if left := undoNames(t, fx); len(left) != 1 {
		t.Fatalf("logs: %v", left)
	}
	now := segment(t, fx)
	recovered(t, fx)
	wantSegment(t, fx, now)
	if now[pickleName] == before[pickleName] {
		t.Error("the pickle did not change")
	}
}

func TestCompletePersistIsUndoneAfterAPowerCut(t *testing.T) {
	elsewhere := func(fx *fixture) {
		u := fx.fs.fsys.undo
		u.mu.Lock()
		defer u.mu.Unlock()
		u.boot = "another run of the machine"
	}
	fx, before, end := halfPersist(t, false, elsewhere, "bins", "pickle")
	defer end()
	recovered(t, fx)
	wantSegment(t, fx, before)
}

// Logs end with the barrier after the persist, or with the last writer.
func TestUndoLogsEnd(t *testing.T) {
	fx, _, end := halfPersist(t, false, nil, "bins", "pickle", "fsync")
	if left := undoNames(t, fx); len(left) > 0 {
		t.Errorf("after a barrier: %v", left)
	}
	end()
	fx, _, end = halfPersist(t, false, nil, "bins", "fsync")
	if left := undoNames(t, fx); len(left) != 1 {
		t.Errorf("in the middle of a persist: %v", left)
	}
	end()
	eventually(t, "the log goes with the last writer", func() bool { return len(undoNames(t, fx)) == 0 })
}

// What somebody changed after the daemon was killed is not overwritten, nor what
// only has the name of a file of the segment.
func TestRecoverLeavesLaterChangesAlone(t *testing.T) {
	fx, _, end := halfPersist(t, false, nil, "bins", "fsync")
	defer end()
	log := undoNames(t, fx)[0]
	before := time.Now().Add(-time.Minute)
	must(t, os.Chtimes(log, before, before))
	now := segment(t, fx)
	recovered(t, fx)
	wantSegment(t, fx, now)

	fx, before2, end := halfPersist(t, false, nil, "bins", "fsync")
	defer end()
	replaced := filepath.Join(fx.dir, "seg", "header.bin")
	must(t, os.WriteFile(replaced+"~", []byte("mine"), 0o644))
	must(t, os.Rename(replaced+"~", replaced))
	recovered(t, fx)
	before2["header.bin"] = "mine"
	wantSegment(t, fx, before2)
}

// F4: a log that cannot be written does not fail the write.
func TestUndoLogWithoutRoom(t *testing.T) {
	blocked := func(fx *fixture) {
		must(t, os.WriteFile(filepath.Join(fx.dir, datadir.StateName, undoName), nil, 0o600)) // no folder can be made
	}
	fx, before, end := halfPersist(t, false, blocked, "bins", "fsync", "pickle")
	defer end()
	if now := segment(t, fx); now["header.bin"] == before["header.bin"] || now[pickleName] != "the new pickle." {
		t.Error("the persist did not go on")
	}
}

// Whatever is in a log, reading it ends without harm, and what is cut short is not
// applied.
func FuzzReadUndo(f *testing.F) {
	head := undoHeader{Boot: "b", Folder: []string{"seg"}, Inode: 7, Files: []undoEntry{{"a", 8, 20}}}
	whole := encodeUndo(undoBegin, 0, 0, head.encode())
	whole = append(whole, encodeUndo(undoData, 0, 3, []byte("data"))...)
	whole = append(whole, encodeUndo(undoComplete, 0, 0, nil)...)
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, log []byte) {
		_, _, err := readUndo(bytes.NewReader(log), func(h *undoHeader, file int, off int64, data []byte) error {
			if off < 0 || off+int64(len(data)) > h.Files[file].Size {
				t.Errorf("%d bytes at %d of %d", len(data), off, h.Files[file].Size)
			}
			return nil
		})
		if err != nil && err != errUndoHeader {
			t.Errorf("read: %v", err)
		}
	})
}

func TestReadUndo(t *testing.T) {
	head := undoHeader{Boot: "b", Folder: []string{"seg"}, Inode: 7, Files: []undoEntry{{"a", 8, 20}}}
	begin := encodeUndo(undoBegin, 0, 0, head.encode())
	data := encodeUndo(undoData, 0, 3, []byte("data"))
	done := encodeUndo(undoComplete, 0, 0, nil)
	outside, err := json.Marshal(undoHeader{Folder: []string{"seg"}, Files: []undoEntry{{"../a", 8, 20}}})
	must(t, err)
	for name, test := range map[string]struct {
		log     []byte
		applied int
		end     uint8
		err     error
	}{
		"whole":             {bytes.Join([][]byte{begin, data, data, done}, nil), 2, undoComplete, nil},
		"settled":           {bytes.Join([][]byte{begin, data, done, encodeUndo(undoSettled, 0, 0, nil)}, nil), 1, undoSettled, nil},
		"cut short":         {bytes.Join([][]byte{begin, data, data[:len(data)-1]}, nil), 1, undoBegin, nil},
		"damaged":           {bytes.Join([][]byte{begin, data, flip(data), data, done}, nil), 1, undoBegin, nil},
		"beyond the file":   {bytes.Join([][]byte{begin, encodeUndo(undoData, 0, 18, []byte("data")), done}, nil), 0, undoBegin, nil},
		"no such file":      {bytes.Join([][]byte{begin, encodeUndo(undoData, 1, 0, []byte("data"))}, nil), 0, undoBegin, nil},
		"no header":         {data, 0, undoBegin, errUndoHeader},
		"header cut short":  {begin[:len(begin)-1], 0, undoBegin, errUndoHeader},
		"a name that leads": {encodeUndo(undoBegin, 0, 0, outside), 0, undoBegin, errUndoHeader},
	} {
		applied := 0
		_, end, err := readUndo(bytes.NewReader(test.log), func(_ *undoHeader, _ int, _ int64, b []byte) error {
			applied++
			return nil
		})
		if applied != test.applied || end != test.end || err != test.err {
			t.Errorf("%s: applied %d, end %d, %v", name, applied, end, err)
		}
	}
}

func flip(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-1] ^= 1
	return b
}
