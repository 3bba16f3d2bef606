package mountinfo

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	const text = `22 1 0:20 / /proc rw,nosuid shared:5 - proc proc rw
97 25 0:44 / /srv/a\040b\134c rw,relatime shared:60 master:1 - fuse.chromafs chromafs:66306-1234 rw,user_id=0
98 25 0:45 / /mnt rw - fuse.sshfs chromafs:1-2 rw
`
	got, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Mount{
		{22, "/proc", "proc", "proc"},
		{97, `/srv/a b\c`, "fuse.chromafs", "chromafs:66306-1234"},
		{98, "/mnt", "fuse.sshfs", "chromafs:1-2"},
	}
	if !slices.Equal(got, want) {
		t.Fatalf("got %+v\nwant %+v", got, want)
	}
	keys := []string{"", "66306-1234", ""}
	for i, m := range got {
		if key, ok := m.Key(); key != keys[i] || ok != (key != "") {
			t.Errorf("%s: key %q, %v", m.Mountpoint, key, ok)
		}
	}
}

func TestParseRefusesWhatIsNoMount(t *testing.T) {
	for _, line := range []string{"x", "1 2 3", "a 1 0:20 / /proc rw - proc proc rw", "22 1 0:20 / /proc rw proc proc rw"} {
		if got, err := Parse(strings.NewReader(line + "\n")); err == nil {
			t.Errorf("%q was read as %+v", line, got)
		}
	}
}

func TestOf(t *testing.T) {
	m, err := Of("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if m.Mountpoint != "/proc" || m.Type != "proc" {
		t.Errorf("a file of /proc lies on %+v", m)
	}
	if _, err := Of("/proc/no/such/file"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("97 25 0:44 / /srv/a\\040b rw shared:60 - fuse.chromafs chromafs:1-2 rw\n")
	f.Fuzz(func(t *testing.T, text string) {
		mounts, err := Parse(strings.NewReader(text))
		if err != nil && mounts != nil {
			t.Errorf("mounts beside the error %v", err)
		}
	})
}
