package fusefs

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/failpoint"
)

// pusher makes the kernel hand over the pages that it caches, and waits until
// their WRITEs were answered. It does so through descriptors of the mount, one for
// each inode with a writable handle, kept from the first push to the FLUSH of the
// last writable handle: opening one costs thirty times as much as pushing a clean
// file (measured: 25 µs and 0.85 µs), and one that outlived the application's own
// would make the mount busy.
//
// The work is done in order by one worker, a thread that may wait on the mount
// (see thread). It can get stuck in one way: fsync(2), and on some kernels
// close(2), wait for the lock of an inode whose own FSYNC is waiting for a
// barrier, and so for this worker. But then the kernel has handed over that
// inode's pages before it sent the FSYNC. So whoever begins an FSYNC of the very
// inode that the worker is at takes the worker's queue away from it and gives it
// to a new one; the old one ends when the FSYNC is answered.
//
// Locks: mu is a leaf but for fsys.mu, which is never held when mu is taken. No
// caller may hold the gate: the WRITEs that a push waits for pass it.
type pusher struct {
	s   *fsys
	log *slog.Logger

	device atomic.Uint64 // of the mount; 0 until attach, and then no descriptor passes for one of it

	mu       sync.Mutex
	wake     *sync.Cond          // work came, or a worker lost its queue
	writable map[*inode]int      // writable handles
	closing  map[*inode]struct{} // of those, whose last handle was flushed, and so is probably being closed
	fsyncs   map[*inode]int      // FSYNCs that arrived and are not answered
	queue    []*pushJob          // in order; the first may be under way
	worker   *pushWorker         // nil: it failed to start, or none is needed
	tids     map[uint32]struct{} // of the threads of all workers that still live
	closed   bool
}

// pushJob is a list of steps, done when all are.
type pushJob struct {
	steps []pushStep
	errno syscall.Errno // the first that a step had
	done  chan struct{}
}

// pushStep pushes an inode, or closes its descriptor.
type pushStep struct {
	node  *inode
	close bool
}

// pushWorker is a thread with its descriptors of the mount.
type pushWorker struct {
	p    *pusher
	tid  uint32         // of its thread
	fds  map[*inode]int // of the thread; changed by it alone, under p.mu
	done chan struct{}  // closed when it has ended
	step pushStep       // under way; guarded by p.mu, as is lost
	lost bool
}

func newPusher(s *fsys) *pusher {
	p := &pusher{
		s: s, log: s.log, writable: map[*inode]int{}, closing: map[*inode]struct{}{}, fsyncs: map[*inode]int{}, tids: map[uint32]struct{}{},
	}
	p.wake = sync.NewCond(&p.mu)
	// Now, and not with the first push: the thread copies the process's descriptors
	// and closes them, which must not concern files of the mount.
	p.worker = newPushWorker(p)
	p.worker.start()
	return p
}

// handleOpened and handleReleased count the writable handles of n.
func (s *fsys) handleOpened(n *inode, writable bool) {
	if writable && n.isFile() {
		s.push.mu.Lock()
		s.push.writable[n]++
		delete(s.push.closing, n)
		s.push.mu.Unlock()
	}
}

func (s *fsys) handleReleased(n *inode, writable bool) {
	if writable && n.isFile() {
		s.push.release(n)
	}
	s.busy.released(n, writable)
	if writable && n.isFile() {
		s.undo.released(n)
	}
	s.sync.released(n)
}

func (p *pusher) release(n *inode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.writable[n]--; p.writable[n] > 0 {
		return
	}
	delete(p.writable, n)
	delete(p.closing, n)
	if p.keepsLocked(n) { // a push opened one after the last FLUSH
		p.submitLocked(pushStep{node: n, close: true})
	}
}

// pushOne makes the kernel hand over what it caches of n.
func (s *fsys) pushOne(_ context.Context, n *inode) {
	s.push.run(pushStep{node: n})
}

// all pushes every inode with a writable handle.
func (p *pusher) all() syscall.Errno { return p.begin(func(*inode) bool { return false }).wait() }

