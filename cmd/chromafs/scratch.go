package main

import (
	"math"
	"strconv"
	"strings"

	"github.com/chromafs/chromafs/fusefs"
)

// parseScratchLimit reads the value of --scratch-limit.
func parseScratchLimit(text string) (fusefs.ScratchLimit, error) {
	refuse := func(what string) (fusefs.ScratchLimit, error) {
		return fusefs.ScratchLimit{}, usageError("--scratch-limit %q: %s", text, what)
	}
	if share, ok := strings.CutSuffix(text, "%"); ok {
		percent, err := strconv.ParseFloat(share, 64)
		if err != nil || !(percent > 0 && percent <= 100) {
			return refuse("a share must be more than 0% and at most 100%")
		}
		return fusefs.ScratchLimit{Percent: percent}, nil
	}
	n, ok := parseSize(text)
	switch {
	case !ok:
		return refuse("neither a size (" + sizeForms + ") nor a share (10%)")
	case n < 1:
		return refuse("must be at least 1 byte, and less than 8 EiB")
	}
	return fusefs.ScratchLimit{Bytes: n}, nil
}

const sizeForms = "a number of bytes, or one with K, M, G, T, KiB, MiB, GiB or TiB"

// parseSize reads a number of bytes; -1 is one that is negative or too big. ok is false
// for what is none.
func parseSize(text string) (n int64, ok bool) {
	number := strings.TrimRight(text, "KMGTiB")
	unit, ok := sizeUnits[text[len(number):]]
	value, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil {
		return 0, false
	}
	if !(value*unit >= 0 && value*unit < math.MaxInt64) {
		return -1, true
	}
	return int64(value * unit), true
}

// sizeUnits are powers of 1024, whichever way they are written.
var sizeUnits = map[string]float64{
	"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}
