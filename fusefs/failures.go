package fusefs

import (
	"math"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	maxOffset   = math.MaxInt64
	maxFailures = 64 // ranges remembered of one file; beyond, neighbours are joined
)

// failures are the ranges of a file that the backing directory refused to write
// although the kernel had told the application that they are written. The kernel
// reports that once, to whoever asks first; a database must not learn of it by
// chance. So it stays until the range was written again or truncated away, or
// nobody has the file open any more.
type failures struct{ ranges []failedRange }

// failedRange is [off, end), sorted by off, not overlapping.
type failedRange struct {
	off, end int64
	errno    syscall.Errno
}

func (f *failures) add(off, end int64, errno syscall.Errno) {
	f.remove(off, end)
	f.ranges = append(f.ranges, failedRange{off, end, errno})
	slices.SortFunc(f.ranges, func(a, b failedRange) int {
		if a.off < b.off {
			return -1
		}
		return 1
	})
	joined := f.ranges[:1]
	for _, r := range f.ranges[1:] {
		if last := &joined[len(joined)-1]; last.end == r.off && last.errno == r.errno {
			last.end = r.end
		} else {
			joined = append(joined, r)
		}
	}
	f.ranges = joined
	if len(f.ranges) > maxFailures { // more than need be: cleared later than it could be, never earlier
		f.ranges[0].end = f.ranges[1].end
		f.ranges = slices.Delete(f.ranges, 1, 2)
	}
}

func (f *failures) remove(off, end int64) {
	var left []failedRange
	for _, r := range f.ranges {
		if r.off < off {
			left = append(left, failedRange{r.off, min(r.end, off), r.errno})
		}
		if r.end > end {
			left = append(left, failedRange{max(r.off, end), r.end, r.errno})
		}
	}
	f.ranges = left
}

func (y *syncState) recordFailure(n *inode, off, end int64, errno syscall.Errno) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.recordFailureLocked(n, off, end, errno)
}

func (y *syncState) recordFailureLocked(n *inode, off, end int64, errno syscall.Errno) {
	y.s.mu.RLock()
	open := len(n.handles)
	y.s.mu.RUnlock()
	if open == 0 {
		return // nobody could write it again; whoever asked has been told
	}
	f := y.failed[n]
	if f == nil {
		f = &failures{}
		y.failed[n] = f
		y.s.log.Error("a write that the application believes done failed: every fsync will until it is written again", "paths", y.s.paths(n), "offset", off, "error", errno)
	}
	f.add(off, end, errno)
}

// writtenLocked forgets failures in a range that was written or truncated away.
func (y *syncState) writtenLocked(n *inode, off, end int64) {
	f := y.failed[n]
	if f == nil {
		return
	}
	if f.remove(off, end); len(f.ranges) == 0 {
		delete(y.failed, n)
	}
}

// failure returns the errno of a failed write that is still to be told. Those of
// unlinked files concern only who syncs that very file.
func (y *syncState) failure(asking map[*inode]syncKind) syscall.Errno {
	y.mu.Lock()
	defer y.mu.Unlock()
	for n, f := range y.failed {
		var st unix.Stat_t
		if _, own := asking[n]; !own && n.stat(&st) == 0 && st.Nlink == 0 {
			continue
		}
		return f.ranges[0].errno
	}
	return 0
}

// failureOf returns the errno of a failed write to n itself.
func (y *syncState) failureOf(n *inode) syscall.Errno {
	y.mu.Lock()
	defer y.mu.Unlock()
	if f := y.failed[n]; f != nil {
		return f.ranges[0].errno
	}
	return 0
}

// excuse returns 0 for an error of the kernel's write-back that is on record here,
// and the error otherwise: the kernel may also fail for reasons of its own.
func (y *syncState) excuse(n *inode, errno syscall.Errno) syscall.Errno {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.failed[n] != nil {
		return 0
	}
	return errno
}
