package fusefs

import (
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// posixSkips are cases of go-fuse's suite that do not hold here, and why.
func posixSkips() map[string]string {
	return map[string]string{
		"FcntlFlockLocksFile": "asks that two POSIX locks of one process conflict, which they never do; TestLocks has two processes",
		"XAttr":               "extended attributes are an exception of F1 (docs/semantics.md)",
		"XAttrLarge":          "extended attributes are an exception of F1 (docs/semantics.md)",
	}
}

// F1, against go-fuse's suite.
func TestPosix(t *testing.T) {
	skips := posixSkips()
	names := []string{}
	for name := range posixtest.All {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			if why := skips[name]; why != "" {
				t.Skip(why)
			}
			fx := mounted(t)
			posixtest.All[name](t, fx.mnt)
		})
	}
}
