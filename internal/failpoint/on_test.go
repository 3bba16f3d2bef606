//go:build failpoints

package failpoint

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestActionsAreCountedAndNoted(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	t.Setenv("CHROMAFS_FAILPOINTS_LOG", log)
	t.Setenv("CHROMAFS_FAILPOINTS", "a/b=error:ENOSPC*2+1;c=sleep:1ms;d/e=off")
	var got []error
	for range 4 {
		got = append(got, Hit("a/b"))
	}
	for i, want := range []error{nil, syscall.ENOSPC, syscall.ENOSPC, nil} {
		if !errors.Is(got[i], want) {
			t.Errorf("hit %d: %v, want %v", i, got[i], want)
		}
	}
	if err := Hit("not named"); err != nil {
		t.Error(err)
	}
	if !Off("d/e") || Off("a/b") || Off("c") || Off("not named") {
		t.Error("d/e, and nothing else, is to be off")
	}
	if !Off("d/e") {
		t.Error("d/e is on again")
	}
	if data, _ := os.ReadFile(log); string(data) != "failpoint a/b\nfailpoint a/b\nfailpoint d/e\n" {
		t.Errorf("log: %q", data)
	}
}

func TestParseNamesWhatItCannotRead(t *testing.T) {
	for _, bad := range []string{"x", "x=kill*many", "x=die", "x=hold:relative"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}
