package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/integration/harness"
)

// segment is a vector index as far as its files go. Each persist makes it the next
// state; files or blocks of two persists together are no state.
type segment struct {
	folder string
	random *rand.Rand
	bins   []*os.File
	states []contents // by number; of a new segment, 0 is nil: there is no pickle yet
}

type contents map[string][]byte

const pickle = "index_metadata.pickle"

// segmentBins are the files in the order in which ChromaDB writes them, and how long
// they are at first.
var segmentBins = []struct {
	name string
	size int
}{{"header.bin", 100}, {"data_level0.bin", 300 << 10}, {"length.bin", 4 << 10}, {"link_lists.bin", 70 << 10}}

func openSegment(t *testing.T, folder string, random *rand.Rand, state contents) *segment {
	t.Helper()
	s := &segment{folder: folder, random: random, states: []contents{state}}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *segment) open() error {
	for _, b := range segmentBins {
		f, err := os.OpenFile(filepath.Join(s.folder, b.name), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		s.bins = append(s.bins, f)
	}
	return nil
}

func (s *segment) close() {
	for _, f := range s.bins {
		f.Close() // the mount may be dead
	}
	s.bins = nil
}

func (s *segment) noise(n int) []byte {
	b := make([]byte, (n+7)/8*8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], s.random.Uint64())
	}
	return b[:n]
}

// persist writes the next state the way ChromaDB does: the files in place, through
// descriptors that stay open, in small writes; then the pickle anew. Nothing is
// synced.
func (s *segment) persist() error {
	state := contents{}
	maps.Copy(state, s.states[len(s.states)-1])
	s.states = append(s.states, state)
	for i, b := range segmentBins {
		data := bytes.Clone(state[b.name])
		writes := 1
		if data != nil && b.name != "header.bin" {
			writes += s.random.IntN(12)
		}
		for range writes {
			off, change := 0, s.noise(b.size)
			if writes > 1 {
				off, change = s.random.IntN(len(data)), s.noise(8+s.random.IntN(1600))
			}
			data = append(data, make([]byte, max(0, off+len(change)-len(data)))...)
			copy(data[off:], change)
			if _, err := s.bins[i].WriteAt(change, int64(off)); err != nil {
				return err
			}
		}
		state[b.name] = data
	}
	state[pickle] = append(s.noise(2000+s.random.IntN(9000)), '.') // as every pickle ends
	return os.WriteFile(filepath.Join(s.folder, pickle), state[pickle], 0o644)
}

