package memstore_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/memstore"
	"github.com/chromafs/chromafs/internal/objstore/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) objstore.Store { return memstore.New() })
}

// TestFail: before, nothing has happened; after, the effect is there though the
// answer is an error.
func TestFail(t *testing.T) {
	down := errors.New("down")
	for _, after := range []bool{false, true} {
		s := memstore.New()
		var seen []memstore.Op
		s.Fail = func(op memstore.Op) error {
			seen = append(seen, op)
			if op.N == 0 && op.After == after {
				return down
			}
			return nil
		}
		_, err := s.Put(t.Context(), "k", strings.NewReader("x"), 1, objstore.PutOptions{IfAbsent: true})
		if !errors.Is(err, down) || !errors.Is(err, objstore.ErrUnavailable) {
			t.Errorf("after=%t: put: %v", after, err)
		}
		_, err = s.Put(t.Context(), "k", strings.NewReader("x"), 1, objstore.PutOptions{IfAbsent: true})
		if got := errors.Is(err, objstore.ErrPrecondition); got != after {
			t.Errorf("after=%t: the second put: %v", after, err)
		}
		if last := seen[len(seen)-1]; last.N != 1 || last.Kind != "put" || last.Key != "k" {
			t.Errorf("after=%t: the last operation seen is %+v", after, last)
		}
	}
}

func TestFailKeepsKind(t *testing.T) {
	s := memstore.New()
	s.Fail = func(memstore.Op) error { return objstore.ErrRefused }
	_, _, err := s.Get(t.Context(), "k", objstore.GetOptions{})
	if objstore.KindOf(err) != objstore.ErrRefused {
		t.Errorf("get: %v", err)
	}
}
