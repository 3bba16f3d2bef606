package uploader

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/tree"
	"github.com/chromafs/chromafs/journal"
)

// knowing is a world whose views say which parts were touched, and count what is
// read of them.
type knowing struct {
	*world

	mu    sync.Mutex
	touch map[string][]int // parts that views claim were touched; no entry: not known
	asked []uint64         // the cuts that Touched was asked about
	acked []uint64         // the cuts that were acknowledged
	read  int64
}

func newKnowing(t *testing.T) *knowing {
	k := &knowing{world: newWorld(t), touch: map[string][]int{}}
	k.open()
	k.renew(k.j)
	return k
}

// renew makes an uploader that takes k's views.
func (k *knowing) renew(q Queue) {
	k.u = k.uploader(q)
	k.u.o.Cut = func(ctx context.Context) (View, error) {
		v, err := k.takeCut(ctx)
		return &knowingView{v.(*memView), k}, err
	}
	k.takeover()
}

type knowingView struct {
	*memView
	k *knowing
}

func (v *knowingView) Touched(path string, since uint64) (func(off, length int64) bool, bool) {
	v.k.mu.Lock()
	defer v.k.mu.Unlock()
	v.k.asked = append(v.k.asked, since)
	parts, known := v.k.touch[path]
	return func(off, _ int64) bool { return slices.Contains(parts, int(off/tree.MinPartSize)) }, known
}

func (v *knowingView) Acknowledged() {
	v.k.mu.Lock()
	defer v.k.mu.Unlock()
	v.k.acked = append(v.k.acked, v.Number())
}

func (v *knowingView) Open(path string) (tree.Reader, error) {
	r, err := v.memView.Open(path)
	return countingReader{r, v.k}, err
}

type countingReader struct {
	tree.Reader
	k *knowing
}

func (r countingReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := r.Reader.ReadAt(b, off)
	r.k.mu.Lock()
	defer r.k.mu.Unlock()
	r.k.read += int64(n)
	return n, err
}

// take returns what was seen since the last call.
func (k *knowing) take() (read int64, asked, acked []uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	read, asked, acked = k.read, k.asked, k.acked
	k.read, k.asked, k.acked = 0, nil, nil
	return read, asked, acked
}

// parts returns content of whole and begun parts, each begun by its letter.
func parts(letters string, tail int) []byte {
	b := make([]byte, (len(letters)-1)*tree.MinPartSize+tail)
	for i, c := range []byte(letters) {
		b[i*tree.MinPartSize] = c
	}
	return b
}

const whole = tree.MinPartSize

// expect checks that the newest snapshot is whole (S2) and holds data.
func (k *knowing) expect(path string, data []byte) {
	k.t.Helper()
	id := k.head().Newest.ID
	report, err := k.catalog().Verify(k.t.Context(), id)
	if err != nil || len(report.Damaged) > 0 {
		k.t.Errorf("snapshot %s is not whole: %v, %v", id, err, report.Damaged)
	}
	m, err := k.catalog().Manifest(k.t.Context(), id, "")
	if err != nil {
		k.t.Fatal(err)
	}
	want, err := tree.HashParts(k.t.Context(), bytes.NewReader(data), int64(len(data)), whole)
	if err != nil {
		k.t.Fatal(err)
	}
	for _, r := range m.Entries {
		if r.Path == path && (r.Size != int64(len(data)) || !slices.Equal(r.Parts, want)) {
			k.t.Errorf("%s was published with %d bytes, other than its %d", path, r.Size, len(data))
		}
	}
}

// S4: of a marked file only what was touched is read, once to be hashed and once to
// be sent; other parts are copied inside the store.
func TestOnlyTouchedPartsAreRead(t *testing.T) {
	for _, c := range []struct {
		name          string
		before, after []byte
		touch         []int
		read          int64
	}{
		{"one part", parts("ab", 10), parts("Xb", 10), []int{0}, 2 * whole},
		{"the last", parts("ab", 10), parts("aX", 10), []int{1}, 2 * 10},
		{"none", parts("ab", 10), parts("ab", 10), nil, 0},
		{"touched, and the same", parts("ab", 10), parts("ab", 10), []int{0}, whole},
		{"grown in the last part", parts("ab", 10), parts("ab", 20), nil, 2 * 20},
		{"grown by a part", parts("a", whole), parts("ab", 7), nil, 2 * 7},
		{"shorter", parts("ab", 20), parts("ab", 10), []int{1}, 2 * 10},
		{"shorter by a part", parts("abc", 10), parts("ab", whole), []int{2}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKnowing(t)
			k.write("f", c.before)
			base := k.snapshot()
			k.take()
			k.touch["f"] = c.touch
			k.write("f", c.after)
			res := k.snapshot()
			read, asked, acked := k.take()
			if read != c.read {
				t.Errorf("%d bytes were read, want %d", read, c.read)
			}
			if !slices.Equal(asked, []uint64{1}) || !slices.Equal(acked, []uint64{2}) {
				t.Errorf("asked for changes since %d, acknowledged %d", asked, acked)
			}
			if same := bytes.Equal(c.before, c.after); same == (res.ID != base.ID) {
				t.Errorf("published %s after %s", res.ID, base.ID)
			}
			k.expect("f", c.after)
		})
	}
}

