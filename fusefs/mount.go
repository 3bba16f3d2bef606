package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/mountinfo"
)

// Recorder is told of every path before what it names changes.
type Recorder interface {
	// Mark makes it durable that paths differ from the last snapshot, with the
	// number of the last cut. A path that is a folder stands for all below it,
	// "." for everything. It may be called concurrently, and again for the same
	// path. After an error nothing counts as marked.
	Mark(cut uint64, paths ...string) error
}

// Options says what to serve, where and how. Dir, Mountpoint and Recorder are
// required.
type Options struct {
	Dir            *datadir.Dir
	Mountpoint     string
	Recorder       Recorder
	AllowOther     bool          // users other than the daemon's may use the mount
	FirstCut       uint64        // number that marks carry until the first cut
	Key            string        // names DIR in the list of mounts; Dir.Key() if empty
	QuiesceTimeout time.Duration // how long a cut waits for databases to come to rest
	ScratchLimit   ScratchLimit  // of what is saved while a view is read
	Log            *slog.Logger
	Now            func() time.Time

	forcePush pushMode // tests only: instead of what the self-test finds
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.QuiesceTimeout == 0 {
		o.QuiesceTimeout = 5 * time.Second
	}
	if o.ScratchLimit == (ScratchLimit{}) {
		o.ScratchLimit.Percent = defaultScratchPercent
	}
	if o.Key == "" {
		o.Key = o.Dir.Key()
	}
	return o
}

const (
	// maxWrite is the size of the largest request. Each reader of requests keeps a
	// buffer of that size, so it is no larger than pays: a file is written as fast with
	// requests of 1 MiB (measured).
	maxWrite = 256 << 10
	// maxInflight bounds the buffers of all requests that are being read or carried out.
	maxInflight = 16 << 20
	// maxBackground is how many written-back or read-ahead requests may be under
	// way. The kernel's 12 would let a few slow ones hold up a push.
	maxBackground = 256
)

// mountOptions are those of the real mount.
func (s *fsys) mountOptions() *fuse.MountOptions {
	o := &fuse.MountOptions{
		FsName:        mountinfo.SourcePrefix + s.opts.Key,
		Name:          datadir.StateName[1:],
		AllowOther:    s.opts.AllowOther,
		Options:       []string{"default_permissions"},
		DirectMount:   s.creds.uid == 0,
		MaxWrite:      maxWrite,
		MaxBackground: maxBackground,

		MaxInflightRequestBytes: maxInflight,
		// Without an answer of ENOSYS the kernel asks for security.capability before
		// every write.
		DisableXAttrs: true,
		// All lockers are processes of this host, so the kernel's own tables of
		// POSIX, OFD and flock locks are right, and cost no request.
		EnableLocks: false,
		// What is cached goes stale through the kernel only.
		ExplicitDataCacheControl: true,
		EnableSymlinkCaching:     true,
		// Passthrough would make the daemon blind to writes.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		ExtraCapabilities:    fuse.CAP_READDIRPLUS_AUTO,
		Logger:               slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	if s.writeback {
		o.ExtraCapabilities |= fuse.CAP_WRITEBACK_CACHE
	}
	return o
}

// FS is a mounted directory.
type FS struct {
	fsys       *fsys
	mountpoint string
	done       chan struct{}
}

// Mount shows opts.Dir at opts.Mountpoint and returns when the mount answers. It
// is served until it is unmounted, whoever does that.
func Mount(ctx context.Context, opts Options) (*FS, error) {
	opts = opts.withDefaults()
	mountpoint, err := checkMountpoint(opts.Dir.Root(), opts.Mountpoint)
	if err != nil {
		return nil, err
	}
	opts.Mountpoint = mountpoint
	if err := raiseFileLimit(); err != nil {
		opts.Log.Warn("the limit of open files stays as it is", "error", err)
	}
	s, err := newFsys(opts)
	if err != nil {
		return nil, err
	}
	if s.pushMode = opts.forcePush; s.pushMode == pushNone {
		s.pushMode = selfTest(ctx, opts)
	}
	s.writeback = s.pushMode != pushNone
	server, err := fuse.NewServer(s, mountpoint, s.mountOptions())
	if err != nil {
		s.close()
		return nil, &MountError{Mountpoint: mountpoint, Err: err}
	}
	s.server = server
	f := &FS{fsys: s, mountpoint: mountpoint, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		server.Serve()
		s.close()
	}()
	if err := errors.Join(server.WaitMount(), s.push.attach()); err != nil {
		return nil, &MountError{Mountpoint: mountpoint, Err: errors.Join(err, f.Unmount(true))}
	}
	opts.Log.Info("mounted", "dir", opts.Dir.Path(), "mountpoint", mountpoint, "writeback", s.writeback)
	return f, nil
}

// checkMountpoint returns the mountpoint as an absolute path. A mount inside the
// directory that it shows would contain itself; on top of it is fine.
func checkMountpoint(root *os.File, mountpoint string) (string, error) {
	abs, err := filepath.Abs(mountpoint)
	if err != nil {
		return "", &MountError{Mountpoint: mountpoint, Err: err}
	}
	var rootStat, st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &rootStat); err != nil {
		return "", &os.PathError{Op: "stat", Path: root.Name(), Err: err}
	}
	if isDead(abs) {
		return "", &MountError{Mountpoint: abs, Err: unix.ENOTCONN}
	}
	fd, err := unix.Open(abs, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &MountError{Mountpoint: abs, Err: err}
	}
	defer func() { unix.Close(fd) }()
	for first := true; ; first = false {
		here := keyOf(&st)
		if err := unix.Fstat(fd, &st); err != nil {
			return "", &MountError{Mountpoint: abs, Err: err}
		}
		switch {
		case first && st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return "", &MountError{Mountpoint: abs, Err: ErrNotDirectory}
		case !first && keyOf(&st) == here:
			return abs, nil // the top
		case keyOf(&st) == keyOf(&rootStat):
			if first {
				return abs, nil
			}
			return "", &MountError{Mountpoint: abs, Err: ErrInsideItself}
		}
		up, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", &MountError{Mountpoint: abs, Err: err}
		}
		unix.Close(fd)
		fd = up
	}
}

