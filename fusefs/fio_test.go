package fusefs

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// fioJobs write 48 MiB, some of it many times, and read it back by its checksums:
// with write(2) and through maps, with and without fsync, several at once.
const fioJobs = `
[global]
size=8m
verify=crc32c
verify_fatal=1
group_reporting=1

[write]
ioengine=psync
rw=randwrite
bs=4k
fsync=256
numjobs=2

[odd]
ioengine=psync
rw=randwrite
bsrange=1k-96k
bs_unaligned=1
fdatasync=100

[readwrite]
ioengine=psync
rw=randrw
bs=16k
fsync=100

[map]
ioengine=mmap
rw=randwrite
bs=4k
numjobs=2
`

// fio runs the jobs in a directory and returns why they failed.
func fio(dir string, args ...string) string {
	cmd := exec.Command("fio", append(args, "--directory="+dir, "--aux-path=/tmp", "-")...)
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(fioJobs)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return ""
}

// F1: what fio writes, fio finds again, on the mount and then in the backing
// directory; and views that are cut meanwhile show the same twice.
func TestFio(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Fatal("needs fio: scripts/test installs it")
	}
	fx := mounted(t)
	ended := make(chan string, 1)
	go func() { ended <- fio(fx.mnt) }()
	for cuts := 0; ; cuts++ {
		select {
		case failed := <-ended:
			if failed != "" {
				t.Fatalf("on the mount: %s", failed)
			}
			eventually(t, "fio's files are released", func() bool { return fx.fs.Unmount(false) == nil })
			if failed := fio(fx.dir, "--verify_only"); failed != "" {
				t.Errorf("in the backing directory: %s", failed)
			}
			t.Logf("%+v", fx.fs.CutStats())
			return
		case <-time.After(100 * time.Millisecond):
		}
		cutOnce(t, fx, func(v *View) {
			before := map[string]string{}
			for range 2 {
				for _, e := range v.Entries() {
					sum := digest(readEntry(t, v, e))
					if old, ok := before[e.Path]; ok && old != sum {
						t.Errorf("cut %d: %s changed", v.Number(), e.Path)
					}
					before[e.Path] = sum
				}
			}
		})
	}
}
