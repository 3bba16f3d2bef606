package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/failpoint"
)

// pushMode is the system call that makes this kernel hand over what it caches of
// a file and waits until it was answered.
type pushMode uint8

const (
	pushNone  pushMode = iota // none: the kernel must not cache writes
	pushRange                 // sync_file_range(2) with all three flags
	pushFsync                 // fsync(2): slower, and it takes the inode's lock
)

func (m pushMode) String() string {
	return [...]string{"none", "sync_file_range", "fsync"}[m]
}

const (
	selfTestDelay = 30 * time.Millisecond // how long the probe's WRITE is held
	selfTestLimit = 10 * time.Second      // for the whole test
)

// selfTest finds out, on a throwaway mount of an empty folder in scratch, which
// call waits for a WRITE that is held. It is the only way to know: kernels differ,
// and a push that does not wait loses data without a word (F3, S1).
func selfTest(ctx context.Context, opts Options) pushMode {
	ctx, cancel := context.WithTimeoutCause(ctx, selfTestLimit, fmt.Errorf("no answer within %s", selfTestLimit))
	defer cancel()
	mode, err := probePush(ctx, scratchPath(opts.Dir), selfTestDelay)
	if err != nil {
		opts.Log.Warn("the kernel's write cache stays off: its self-test failed (writes will be slower)", "error", err)
		return pushNone
	}
	if mode == pushNone {
		opts.Log.Warn("the kernel's write cache stays off: neither sync_file_range nor fsync waits for it on this kernel (writes will be slower)")
	}
	opts.Log.Debug("self-test of the push", "push", mode.String())
	return mode
}

// CanMount finds out, on a throwaway mount of an empty folder in scratch, whether
// this process may mount at all. A caller asks before it takes anything away from
// whoever serves the same data elsewhere. The error is a *MountError.
func CanMount(dir *datadir.Dir) error {
	p := &probe{RawFileSystem: fuse.NewDefaultRawFileSystem()}
	server, point, err := p.mount(scratchPath(dir))
	if err != nil {
		return &MountError{Mountpoint: dir.Path(), Err: err}
	}
	defer os.Remove(point)
	if err := server.WaitMount(); err != nil {
		detach(point)
		return &MountError{Mountpoint: dir.Path(), Err: err}
	}
	if err := server.Unmount(); err != nil {
		detach(point)
	}
	return nil
}

func scratchPath(dir *datadir.Dir) string {
	return filepath.Join(dir.Path(), datadir.StateName, datadir.ScratchName)
}

const selftestPrefix = "selftest-"

// ClearDeadSelftests takes away the mounts that daemons left which were killed in
// their self-test: nothing below scratch could be removed under them.
func ClearDeadSelftests(dir *datadir.Dir) error {
	points, err := filepath.Glob(filepath.Join(scratchPath(dir), selftestPrefix+"*"))
	for _, point := range points {
		err = errors.Join(err, ClearDeadMount(point))
	}
	return err
}

// mount mounts the probe on a new folder below scratch and serves it.
func (p *probe) mount(scratch string) (server *fuse.Server, point string, err error) {
	if point, err = os.MkdirTemp(scratch, selftestPrefix); err != nil {
		return nil, "", err
	}
	server, err = fuse.NewServer(p, point, &fuse.MountOptions{
		DirectMount: os.Geteuid() == 0, FsName: "chromafs-selftest", Name: "chromafs",
		ExtraCapabilities: fuse.CAP_WRITEBACK_CACHE, DisableXAttrs: true, MaxBackground: 64,
	})
	if err != nil {
		os.Remove(point)
		return nil, "", err
	}
	go server.Serve()
	return server, point, nil
}