// found returns the number of the state that the files are in.
func (s *segment) found() (int, error) {
	got := contents{}
	for _, name := range append([]string{pickle}, binNames()...) {
		data, err := os.ReadFile(filepath.Join(s.folder, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		if err == nil {
			got[name] = data
		}
	}
	if _, ok := got[pickle]; !ok && s.states[0] == nil {
		return 0, nil // ChromaDB begins it anew
	}
	for k, state := range slices.Backward(s.states) {
		if state != nil && maps.EqualFunc(got, state, bytes.Equal) {
			return k, nil
		}
	}
	err := fmt.Errorf("it is in none of the states up to %d", len(s.states)-1)
	for name, data := range got {
		is := slices.IndexFunc(s.states, func(c contents) bool { return c != nil && bytes.Equal(c[name], data) })
		err = fmt.Errorf("%w; %s, %d bytes, is of state %d", err, name, len(data), is)
	}
	return 0, err
}

func binNames() (names []string) {
	for _, b := range segmentBins {
		names = append(names, b.name)
	}
	return names
}

// commitKind is how a database records what is persisted.
type commitKind int

const (
	deleted     commitKind = iota // SQLite's default: a journal that is made, synced and removed
	overwritten                   // journal_mode=PERSIST: nothing makes the file system commit its own log
	oneSync                       // a write-ahead log: one fsync is all
	commitKinds
)

// commit records that state k is persisted.
func commit(folder string, k int, kind commitKind) error {
	if kind == oneSync {
		return writeSynced(filepath.Join(folder, "db"), fmt.Sprintf("%08d", k))
	}
	journal := filepath.Join(folder, "db-journal")
	if err := writeSynced(journal, "what db held"); err != nil {
		return err
	}
	if kind == deleted {
		if err := syncFolder(folder); err != nil {
			return err
		}
	}
	if err := writeSynced(filepath.Join(folder, "db"), fmt.Sprintf("%08d", k)); err != nil || kind == overwritten {
		return err
	}
	return os.Remove(journal)
}

func committed(folder string) (int, error) {
	data, err := os.ReadFile(filepath.Join(folder, "db"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(data))
}

func writeSynced(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	return unix.Fdatasync(int(f.Fd()))
}

func syncFolder(folder string) error {
	f, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// appendAndSync goes on until that fails.
func appendAndSync(name string) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	for err == nil {
		if _, err = f.WriteString("more"); err == nil {
			err = f.Sync()
		}
	}
	f.Close() // the disk is gone
}

// persistRounds is how often power is cut; each twelve rounds have all company.
const persistRounds = 24

// company is who else syncs while persists go on.
type company struct {
	commits   bool // a database on the mount: its barriers fall into persists
	neighbour bool // a program beside it on the disk: the file system's log is committed at any time
	kind      commitKind
}

func companyOf(round int) company {
	return company{round&1 != 0, round&2 != 0, commitKind(round / 4 % int(commitKinds))}
}

// F3, F5 and docs/decisions/0008: whenever the power fails, a segment is after the
// next mount in the state that one persist left it in, which is not older than what
// was committed after it. Files that are written like ChromaDB's, byte by byte, show
// more in a second than a ChromaDB does in a minute.
func TestPowerCutInPersists(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var s *segment
	persists, within := 0, 0
	for round := range persistRounds {
		c := companyOf(round)
		daemon := harness.Start(t, m.failing())
		if s != nil {
			s = m.afterPersists(s)
		}
		if s == nil || m.random.IntN(3) == 0 {
			s = openSegment(t, filepath.Join(m.point, fmt.Sprint("segment", round)), m.random, nil)
		}
		if err := commit(m.point, 0, c.kind); err != nil {
			t.Fatal(err)
		}
		done, inside := m.persistUntilCut(s, c, daemon)
		persists += done
		if inside {
			within++
		}
	}
	harness.Start(t, m.failing()).Unmount()
	t.Logf("%d persists, %d of %d power cuts within one", persists, within, persistRounds)
	if within == 0 {
		t.Error("no power cut fell into a persist")
	}
}

// afterPersists checks a segment after a power cut, and opens it as it is; nil if it
// is broken.
func (m *machine) afterPersists(s *segment) *segment {
	m.t.Helper()
	c, err := committed(m.point)
	if err != nil {
		m.t.Fatal(err)
	}
	k, err := s.found()
	if err == nil && k < c {
		err = fmt.Errorf("it is in state %d, and %d was committed", k, c)
	}
	if err != nil {
		m.t.Errorf("%s: %v", filepath.Base(s.folder), err)
		return nil
	}
	return openSegment(m.t, s.folder, m.random, s.states[k])
}

// persistUntilCut makes persists and commits each, in some company, until power is
// cut at some moment. It returns how many persists were committed, and whether the
// cut fell into one.
func (m *machine) persistUntilCut(s *segment, c company, daemon *harness.Mount) (persists int, within bool) {
	m.t.Helper()
	moment := time.Duration(m.random.IntN(200)) * time.Millisecond
	var inside atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for ; ; persists++ {
			inside.Store(true)
			err := s.persist()
			inside.Store(false)
			switch s.random.IntN(4) {
			case 0: // two without a commit in between
				err = errors.Join(err, s.persist())
			case 1: // a cache of indexes that lets go of this one
				s.close()
				err = errors.Join(err, s.open())
			}
			if err != nil || commit(m.point, len(s.states)-1, c.kind) != nil {
				return
			}
		}
	})
	if c.commits {
		wg.Go(func() { appendAndSync(filepath.Join(m.point, "other")) })
	}
	if c.neighbour {
		wg.Go(func() { appendAndSync(filepath.Join(m.disk.Point, "neighbour")) })
	}
	time.Sleep(moment)
	within = inside.Load()
	m.disk.CutPower()
	daemon.Kill()
	wg.Wait()
	s.close()
	m.disk.Off()
	m.disk.PowerOn()
	return persists, within
}
