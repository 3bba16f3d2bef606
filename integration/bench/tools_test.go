//go:build bench

package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/integration/harness"
	"github.com/chromafs/chromafs/internal/testutil/versitygw"
)

// tool is a way to bring a directory to a bucket and back, driven as a user would.
type tool struct {
	name    string
	env     func(b bucketAt) []string
	prepare func(b bucketAt) []string             // before the first backup, not measured; nil: nothing
	backup  func(b bucketAt, dir string) []string // the whole of dir, whatever the bucket has
	restore func(b bucketAt, dir string) []string // to an empty dir
	update  func(b bucketAt, dir string) []string // to a dir that it restored earlier; nil: as restore
	rows    []string                              // that it can do; nil: all
	direct  bool                                  // past the wire
}

// bucketAt is a bucket of a tool's own, as the tool sees it.
type bucketAt struct {
	endpoint, name, region string
	home                   string // where the tool keeps what it likes to keep
}

// tools returns who is compared, the raw limit first.
func tools(t testing.TB) []tool {
	chromafs := func(command string, more ...string) func(bucketAt, string) []string {
		return func(b bucketAt, dir string) []string {
			args := append([]string{harness.Binary(t), command, "--log-level", "warn"}, more...)
			return append(args, "--store", "s3://"+b.name, "--s3-endpoint", b.endpoint, "--s3-region", b.region, dir)
		}
	}
	words := func(text string) func(bucketAt, string) []string {
		return func(b bucketAt, dir string) []string {
			return strings.Fields(strings.NewReplacer("DIR", dir, "BUCKET", b.name, "ENDPOINT", b.endpoint).Replace(text))
		}
	}
	aws := os.Getenv("CHROMAFS_BENCH_AWS") + " s3 sync --endpoint-url ENDPOINT --only-show-errors --delete "
	return []tool{
		rawTool("raw limit", false),
		rawTool("raw limit past the counting", true),
		{name: "chromafs", env: awsEnv, backup: chromafs("snapshot"), restore: chromafs("restore"), update: chromafs("sync")},
		{name: "rclone", env: rcloneEnv, backup: words("rclone sync DIR s3:BUCKET"), restore: words("rclone sync s3:BUCKET DIR")},
		{
			name: "restic", env: resticEnv,
			prepare: func(bucketAt) []string { return []string{"restic", "init"} },
			backup: func(_ bucketAt, dir string) []string {
				return []string{"sh", "-c", "cd " + dir + " && exec restic backup --quiet ."}
			},
			restore: words("restic restore latest --target DIR"),
		},
		{
			name: "aws s3 sync", env: awsEnv, backup: words(aws + "DIR s3://BUCKET"),
			// Without exact timestamps it takes a file that changed and kept its size for the same.
			restore: words(aws + "--exact-timestamps s3://BUCKET DIR"),
		},
	}
}

func awsEnv(b bucketAt) []string {
	return []string{"AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + secretKey, "AWS_REGION=" + b.region,
		"AWS_EC2_METADATA_DISABLED=true"}
}

func rcloneEnv(b bucketAt) []string {
	return []string{"RCLONE_CONFIG_S3_TYPE=s3", "RCLONE_CONFIG_S3_PROVIDER=Other", "RCLONE_CONFIG_S3_ENDPOINT=" + b.endpoint,
		"RCLONE_CONFIG_S3_REGION=" + b.region, "RCLONE_CONFIG_S3_ACCESS_KEY_ID=" + accessKey, "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY=" + secretKey}
}

func resticEnv(b bucketAt) []string {
	return append(awsEnv(b), "RESTIC_REPOSITORY=s3:"+b.endpoint+"/"+b.name, "RESTIC_PASSWORD=benchmark")
}

// gateway is the one server, and the wire to it.
type gateway struct {
	*versitygw.Server
	wire    *wire
	scratch string
}

// The keys of every test server.
const accessKey, secretKey = "testaccess", "testsecret-of-versitygw"

func startGateway(t testing.TB) *gateway {
	s := versitygw.Start(t)
	return &gateway{Server: s, wire: newWire(t, s.Endpoint), scratch: t.TempDir()}
}

// bucket makes an empty bucket for a tool, of a name that says whose it is.
func (g *gateway) bucket(t testing.TB, of tool) bucketAt {
	b := bucketAt{endpoint: g.wire.Endpoint, name: strings.ReplaceAll(of.name, " ", "-"), region: g.Region}
	if of.direct {
		b.endpoint = g.Endpoint
	}
	b.home = filepath.Join(g.scratch, b.name)
	for _, old := range []string{b.home, filepath.Join(g.Dir, b.name)} {
		if err := os.RemoveAll(old); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(b.home, 0o755); err != nil {
		t.Fatal(err)
	}
	g.CreateBucket(b.name)
	if of.prepare != nil {
		g.measure(t, of, b, "", of.prepare(b))
	}
	return b
}

// cost is what one command took.
type cost struct {
	wall time.Duration
	cpu  time.Duration // user and system, of the tool's processes
	peak int64         // resident bytes
	traffic
	published time.Duration // from the start until a snapshot of chromafs was; 0: none was
}

// measure runs a tool's command to its end. What writes to a disk is given the name of
// a folder there: the time that it takes until all of it is on disk is its own.
func (g *gateway) measure(t testing.TB, of tool, b bucketAt, writes string, args []string) cost {
	t.Helper()
	unix.Sync() // nobody pays for what was written before
	report := filepath.Join(b.home, "cost")
	var out bytes.Buffer
	cmd := exec.Command("/usr/bin/time", append([]string{"-q", "-o", report, "-f", "%U %S %M"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(stranger(), append(of.env(b), "HOME="+b.home, "XDG_CACHE_HOME="+filepath.Join(b.home, "cache"))...)
	start := time.Now()
	err := cmd.Run()
	if err == nil && writes != "" {
		err = syncfs(writes)
	}
	c := cost{wall: time.Since(start)}
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, &out)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var user, system, kib float64
	if _, err := fmt.Sscan(string(text), &user, &system, &kib); err != nil {
		t.Fatalf("time says %q: %v", text, err)
	}
	c.cpu, c.peak = time.Duration((user+system)*float64(time.Second)), int64(kib)<<10
	if c.traffic = g.wire.take(t); !c.swapped.IsZero() {
		c.published = c.swapped.Sub(start)
	}
	return c
}

// stranger is an environment without settings of any of the tools.
func stranger() (env []string) {
	for _, v := range harness.Environ() {
		if !strings.HasPrefix(v, "RCLONE_") && !strings.HasPrefix(v, "RESTIC_") && !strings.HasPrefix(v, "XDG_") {
			env = append(env, v)
		}
	}
	return env
}

func syncfs(folder string) error {
	f, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}
