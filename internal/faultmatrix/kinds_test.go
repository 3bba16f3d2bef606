package faultmatrix

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/s3"
	"github.com/chromafs/chromafs/internal/reconcile"
	"github.com/chromafs/chromafs/internal/testutil/faultproxy"
)

// kind is one way in which a request goes wrong.
type kind struct {
	name     string
	fault    func(at func(n int) int) faultproxy.Fault
	suits    func(faultproxy.Request) bool // nil: every request
	passing  bool                          // what fails is ErrUnavailable: asking again helps
	works    bool                          // it is no fault at all
	timeouts s3.Timeouts                   // of the run with the fault; zero: long
}

func always(f faultproxy.Fault) func(func(int) int) faultproxy.Fault {
	return func(func(int) int) faultproxy.Fault { return f }
}

// A connection on which nothing moves is given up after these. Slow answers move
// more often than that, and take longer.
var (
	patient s3.Timeouts // minutes
	short   = s3.Timeouts{Idle: 500 * time.Millisecond, Header: 500 * time.Millisecond}
	slow    = s3.Timeouts{Idle: 700 * time.Millisecond, Header: 10 * time.Second}
)

const dripPieces, dripPause = 9, 100 * time.Millisecond

var kinds = []kind{
	{name: "refused", fault: always(faultproxy.Refuse(20 * time.Millisecond)), passing: true},
	{name: "reset in the request", fault: always(faultproxy.ResetRequest), passing: true},
	{name: "reset in the answer", fault: always(faultproxy.ResetAnswer), passing: true},
	{name: "answer lost", fault: always(faultproxy.LoseAnswer), passing: true},
	{name: "stall", fault: always(faultproxy.Stall), passing: true, timeouts: short},
	{name: "stall in the answer", fault: always(faultproxy.StallAnswer), suits: answered, passing: true, timeouts: short},
	{name: "500", fault: always(faultproxy.InternalError), passing: true},
	{name: "503", fault: always(faultproxy.SlowDown), passing: true},
	{name: "answer cut off", fault: always(faultproxy.CutAnswer), suits: answered, passing: true},
	{name: "answer too short", fault: always(faultproxy.ShortenAnswer), suits: answered},
	{name: "bit flipped in the answer", fault: faultproxy.FlipAnswer, suits: object},
	{name: "bit flipped in the request", fault: faultproxy.FlipRequest, suits: sent},
	{name: "error in a 200", fault: always(faultproxy.ErrorInSuccess), suits: writes, passing: true},
	{name: "slow", fault: always(faultproxy.Drip(dripPieces, dripPause)), works: true, timeouts: slow},
}

// answered: the answer has a body. A PUT is answered with one if it is a copy.
func answered(r faultproxy.Request) bool {
	return r.Method != http.MethodDelete && (r.Method != http.MethodPut || r.Source != "")
}

// object: what is answered is an object's content. No sum guards the XML of listings.
func object(r faultproxy.Request) bool {
	return r.Method == http.MethodGet && !strings.Contains(r.URI, "list-type=") && !strings.Contains(r.URI, "uploads")
}

func sent(r faultproxy.Request) bool { return r.Size > 0 }
func writes(r faultproxy.Request) bool {
	return r.Method == http.MethodPut || r.Method == http.MethodPost
}

// one is a case: request n, counted from 1, goes wrong in this way.
type one struct {
	n    int
	what faultproxy.Request // request n of the dry run; of those that run at once another may be the nth
	kind
}

// String names a case, without slashes, so that -run can choose it.
func (c one) String() string {
	what, query, _ := strings.Cut(c.what.URI, "?")
	if _, key, ok := strings.Cut(what, "/"+prefix+"/"); ok {
		what = strings.ReplaceAll(key, "/", ":")
	} else {
		what = "bucket"
	}
	for _, word := range []string{"partNumber", "uploadId", "uploads", "delete", "list-type"} {
		if strings.Contains(query, word) {
			what += " " + word
			break
		}
	}
	if c.what.Source != "" {
		what += " copy"
	}
	return fmt.Sprintf("%02d %s %s, %s", c.n, c.what.Method, what, c.name)
}

// stride is which part of the matrix is tried by default. It is below the number of
// kinds that suit every request, so that each request and each kind is among them.
const stride = 5

// cases are those of the matrix that suit the requests of a dry run: all, or each
// stride-th.
func cases(t *testing.T, requests []faultproxy.Request, rnd *rand.Rand) []one {
	t.Helper()
	step := stride
	if os.Getenv("CHROMAFS_TEST_FAULTS") == "all" {
		step = 1
	}
	var chosen []one
	start := rnd.IntN(step)
	for k, kind := range kinds {
		var suit []one
		for i, r := range requests {
			if kind.suits == nil || kind.suits(r) {
				suit = append(suit, one{i + 1, r, kind})
			}
		}
		first := min((start+k)%step, len(suit)-1)
		for i := first; i >= 0 && i < len(suit); i += step {
			chosen = append(chosen, suit[i])
		}
	}
	t.Logf("%d cases", len(chosen))
	rnd.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
	return chosen
}

// seeded returns a source of randomness, and says how to repeat it.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CHROMAFS_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("CHROMAFS_TEST_SEED: %v", err)
		}
	}
	t.Logf("CHROMAFS_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// spread has workers take cases until there are none left. Each makes its worlds;
// after a case that failed it makes a new one.
func spread[W any](t *testing.T, workers int, all []one, rnd *rand.Rand, make func(t *testing.T) W, run func(t *testing.T, w W, c one, rnd *rand.Rand)) {
	var mu sync.Mutex // guards all, rnd
	next := func() (one, *rand.Rand, bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(all) == 0 {
			return one{}, nil, false
		}
		c := all[0]
		all = all[1:]
		return c, rand.New(rand.NewPCG(rnd.Uint64(), 0)), true
	}
	var running sync.WaitGroup // not t.Parallel: they mostly wait, for the network and the disk
	for range workers {
		running.Go(func() {
			var world W
			fresh := true
			for c, rnd, ok := next(); ok; c, rnd, ok = next() {
				if fresh && !t.Run("a world", func(*testing.T) { world = make(t) }) {
					return
				}
				fresh = !t.Run(c.String(), func(t *testing.T) { run(t, world, c, rnd) })
			}
		})
	}
	running.Wait()
}

// checkKind fails the test where an error is of another kind than the fault.
func (c one) checkKind(t *testing.T, err error) {
	t.Helper()
	if err != nil && c.passing && !errors.Is(err, objstore.ErrUnavailable) {
		t.Errorf("what passes by itself is reported as %v: %v", objstore.KindOf(err), err)
	}
}

// checkMount does so for what a mount says.
func (c one) checkMount(t *testing.T, err error) {
	t.Helper()
	var refusal *reconcile.Refusal
	if errors.As(err, &refusal) && refusal.Row == reconcile.RowUnavailable {
		return
	}
	c.checkKind(t, err)
}