// deafQueue is a journal that cannot be told of the nth snapshot at first.
type deafQueue struct {
	Queue
	n *int
}

func (q deafQueue) Acknowledge(p journal.Published) error {
	if *q.n--; *q.n == 0 {
		return errInjected
	}
	return q.Queue.Acknowledge(p)
}

// A view is asked about the base's cut only where the view of that cut was told, in
// this process; otherwise everything is read.
func TestTouchedIsNotAskedAboutAnotherBase(t *testing.T) {
	k := newKnowing(t)
	k.touch["f"] = nil // a lie, should anybody ask
	k.write("f", parts("ab", 10))
	k.snapshot()
	if _, asked, _ := k.take(); len(asked) > 0 {
		t.Errorf("asked for changes since %d without a base", asked)
	}
	// Another process, and then a snapshot that is published while the journal cannot
	// be told: the next attempt tells it.
	n := 2
	k.renew(deafQueue{k.j, &n})
	k.write("f", parts("Xb", 10))
	k.snapshot()
	if _, asked, acked := k.take(); len(asked) > 0 || len(acked) != 1 {
		t.Errorf("a new uploader asked for changes since %d; %d were acknowledged", asked, acked)
	}
	k.write("f", parts("XY", 10))
	k.touch["f"] = []int{1}
	if _, err := k.u.Snapshot(t.Context()); !errors.Is(err, errInjected) {
		t.Fatalf("the snapshot ended with %v", err)
	}
	if _, asked, acked := k.take(); len(asked) != 1 || len(acked) > 0 {
		t.Errorf("asked for changes since %d; %d were acknowledged", asked, acked)
	}
	k.touch["f"] = nil
	k.write("f", parts("ZY", 10))
	k.snapshot()
	if _, asked, acked := k.take(); len(asked) > 0 || len(acked) != 1 {
		t.Errorf("asked for changes since %d, though another cut's snapshot is the base; acknowledged %d", asked, acked)
	}
	k.expect("f", parts("ZY", 10))
}

// After a snapshot that failed, the next one asks about the same base again.
func TestTouchedIsAskedAgainAfterAFailure(t *testing.T) {
	k := newKnowing(t)
	k.write("f", parts("ab", 10))
	k.snapshot()
	k.take()
	k.touch["f"] = []int{0}
	k.write("f", parts("Xb", 10))
	k.store.Fail = func(op memstore.Op) error {
		if op.Kind == "put-part" {
			return errInjected
		}
		return nil
	}
	if _, err := k.u.Snapshot(t.Context()); !errors.Is(err, errInjected) {
		t.Fatalf("the snapshot ended with %v", err)
	}
	k.store.Fail = nil
	k.snapshot()
	if _, asked, acked := k.take(); !slices.Equal(asked, []uint64{1, 1}) || !slices.Equal(acked, []uint64{3}) {
		t.Errorf("asked for changes since %d, acknowledged %d", asked, acked)
	}
	k.expect("f", parts("Xb", 10))
}

// S2: where a part cannot be copied it is read all the same, so the manifest says
// what was sent even if the view was wrong.
func TestPartsThatWereNotTouchedAndMustBeSentAreHashed(t *testing.T) {
	for name, content := range map[string][2][]byte{
		"parts": {parts("ab", 10), parts("XY", 10)},
		"whole": {[]byte("abc"), []byte("aXY")},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKnowing(t)
			k.write("f", content[0])
			k.write("other", nil)
			k.snapshot()
			k.touch["f"] = []int{1} // part 0 is untouched, it says
			k.write("f", content[1])
			k.chmod("other", 0o600)
			k.store.Fail = func(op memstore.Op) error {
				if (op.Kind == "copy" || op.Kind == "copy-part") && strings.HasPrefix(op.Key, "history/") {
					return objstore.ErrUnsupported
				}
				return nil
			}
			k.snapshot()
			k.store.Fail = nil
			k.expect("f", content[1])
			if k.log.count("nothing was known to have written to has changed") != 1 {
				t.Error("nobody said that the view was wrong")
			}
		})
	}
}