// begin begins to push every inode with a writable handle but those that skip names.
func (p *pusher) begin(skip func(*inode) bool) *pushJob {
	if p.s.pushMode == pushNone {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	steps := make([]pushStep, 0, len(p.writable))
	for n := range p.writable {
		if !skip(n) {
			steps = append(steps, pushStep{node: n})
		}
	}
	if len(steps) == 0 {
		return nil
	}
	return p.submitLocked(steps...)
}

// wait waits until all steps are done and returns the first error. The wait is not
// for a caller to end: the thread cannot be interrupted, and FSYNC must not answer
// EINTR. There is nothing to wait for in no job at all.
func (j *pushJob) wait() syscall.Errno {
	if j == nil {
		return 0
	}
	<-j.done
	return j.errno
}

// drop closes the descriptor of n, if there is one, before n's last writable
// handle is closed: once the application's close(2) has returned, nothing of ours
// keeps the mount busy. The handle may live on, if its descriptor was a duplicate:
// until RELEASE comes, pushes of n open a descriptor and close it again.
func (p *pusher) drop(n *inode) {
	p.mu.Lock()
	var job *pushJob
	if p.writable[n] == 1 {
		p.closing[n] = struct{}{}
		if p.keepsLocked(n) {
			job = p.submitLocked(pushStep{node: n, close: true})
		}
	}
	p.mu.Unlock()
	job.wait()
}

// keepsLocked reports whether there is, or will be once the queue is done, a
// descriptor of n to close.
func (p *pusher) keepsLocked(n *inode) bool {
	if p.worker == nil {
		return false
	}
	if _, ok := p.worker.fds[n]; ok || p.worker.step.node == n {
		return true
	}
	for _, job := range p.queue {
		for _, step := range job.steps {
			if step.node == n {
				return true
			}
		}
	}
	return false
}

// run has steps done and waits.
func (p *pusher) run(steps ...pushStep) syscall.Errno {
	if p.s.pushMode == pushNone || len(steps) == 0 {
		return 0
	}
	p.mu.Lock()
	job := p.submitLocked(steps...)
	p.mu.Unlock()
	return job.wait()
}

func (p *pusher) submitLocked(steps ...pushStep) *pushJob {
	job := &pushJob{steps: steps, done: make(chan struct{})}
	p.queue = append(p.queue, job)
	switch {
	case p.closed:
		p.failLocked(syscall.EIO)
	case p.worker == nil:
		p.startLocked()
	}
	p.wake.Broadcast()
	return job
}

func (p *pusher) failLocked(errno syscall.Errno) {
	for _, job := range p.queue {
		job.errno = errno
		close(job.done)
	}
	p.queue = nil
}

// startLocked gives the queue a new worker. Its thread starts on its own time: that
// takes system calls that must not wait for mu.
func (p *pusher) startLocked() {
	p.worker = newPushWorker(p)
	go p.worker.start()
}

func newPushWorker(p *pusher) *pushWorker {
	return &pushWorker{p: p, fds: map[*inode]int{}, done: make(chan struct{})}
}

func (w *pushWorker) start() {
	p := w.p
	t, err := startThread()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.log.Error("cannot make the kernel hand over written data", "error", err)
		p.worker = nil
		p.failLocked(syscall.EIO)
		close(w.done)
		return
	}
	p.tids[uint32(t.tid)] = struct{}{}
	w.tid = uint32(t.tid)
	go func() {
		t.jobs <- w.loop
		t.stop()
	}()
}

// isOwn reports whether a request comes from a worker: then it opens a descriptor
// to push through, and needs no handle.
func (p *pusher) isOwn(pid uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.tids[pid]
	return ok
}

// isWritten reports whether n has a writable handle. A descriptor that is opened
// for one is closed after it: its release has a step queued for that.
func (p *pusher) isWritten(n *inode) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.writable[n] > 0
}

// holds reports whether there is any descriptor of the mount, or is being closed.
func (p *pusher) holds() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.worker != nil && (len(p.worker.fds) > 0 || p.worker.step.node != nil || len(p.queue) > 0)
}

func (p *pusher) isClosing(n *inode) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.closing[n]
	return ok
}

// fsyncBegins and fsyncEnds frame an FSYNC of n. If the worker may be waiting for
// that very FSYNC's end, its queue goes to a new worker.
func (p *pusher) fsyncBegins(n *inode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fsyncs[n]++
	w := p.worker
	if w == nil || w.step.node != n {
		return
	}
	if _, closing := p.closing[n]; !closing && !w.step.close && p.s.pushMode != pushFsync {
		return // sync_file_range takes no lock
	}
	w.lost = true
	p.worker = nil
	p.stepDoneLocked(0) // n's pages are down
	if len(p.queue) > 0 {
		p.startLocked()
	}
	p.wake.Broadcast()
}

