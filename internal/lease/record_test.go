package lease

import (
	"reflect"
	"testing"
)

// A record survives the store, and whatever else is in one is refused or kept.
func FuzzDecode(f *testing.F) {
	whole, err := Encode(Record{Nonce: "n", State: Yielding, Holder: Party{"w", "d", "h"}, Epoch: 7, Current: "c",
		Request: &Request{Party: Party{"w2", "d2", "h2"}, Nonce: "q", Patience: patience}, Answer: "q"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(fixture))
	f.Add([]byte(`{"format": 1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Encode(r)
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		if back, err := Decode(again); err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("%+v became %+v (%v)", r, back, err)
		}
	})
}

// fixture is a lease as format 1 was first written.
const fixture = `{
  "format": 1,
  "nonce": "00112233445566778899aabbccddeeff",
  "state": "yielding",
  "holder": {"writer": "w", "dir": "d", "host": "h"},
  "epoch": 7,
  "current": "20261125T020000.000Z-0a1b",
  "request": {"writer": "w2", "dir": "d2", "host": "h2", "nonce": "q", "patience_ns": 90000000000},
  "answer": "q"
}`

func TestFormat1(t *testing.T) {
	r, err := Decode([]byte(fixture))
	want := Record{Format: 1, Nonce: "00112233445566778899aabbccddeeff", State: Yielding, Holder: Party{"w", "d", "h"}, Epoch: 7,
		Current: "20261125T020000.000Z-0a1b", Request: &Request{Party{"w2", "d2", "h2"}, "q", patience}, Answer: "q"}
	if err != nil || !reflect.DeepEqual(r, want) {
		t.Errorf("%+v, %v", r, err)
	}
}
