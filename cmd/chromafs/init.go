package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// isMount reports whether a command line is that of a mount.
func isMount(args []string) bool { return len(args) > 0 && args[0] == "mount" }

// runAsInit is what a mount does as process 1 of a container: it runs itself as a
// second process, passes signals on to that, and reaps whatever is orphaned. The
// daemon proper could not do that: it must not reap its own COMMAND by accident.
func runAsInit(stderr io.Writer) int {
	signals := make(chan os.Signal, 32)
	signal.Notify(signals, append(passed(), unix.SIGCHLD)...)
	worker, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   ownGroup(int(os.Stdin.Fd())),
	})
	if err != nil {
		fmt.Fprintln(stderr, "chromafs: start the daemon below process 1:", err)
		return exitcode.Failed
	}
	for sig := range signals {
		if sig != unix.SIGCHLD {
			// It can only be gone already, and then its SIGCHLD is on the way.
			_ = worker.Signal(sig)
			continue
		}
		if code, ended := reap(worker.Pid); ended {
			return code
		}
	}
	return exitcode.Failed
}

// reap collects every child that has ended, and returns the exit code of the one
// that counts once it is among them.
func reap(worker int) (code int, ended bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil || pid == 0:
			return code, ended
		case pid == worker && status.Signaled():
			code, ended = codeOfSignal+int(status.Signal()), true
		case pid == worker:
			code, ended = status.ExitStatus(), true
		}
	}
}