// raiseFileLimit lifts the soft limit of descriptors to the hard one: every known
// inode has one.
func raiseFileLimit() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	if limit.Cur >= limit.Max {
		return nil
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise the limit of open files to %d: %w", limit.Max, err)
	}
	return nil
}

// close gives back what the file system holds, after its last request.
func (s *fsys) close() {
	s.closePush()
	s.undo.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, h := range s.files {
		unix.Close(h.fd)
		delete(s.files, id)
	}
	for id, h := range s.folders {
		unix.Close(h.fd)
		delete(s.folders, id)
	}
	for id, n := range s.nodes {
		unix.Close(n.fd)
		delete(s.nodes, id)
	}
	clear(s.inodes)
}

// Done is closed when the mount is gone and its last request was answered.
func (f *FS) Done() <-chan struct{} { return f.done }

// LastMutation is when the backing directory changed last through this mount; the
// zero time if it did not.
func (f *FS) LastMutation() time.Time {
	if ns := f.fsys.lastMutation.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

// Info is what status shows of a mount.
type Info struct {
	Mountpoint   string    `json:"mountpoint"`
	Writeback    bool      `json:"writeback"` // the kernel caches writes
	AllowOther   bool      `json:"allow_other"`
	Inodes       int       `json:"inodes"` // known to the kernel
	OpenFiles    int       `json:"open_files"`
	OpenForWrite int       `json:"open_for_write"`
	Cut          uint64    `json:"cut"` // number of the last cut
	LastMutation time.Time `json:"last_mutation,omitzero"`
}

// Info describes the mount as it is now.
func (f *FS) Info() Info {
	s := f.fsys
	s.mu.RLock()
	defer s.mu.RUnlock()
	info := Info{
		Mountpoint: f.mountpoint, Writeback: s.writeback, AllowOther: s.opts.AllowOther,
		Inodes: len(s.nodes), OpenFiles: len(s.files), Cut: s.cutNumber.Load(), LastMutation: f.LastMutation(),
	}
	for _, h := range s.files {
		if h.writable {
			info.OpenForWrite++
		}
	}
	return info
}
