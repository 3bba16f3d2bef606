package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// A mountpoint inside DIR is refused whichever way it is named, before a folder is
// made there that would be data.
func TestMountpointInsideDir(t *testing.T) {
	dir, link := t.TempDir(), filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, p := range []place{
		{dir: dir, mountpoint: dir + "/mp"},
		{dir: link, mountpoint: dir + "/mp"},
		{dir: dir, mountpoint: link + "/a/mp"},
	} {
		if err := p.prepare(); exitcode.Of(err) != exitcode.Usage {
			t.Errorf("%s at %s: %v", p.dir, p.mountpoint, err)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("DIR holds %v, %v", names, err)
	}
}
