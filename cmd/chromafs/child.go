package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// becomeWord is the hidden subcommand in which a mount's COMMAND begins its life.
const becomeWord = "become-command"

// Exit codes of a COMMAND that could not be started, as a shell gives them.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
	codeOfSignal      = 128 // plus the signal's number
)

// passed are the signals that reach a COMMAND through chromafs.
func passed() []os.Signal {
	return []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH}
}

// heeded are those of signals that a mount acts on: under nohup(1), not SIGHUP.
func heeded(signals ...os.Signal) []os.Signal {
	return slices.DeleteFunc(signals, func(s os.Signal) bool { return s == unix.SIGHUP && signal.Ignored(s) })
}

// child is the COMMAND of a mount, in a process group of its own: what a terminal
// sends to the foreground group then comes once, through chromafs, and what the
// COMMAND leaves behind can be ended with it.
type child struct {
	cmd  *exec.Cmd
	log  *slog.Logger
	done chan struct{} // closed when the leader has ended
	code int           // its exit code; after done
}

// startChild runs argv on the mount, with dir, a path, as its working directory.
//
// Between fork and exec a child of this process must not touch the mount: it would
// wait for its parent, which waits for it. So what is started is this very program
// (runAsCommand), and that goes to dir, looks the command up and becomes it.
func startChild(argv []string, dir string, log *slog.Logger) (*child, error) {
	cmd := exec.Command("/proc/self/exe", append([]string{becomeWord, dir}, argv...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = ownGroup(int(os.Stdin.Fd()))
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	c := &child{cmd: cmd, log: log, done: make(chan struct{})}
	go c.wait()
	return c, nil
}

// ownGroup puts a new process into a group of its own, in the foreground where
// this process's group is.
func ownGroup(stdin int) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if group, err := unix.IoctlGetInt(stdin, unix.TIOCGPGRP); err == nil && group == unix.Getpgrp() {
		attr.Foreground, attr.Ctty = true, stdin
	}
	return attr
}

// comeToForeground takes the terminal back after a child that had it.
func comeToForeground(stdin int) {
	if _, err := unix.IoctlGetInt(stdin, unix.TIOCGPGRP); err != nil {
		return // no terminal of ours
	}
	signal.Ignore(unix.SIGTTOU)
	// Without the terminal only its Ctrl-C is missed.
	_ = unix.IoctlSetPointerInt(stdin, unix.TIOCSPGRP, unix.Getpgrp())
}

func (c *child) wait() {
	defer close(c.done)
	err := c.cmd.Wait()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) {
		c.log.Error("waiting for the command failed", keyError, err)
		c.code = 1
		return
	}
	c.code = exitCode(c.cmd.ProcessState.Sys().(syscall.WaitStatus))
	comeToForeground(int(os.Stdin.Fd()))
}

func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return codeOfSignal + int(status.Signal())
	}
	return status.ExitStatus()
}

// signal passes a signal on to the COMMAND.
func (c *child) signal(sig os.Signal) {
	if err := c.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		c.log.Warn("a signal could not be passed on", keySignal, sig.String(), keyError, err)
	}
}

// stop ends the COMMAND and everything in its process group: sig first (the
// COMMAND alone gets that one; what it left behind is asked when it has ended), and
// SIGKILL for what is still there after timeout.
func (c *child) stop(sig os.Signal, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c.signal(sig)
	select {
	case <-c.done:
	case <-ctx.Done():
		c.log.Warn("the command does not stop and is killed", keyPID, c.cmd.Process.Pid, "after", timeout)
		c.signalGroup(unix.SIGKILL)
		<-c.done
		return
	}
	// What it started and left behind would keep the mount busy.
	c.signalGroup(unix.SIGTERM)
	if c.groupEnds(ctx) {
		return
	}
	c.log.Warn("processes that the command left behind are killed", "group", c.cmd.Process.Pid)
	c.signalGroup(unix.SIGKILL)
	// A zombie that nobody reaps counts as alive, and harms nobody.
	brief, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c.groupEnds(brief)
}

// groupEnds waits until the process group is gone, and reports whether it is.
func (c *child) groupEnds(ctx context.Context) bool {
	for c.groupLives() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
	return true
}

func (c *child) groupLives() bool { return unix.Kill(-c.cmd.Process.Pid, 0) == nil }

func (c *child) signalGroup(sig unix.Signal) {
	if err := unix.Kill(-c.cmd.Process.Pid, sig); err != nil && err != unix.ESRCH {
		c.log.Warn("the command's processes could not be signalled", keySignal, sig.String(), keyError, err)
	}
}

// runAsCommand is the child's side of startChild. It returns only on failure.
func runAsCommand(dir string, argv []string) int {
	fail := func(code int, err error) int {
		fmt.Fprintf(os.Stderr, "chromafs: run %s: %v\n", argv[0], err)
		return code
	}
	if dir != "" {
		if err := os.Chdir(dir); err != nil {
			return fail(codeNotExecutable, err)
		}
	}
	program, err := exec.LookPath(argv[0])
	switch {
	case errors.Is(err, os.ErrPermission):
		return fail(codeNotExecutable, err)
	case err != nil:
		return fail(codeNotFound, err)
	}
	err = unix.Exec(program, argv, os.Environ())
	return fail(codeNotExecutable, err)
}
