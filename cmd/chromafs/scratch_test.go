package main

import (
	"strings"
	"testing"

	"github.com/chromafs/chromafs/fusefs"
	"github.com/chromafs/chromafs/internal/exitcode"
)

func TestScratchLimitFlag(t *testing.T) {
	for text, want := range map[string]fusefs.ScratchLimit{
		"10%": {Percent: 10}, "0.5%": {Percent: 0.5}, "100%": {Percent: 100},
		"1": {Bytes: 1}, "4096B": {Bytes: 4096}, "1K": {Bytes: 1 << 10}, "500M": {Bytes: 500 << 20}, "2G": {Bytes: 2 << 30}, "1T": {Bytes: 1 << 40},
		"1KiB": {Bytes: 1 << 10}, "3MiB": {Bytes: 3 << 20}, "1.5GiB": {Bytes: 3 << 29}, "7TiB": {Bytes: 7 << 40},
	} {
		if got, err := parseScratchLimit(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "%", "0%", "-1%", "101%", "NaN%", "0", "-5M", "10X", "1Ki", "1KK", "KiB", "M", "1 G", "1e30", "8388608T", "Inf", "NaN", "seven"} {
		got, err := parseScratchLimit(text)
		if exitcode.Of(err) != exitcode.Usage || !strings.Contains(err.Error(), "--scratch-limit \""+text+"\": ") {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, r := range []result{
		execCLI(t, "mount", "--store", "file:///nowhere", "--scratch-limit", "10X", t.TempDir(), t.TempDir()),
		execIn(t, map[string]string{"CHROMAFS_SCRATCH_LIMIT": "10X"}, "", "mount", "--store", "file:///nowhere", t.TempDir(), t.TempDir()),
	} {
		if r.code != exitcode.Usage || !strings.Contains(r.stderr, `--scratch-limit "10X": neither a size`) {
			t.Errorf("%+v", r)
		}
	}
}
