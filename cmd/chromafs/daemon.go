package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/tree"
)

// readyVariable tells the process behind --daemon which descriptor to report on.
// It is gone from the environment before anything else runs.
const readyVariable = "CHROMAFS_INTERNAL_READY_FD"

// Where a mount with --daemon writes its log, in DIR/.chromafs. At its next start
// a log above the limit becomes the old one.
const (
	logName    = "log"
	oldLogName = "log.old"
	logLimit   = 1 << 20
)

// readyMessage is written when the mount answers. End of file without it means
// that the daemon failed, and said why.
const readyMessage = "ready"

// startDaemon runs this command line again in the background, and returns when its
// mount answers, or with its exit code when it failed. Until it answers its
// messages go where this process's go.
func startDaemon(ctx context.Context, e *env) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{w} // becomes descriptor 3
	cmd.Env = append(os.Environ(), readyVariable+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	defer stop()
	message, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("wait for the daemon: %w", err)
	}
	if string(message) == readyMessage {
		e.log.Debug("the daemon serves", keyPID, cmd.Process.Pid)
		return cmd.Process.Release()
	}
	var exited *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exited) {
		return fmt.Errorf("wait for the daemon: %w", err)
	}
	code := exitCode(cmd.ProcessState.Sys().(syscall.WaitStatus))
	if code == exitcode.Done {
		return nil // a COMMAND that ended at once
	}
	return &silentError{code}
}

// readiness is how the process behind --daemon tells that it serves. The zero
// value is that of a mount in the foreground.
//
// Nothing of this process may hold the caller's terminal or pipe open once the
// mount answers. File systems keep threads with descriptor tables of their own, in
// which the standard streams stay what they were when the thread began. So these
// become the log file before that (detach), and what is said until the mount
// answers goes to the caller by another descriptor (announce closes it).
type readiness struct {
	pipe   *os.File // to the waiting process
	stderr *switchable
	caller *os.File // what stderr was; nil before detach
}

// switchable is a writer that can be exchanged under way.
type switchable struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *switchable) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

func (s *switchable) set(w io.Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.w = w
}

// takeReadiness finds out whether this is the process behind --daemon.
func takeReadiness(e *env) (*readiness, error) {
	value := e.getenv(readyVariable)
	if value == "" {
		return &readiness{}, nil
	}
	fd, err := strconv.Atoi(value)
	if err != nil {
		return nil, fmt.Errorf("%s=%q: %w", readyVariable, value, err)
	}
	if err := os.Unsetenv(readyVariable); err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	r := &readiness{pipe: os.NewFile(uintptr(fd), "ready"), stderr: &switchable{w: e.stderr}}
	e.stderr = r.stderr
	return r, nil
}

func (r *readiness) inBackground() bool { return r.pipe != nil }

// detach makes the standard streams DIR's log file, while messages still go to the
// caller.
func (r *readiness) detach(dir *datadir.Dir, log *slog.Logger) error {
	if !r.inBackground() {
		return nil
	}
	fail := func(err error) error { return fmt.Errorf("go to the background: %w", err) }
	fd, err := unix.FcntlInt(os.Stderr.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fail(err)
	}
	r.caller = os.NewFile(uintptr(fd), "stderr")
	r.stderr.set(r.caller)
	file, err := openLog(dir)
	if err != nil {
		// A full disk is no reason not to serve.
		log.Warn("the log file cannot be written; once the mount answers, nothing is logged", keyError, err)
		if file, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
			return fail(err)
		}
	}
	defer file.Close()
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(int(file.Fd()), fd, 0); err != nil {
			return fail(err)
		}
	}
	return nil
}

// announce tells the waiting process that the mount answers, and lets go of it.
func (r *readiness) announce() error {
	if !r.inBackground() {
		return nil
	}
	r.stderr.set(os.Stderr)
	_, err := r.pipe.WriteString(readyMessage)
	if err := errors.Join(err, r.caller.Close(), r.pipe.Close()); err != nil {
		return fmt.Errorf("tell that the mount answers: %w", err)
	}
	return nil
}

func openLog(dir *datadir.Dir) (*os.File, error) {
	open := func() (*os.File, error) {
		return tree.OpenBeneath(dir.State(), logName, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT, 0o600)
	}
	file, err := open()
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil || info.Size() < logLimit {
		return file, err
	}
	state := int(dir.State().Fd())
	if err := unix.Renameat(state, logName, state, oldLogName); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if err := file.Close(); err != nil {
		return nil, err
	}
	return open()
}

// untilSignal returns a context that ends, with errInterrupted, at the first
// SIGINT, SIGTERM or SIGHUP. stop gives the signals back.
func untilSignal(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, heeded(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)...)
	go func() {
		select {
		case <-signals:
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}
