package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/pflag"
)

// Attribute keys of the records that this package logs.
const (
	keyError      = "error"
	keyDir        = "dir"
	keyMountpoint = "mountpoint"
	keyStore      = "store"
	keyID         = "id"
	keySequence   = "sequence"
	keyFiles      = "files"
	keyBytes      = "bytes"
	keyUploaded   = "bytes_uploaded"
	keyRemoved    = "removed"
	keyDuration   = "duration"
	keyFree       = "free_bytes"
	keyNeeded     = "needed_bytes"
	keyPID        = "pid"
	keySignal     = "signal"
	keyReason     = "reason"
	keyCommand    = "command"
	keyPath       = "path"
	keyName       = "name"
	keyHint       = "hint"
	keyExitCode   = "exit_code"
)

// logOptions say what is logged, and how. Every command that does work has them.
type logOptions struct{ format, level string }

func (o *logOptions) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.format, "log-format", "text", "how to write the log to stderr: `text|json`")
	flags.StringVar(&o.level, "log-level", "info", "what to log: `debug|info|warn|error`")
}

// apply gives e the logger that the options ask for.
func (o *logOptions) apply(e *env) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.level)); err != nil {
		return usageError("--log-level %q: not one of debug, info, warn, error", o.level)
	}
	options := &slog.HandlerOptions{Level: level}
	switch o.format {
	case "text":
		e.log = slog.New(slog.NewTextHandler(e.stderr, options))
	case "json":
		e.log, e.jsonLog = slog.New(slog.NewJSONHandler(e.stderr, options)), true
	default:
		return usageError("--log-format %q: neither text nor json", o.format)
	}
	for _, name := range strangers(e.environ) {
		e.log.Warn("no command has a flag of this environment variable: it does nothing", keyName, name)
	}
	return nil
}

// count returns n with its noun: "1 file", "2 files".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	if strings.HasSuffix(noun, "ch") {
		noun += "e"
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// size returns n bytes as people read them.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	value, unit := float64(n), 0
	for value >= 1024 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}
