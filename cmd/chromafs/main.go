// Command chromafs keeps a ChromaDB directory alive on machines whose disk does
// not last.
//
// The model: a subcommand is one file with an options struct, AddFlags and a run
// function; commands.go lists them. Everything that a command needs of its
// surroundings is in env, so a test can run any of them in its own process. A flag
// that was not given takes its value from an environment variable: --s3-endpoint
// from CHROMAFS_S3_ENDPOINT. Errors come back to main, which prints what failed
// and, on a second line, what to do next, and exits with the code that the error
// stands for (package exitcode).
//
// Here the packages are wired, and here are the promises that no single one of
// them can keep: the order at mount (DESIGN §7: R3 and R4 hold before anything is
// served), and the end (DESIGN §6): nothing that was written before it is left
// behind without the exit code saying so.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// env is what a command has of the world around it.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	environ        []string // as os.Environ
	now            func() time.Time
	log            *slog.Logger // made from --log-format and --log-level; silent before that
	jsonLog        bool         // stderr carries nothing but JSON records
}

func main() { os.Exit(begin(os.Args[1:])) }

// begin does what this process was started for, and returns its exit code.
func begin(args []string) int {
	switch {
	case len(args) > 2 && args[0] == becomeWord:
		return runAsCommand(args[1], args[2:])
	case os.Getpid() == 1 && isMount(args):
		return runAsInit(os.Stderr)
	}
	return execute(context.Background(), &env{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		getenv: os.Getenv, environ: os.Environ(), now: clock(os.Getenv), log: slog.New(slog.DiscardHandler),
	}, args)
}

// execute runs the command that args ask for, reports its error, and returns the
// exit code.
func execute(ctx context.Context, e *env, args []string) int {
	err := dispatch(ctx, e, args)
	report(e, err)
	return codeOf(err)
}

// report shows an error as people see it: what failed, and the next step.
func report(e *env, err error) {
	if err == nil || err.Error() == "" {
		return
	}
	message, hint := strings.ReplaceAll(err.Error(), "\n", "; "), exitcode.Hint(err)
	if e.jsonLog {
		e.log.Error(message, keyHint, hint, keyExitCode, codeOf(err))
		return
	}
	fmt.Fprintln(e.stderr, "chromafs: "+message)
	if hint != "" {
		fmt.Fprintln(e.stderr, "  "+hint)
	}
}
