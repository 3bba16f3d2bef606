//go:build bench

package bench

import (
	"crypto/rand"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/integration/harness"
)

// target is a place where an application can put its files.
type target struct {
	name string
	// start makes a fresh, empty one. check is called while the load runs.
	start func(t testing.TB) place
}

// place is a target that is up.
type place struct {
	path  string
	check func() // fails the run if it does not measure what its name says
	stop  func()
}

func targets() []target {
	return []target{
		{"bare disk", startBare},
		{"chromafs", func(t testing.TB) place { return startChromafs(t, harness.NewFileStore(t)) }},
		{"chromafs while uploading", startUploading},
		{"bindfs", func(t testing.TB) place { return startFuse(t, "bindfs") }},
		{"mergerfs tuned", func(t testing.TB) place {
			return startFuse(t, "mergerfs", "-o", "cache.files=auto-full,cache.writeback=true,cache.attr=3600,"+
				"cache.entry=3600,cache.negative_entry=3600,xattr=nosys")
		}},
	}
}

func startBare(t testing.TB) place {
	return place{path: t.TempDir(), check: func() {}, stop: func() {}}
}

// quiet keeps chromafs from taking snapshots by itself.
var quiet = []string{"--interval", "240h", "--settle", "24h"}

func startChromafs(t testing.TB, store *harness.Store) place {
	folder := t.TempDir()
	m := harness.Start(t, harness.Options{Dir: filepath.Join(folder, "disk"), Point: filepath.Join(folder, "mount"), Store: store, Flags: quiet})
	return place{path: filepath.Join(folder, "mount"), check: func() {}, stop: func() { m.Unmount() }}
}

const (
	ballast    = 1 << 30  // bytes that the first snapshot has to send
	uploadRate = 20 << 20 // bytes per second that the network takes: 160 Mbit/s
)

// startUploading is chromafs in the middle of its first snapshot, to an S3 server
// behind a network of uploadRate.
func startUploading(t testing.TB) place {
	folder := t.TempDir()
	dir, point := filepath.Join(folder, "disk"), filepath.Join(folder, "mount")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	writeRandom(t, filepath.Join(dir, "ballast"), ballast)
	m := harness.Start(t, harness.Options{Dir: dir, Point: point, Store: slowly(t, harness.NewS3Store(t)), Flags: quiet})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.TrySnapshot() // which the end of the mount cuts off
	}()
	harness.Eventually(t, time.Minute, "a snapshot is under way", func() bool {
		busy, ok := m.Status()["snapshotting"].(bool)
		return ok && busy
	})
	return place{
		path: point,
		check: func() {
			select {
			case <-ended:
				t.Fatal("the snapshot ended before the load did: this measured something else")
			default:
			}
		},
		stop: func() {
			m.Kill()
			<-ended
			if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func writeRandom(t testing.TB, name string, size int64) {
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(f, rand.Reader, size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// slowly returns s behind a connection that takes uploadRate bytes per second.
func slowly(t testing.TB, s *harness.Store) *harness.Store {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	tokens := make(chan int)
	const chunk = 64 << 10
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() {
		tick := time.NewTicker(time.Second * chunk / uploadRate)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
			select {
			case tokens <- chunk:
			case <-stop:
				return
			}
		}
	}()
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", strings.TrimPrefix(s.Endpoint, "http://"))
			if err != nil {
				from.Close()
				continue
			}
			go func() {
				io.Copy(from, to)
				from.Close()
			}()
			go func() {
				defer to.Close()
				buf := make([]byte, chunk)
				for {
					n, err := from.Read(buf)
					if n > 4096 { // small ones are heads and tails of requests
						select {
						case <-tokens:
						case <-stop:
							return
						}
					}
					if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
						return
					}
				}
			}()
		}
	}()
	seen := *s
	seen.Endpoint = "http://" + l.Addr().String()
	return &seen
}

// startFuse mounts an empty folder with another FUSE file system.
func startFuse(t testing.TB, command string, args ...string) place {
	folder := t.TempDir()
	dir, point := filepath.Join(folder, "disk"), filepath.Join(folder, "mount")
	for _, d := range []string{dir, point} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	unmount := func() {
		if err := unix.Unmount(point, 0); err != nil && err != unix.EINVAL {
			unix.Unmount(point, unix.MNT_DETACH)
		}
	}
	t.Cleanup(unmount)
	if out, err := exec.Command(command, append(args, dir, point)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	return place{path: point, check: func() {}, stop: unmount}
}
