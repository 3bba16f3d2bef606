package main

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// errInterrupted says that a signal ended a command before it was done.
var errInterrupted = errors.New("interrupted by a signal")

// silentError ends a command with an exit code whose reason was said already, or
// is nothing that failed: the code of a mount's COMMAND, the verdict of --check.
type silentError struct{ code int }

func (e *silentError) Error() string { return "" }
func (e *silentError) ExitCode() int { return e.code }

// codeOf is exitcode.Of, and knows a full local disk wherever it was met.
func codeOf(err error) int {
	code := exitcode.Of(err)
	if code == exitcode.Failed && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		return exitcode.NoSpace
	}
	return code
}

func usage(message, hint string) error {
	return exitcode.New(exitcode.Usage, errors.New(message), hint)
}

func usageError(format string, args ...any) error {
	return exitcode.New(exitcode.Usage, fmt.Errorf(format, args...),
		"chromafs help shows the commands, chromafs COMMAND --help one of them")
}

// interrupted replaces the end of ctx, which is how a signal shows, by its cause.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return context.Cause(ctx)
	}
	return err
}