func (p *pusher) fsyncEnds(n *inode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fsyncs[n]--; p.fsyncs[n] == 0 {
		delete(p.fsyncs, n)
	}
}

// stepDoneLocked takes the first step off the queue.
func (p *pusher) stepDoneLocked(errno syscall.Errno) {
	job := p.queue[0]
	if job.errno == 0 {
		job.errno = errno
	}
	if job.steps = job.steps[1:]; len(job.steps) == 0 {
		p.queue = p.queue[1:]
		close(job.done)
	}
}

// closePush ends the workers. The mount is gone, or every descriptor is closed.
func (s *fsys) closePush() {
	p := s.push
	p.mu.Lock()
	p.closed = true
	w := p.worker
	p.wake.Broadcast()
	p.mu.Unlock()
	if w != nil {
		<-w.done
	}
}

// loop is the worker's life, on its thread.
func (w *pushWorker) loop() {
	p := w.p
	for {
		step, ok := w.next()
		if !ok {
			break
		}
		errno := w.do(step)
		p.mu.Lock()
		w.step = pushStep{}
		if !w.lost {
			p.stepDoneLocked(errno)
		}
		p.mu.Unlock()
	}
	for _, fd := range w.fds {
		unix.Close(fd)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tids, w.tid)
	if p.worker == w {
		p.worker = nil
		p.failLocked(syscall.EIO)
	}
	close(w.done)
}

// next waits for the next step.
func (w *pushWorker) next() (pushStep, bool) {
	p := w.p
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) == 0 && !w.lost && !p.closed {
		p.wake.Wait()
	}
	if w.lost || len(p.queue) == 0 {
		return pushStep{}, false
	}
	w.step = p.queue[0].steps[0]
	if p.s.pushMode == pushFsync && p.fsyncs[w.step.node] > 0 && !w.step.close {
		return pushStep{}, true // its own FSYNC has brought its pages down
	}
	return w.step, true
}

func (w *pushWorker) do(step pushStep) syscall.Errno {
	n := step.node
	if n == nil {
		return 0
	}
	fd, kept := w.fds[n]
	if step.close {
		if kept {
			w.keep(n, -1)
			unix.Close(fd)
		}
		return 0
	}
	if !w.p.isWritten(n) {
		return 0 // closing the last handle has brought its pages down
	}
	if err := failpoint.Hit("fusefs/push"); err != nil {
		return errnoOf(err)
	}
	if !kept {
		var st unix.Stat_t
		if errno := n.stat(&st); errno == 0 && st.Nlink == 0 {
			return 0 // in no folder: neither a crash nor a view will show it
		}
		var err error
		if fd, err = w.open(n); err != nil {
			w.p.log.Debug("push without a descriptor", "inode", n.key.ino, "error", err)
			return w.invalidate(n)
		}
		w.keep(n, fd)
	}
	err := w.p.s.pushMode.sync(fd)
	if w.p.isClosing(n) {
		w.keep(n, -1)
		unix.Close(fd)
	}
	if err != nil {
		return w.p.s.sync.excuse(n, errnoOf(err))
	}
	return 0
}

// keep remembers the descriptor of n; -1 forgets it.
func (w *pushWorker) keep(n *inode, fd int) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if fd < 0 {
		delete(w.fds, n)
	} else {
		w.fds[n] = fd
	}
}

// invalidate is the push for an inode of which no descriptor can be had (of a mode
// that forbids it to an ordinary user; below a folder that a detached mount no
// longer shows): the kernel writes an inode's pages before it forgets them, and
// waits (measured). It costs the cached pages, and it waits with /dev/fuse open: a
// daemon killed in this very instant stays until the mount's connection is aborted.
func (w *pushWorker) invalidate(n *inode) syscall.Errno {
	answer := make(chan syscall.Errno, 1)
	go func() { answer <- syscall.Errno(w.p.s.server.InodeNotify(n.id, 0, 0)) }() // the device is not open on this thread
	if errno := <-answer; errno != 0 && errno != syscall.ENOENT {                 // ENOENT: the kernel has forgotten it, so it caches nothing
		w.p.log.Error("cannot make the kernel hand over written data", "inode", n.key.ino, "error", fmt.Errorf("invalidate: %w", errno))
		return errno
	}
	return 0
}