// probePush mounts a probe below the folder scratch and tries the calls on it.
func probePush(ctx context.Context, scratch string, delay time.Duration) (mode pushMode, err error) {
	p := &probe{RawFileSystem: fuse.NewDefaultRawFileSystem(), delay: delay}
	server, point, err := p.mount(scratch)
	if err != nil {
		return pushNone, fmt.Errorf("self-test: mount: %w", err)
	}
	defer os.Remove(point)
	t, err := startThread()
	if err != nil {
		detach(point)
		return pushNone, fmt.Errorf("self-test: %w", err)
	}
	type answer struct {
		mode pushMode
		err  error
	}
	result := make(chan answer, 1)
	t.jobs <- func() {
		mode, err := p.try(filepath.Join(point, probeName))
		result <- answer{mode, err}
	}
	t.stop()
	select {
	case a := <-result:
		mode, err = a.mode, a.err
	case <-ctx.Done():
		mode, err = pushNone, fmt.Errorf("self-test: %w", context.Cause(ctx))
	}
	if uerr := server.Unmount(); uerr != nil {
		detach(point)
	}
	return mode, err
}

// detach takes a mount out of the way that something still uses.
func detach(point string) {
	if unix.Unmount(point, unix.MNT_FORCE|unix.MNT_DETACH) != nil {
		_ = exec.Command("fusermount3", "-uz", point).Run() // the last means: what stays is an empty folder's mount
	}
}

const (
	probeName = "probe"
	probeID   = 2
)

// probe is a file system of one file whose WRITEs are answered late.
type probe struct {
	fuse.RawFileSystem
	delay    time.Duration
	started  atomic.Int64 // WRITEs that arrived
	answered atomic.Int64 // WRITEs that were held and are about to be answered
}

// try writes to the probe and reports the first call that waited for the WRITE.
// It runs on a thread of its own: it waits on this process's own mount.
func (p *probe) try(name string) (pushMode, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return pushNone, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	for _, mode := range []pushMode{pushRange, pushFsync} {
		before := p.answered.Load()
		if _, err := unix.Pwrite(fd, make([]byte, 4096), 0); err != nil {
			return pushNone, &os.PathError{Op: "write", Path: name, Err: err}
		}
		if p.answered.Load() != before {
			return pushNone, fmt.Errorf("self-test: the kernel does not cache writes")
		}
		if err := mode.sync(fd); err != nil {
			return pushNone, &os.PathError{Op: mode.String(), Path: name, Err: err}
		}
		if p.answered.Load() > before {
			return mode, nil
		}
		for p.answered.Load() != p.started.Load() || p.answered.Load() == before {
			unix.Nanosleep(&unix.Timespec{Nsec: int64(time.Millisecond)}, nil)
		}
	}
	return pushNone, nil
}

// sync makes the kernel hand over the pages of fd by the call that m names.
func (m pushMode) sync(fd int) error {
	for {
		var err error
		if m == pushFsync {
			err = unix.Fsync(fd)
		} else {
			err = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
		}
		if err != unix.EINTR {
			return err
		}
	}
}

func (p *probe) attr(id uint64, out *fuse.Attr) {
	out.Ino, out.Nlink, out.Mode, out.Size = id, 1, unix.S_IFREG|0o600, 4096
	if id == fuse.FUSE_ROOT_ID {
		out.Nlink, out.Mode, out.Size = 2, unix.S_IFDIR|0o700, 0
	}
	out.Owner = *fuse.CurrentOwner()
}

// Lookup finds the one file.
func (p *probe) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != probeName {
		return fuse.ENOENT
	}
	out.NodeId = probeID
	p.attr(probeID, &out.Attr)
	return fuse.OK
}

// GetAttr answers for the root and the file.
func (p *probe) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	p.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

// SetAttr lets the kernel write times back.
func (p *probe) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	p.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

// Write answers late.
func (p *probe) Write(_ <-chan struct{}, _ *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	p.started.Add(1)
	time.Sleep(p.delay)
	_ = failpoint.Hit("fusefs/selftest-write")
	p.answered.Add(1)
	return uint32(len(data)), fuse.OK
}

// Fsync has nothing to do.
func (p *probe) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// Flush has nothing to do.
func (p *probe) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }
