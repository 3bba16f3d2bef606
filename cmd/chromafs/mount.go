package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/fusefs"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/mountinfo"
)

type mountOptions struct {
	store  storeOptions
	log    logOptions
	local  localOptions
	upload uploadOptions

	stopTimeout    time.Duration
	flushTimeout   time.Duration
	handoffTimeout time.Duration
	quiesceTimeout time.Duration
	scratchLimit   string
	allowOther     bool
	daemon         bool
}

func (o *mountOptions) AddFlags(flags *pflag.FlagSet) {
	o.store.AddFlags(flags)
	o.store.AddWriteFlags(flags)
	o.upload.AddFlags(flags)
	flags.DurationVar(&o.upload.interval, "interval", time.Hour, "take a snapshot this long after the last one, if anything changed")
	flags.DurationVar(&o.upload.settle, "settle", 30*time.Second, "once one is due, wait for a moment this long without a write; at most a tenth of the interval")
	o.local.AddFlags(flags)
	flags.BoolVar(&o.local.preferLocal, "prefer-local", false, "where it is not known which side is newer, keep the local copy and not the store's")
	flags.BoolVar(&o.local.offline, "offline", false, "serve the local copy if the store does not answer")
	flags.DurationVar(&o.local.storeTimeout, "store-timeout", time.Minute, "how long to wait for the store at the start")
	flags.DurationVar(&o.stopTimeout, "stop-timeout", 5*time.Second, "how long COMMAND may take to stop before it is killed")
	flags.DurationVar(&o.flushTimeout, "flush-timeout", 5*time.Minute, "how long the final snapshot may take")
	flags.DurationVar(&o.handoffTimeout, "handoff-timeout", 90*time.Second, "how long to wait at the start for another mount of the store to take its final snapshot and hand over; 0 takes over at once")
	flags.DurationVar(&o.quiesceTimeout, "quiesce-timeout", 5*time.Second, "how long a snapshot waits for databases to come to rest")
	flags.StringVar(&o.scratchLimit, "scratch-limit", "10%", "how much of what is overwritten while a snapshot is read may be saved on DIR's disk, as a `size` (500M, 20GiB) or a share of what is free")
	flags.BoolVar(&o.allowOther, "allow-other", false, "let other users use the mount, as far as the files' permissions allow")
	flags.BoolVar(&o.daemon, "daemon", false, "return when the mount answers, and serve in the background (log: DIR/.chromafs/log)")
	o.log.AddFlags(flags)
}

func mountCommand() command {
	return command{
		name:  "mount",
		args:  "DIR MOUNTPOINT [-- COMMAND…]",
		short: "serve DIR at MOUNTPOINT, and keep snapshots of it in the store",
		long: `First brings DIR up to date with the store, if it is missing, empty or older.
MOUNTPOINT may be DIR itself. Stays in the foreground until it is unmounted or
gets SIGTERM or SIGINT; then takes a final snapshot.

With a COMMAND: runs it on the mount, passes signals on to it, and when it ends
takes a final snapshot, unmounts and exits with its code.`,
		setup: func(flags *pflag.FlagSet) runner {
			var o mountOptions
			o.AddFlags(flags)
			return func(ctx context.Context, e *env, args arguments) error { return runMount(ctx, e, o, args) }
		},
	}
}

// validate names the flag that cannot be.
func (o *mountOptions) validate() error {
	if err := errors.Join(o.store.validate(), o.upload.validate(), o.local.validate()); err != nil {
		return err
	}
	for _, f := range []struct {
		flag  string
		value time.Duration
	}{
		{"interval", o.upload.interval}, {"flush-timeout", o.flushTimeout}, {"quiesce-timeout", o.quiesceTimeout},
	} {
		if f.value <= 0 {
			return usageError("--%s %v: must be more than 0", f.flag, f.value)
		}
	}
	if _, err := parseScratchLimit(o.scratchLimit); err != nil {
		return err
	}
	if o.upload.settle < 0 || o.stopTimeout < 0 || o.handoffTimeout < 0 {
		return usageError("--settle %v, --stop-timeout %v, --handoff-timeout %v: must not be negative", o.upload.settle, o.stopTimeout, o.handoffTimeout)
	}
	return nil
}

// place says where a mount is to be, in absolute paths.
type place struct {
	dir, mountpoint string
	same            bool // both are one directory; set by prepare
	command         []string
	workDir         string // of COMMAND
}

func parsePlace(args arguments) (place, error) {
	words, command := args.words, []string(nil)
	if args.dash >= 0 {
		words, command = args.words[:args.dash], args.words[args.dash:]
		if len(command) == 0 {
			return place{}, usageError("mount: no COMMAND after --")
		}
	}
	if len(words) > 2 && args.dash < 0 {
		return place{}, usageError("mount: %s, want DIR and MOUNTPOINT; a COMMAND comes after --", count(len(words), "argument"))
	}
	if len(words) != 2 {
		return place{}, usageError("mount: %s, want DIR and MOUNTPOINT", count(len(words), "argument"))
	}
	p := place{command: command}
	var err error
	if p.dir, err = filepath.Abs(words[0]); err != nil {
		return place{}, err
	}
	if p.mountpoint, err = filepath.Abs(words[1]); err != nil {
		return place{}, err
	}
	if command != nil {
		if p.workDir, err = os.Getwd(); err != nil {
			return place{}, err
		}
	}
	return p, nil
}

func runMount(ctx context.Context, e *env, o mountOptions, args arguments) error {
	place, err := parsePlace(args)
	if err != nil {
		return err
	}
	if err := o.validate(); err != nil {
		return err
	}
	surviveBrokenPipes()
	ready, err := takeReadiness(e)
	if err != nil {
		return err
	}
	if err := o.log.apply(e); err != nil {
		return err
	}
	startup, stop := untilSignal(ctx)
	defer stop()
	if o.daemon && !ready.inBackground() {
		return startDaemon(startup, e)
	}
	if err := o.store.apartFrom(place.dir, place.mountpoint); err != nil {
		return err
	}
	if err := place.prepare(); err != nil {
		return err
	}
	l, err := openLocal(startup, place.dir, place.mountpoint, e)
	if err != nil {
		return err
	}
	s := &session{env: e, options: o, place: place, local: l, ready: ready}
	if err := s.start(startup); err != nil {
		l.noteSpace(err)
		return interrupted(startup, errors.Join(err, s.abandon()))
	}
	// From here on a signal means: come to an end. One that came just before does too.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, heeded(passed()...)...)
	defer signal.Stop(signals)
	stop()
	if errors.Is(context.Cause(startup), errInterrupted) {
		signals <- unix.SIGTERM
	}
	return s.run(signals)
}

// prepare clears what a killed mount left at the mountpoint, makes it, and refuses
// one where something would be hidden that a person may take for served.
func (p *place) prepare() error {
	if strings.HasPrefix(resolved(p.mountpoint), resolved(p.dir)+"/") {
		return usage(fmt.Sprintf("mount at %s: it is inside %s, which it would show", p.mountpoint, p.dir),
			"mount outside of the directory, or on top of it: chromafs mount "+p.dir+" "+p.dir)
	}
	if err := fusefs.ClearDeadMount(p.mountpoint); err != nil {
		return err
	}
	if err := os.MkdirAll(p.mountpoint, 0o755); err != nil {
		return fmt.Errorf("make the mountpoint: %w", err)
	}
	var err error
	if p.same, err = sameDirectory(p.dir, p.mountpoint); err != nil || p.same {
		return err
	}
	m, err := mountinfo.Of(p.mountpoint)
	if err != nil {
		return err
	}
	if _, ours := m.Key(); ours {
		return exitcode.New(exitcode.Usage, fmt.Errorf("mount at %s: it lies on the chromafs mount %s already", p.mountpoint, m.Mountpoint),
			"unmount that first: chromafs unmount "+m.Mountpoint)
	}
	entries, err := os.ReadDir(p.mountpoint)
	if err != nil {
		return fmt.Errorf("look at the mountpoint: %w", err)
	}
	if len(entries) > 0 {
		return usage(fmt.Sprintf("mount at %s: the folder is not empty, and what it holds (%s) would be hidden", p.mountpoint, entries[0].Name()),
			fmt.Sprintf("to serve these very files, name the folder twice: chromafs mount %s %s", p.mountpoint, p.mountpoint))
	}
	return nil
}

func sameDirectory(a, b string) (bool, error) {
	sa, err := os.Stat(a)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	sb, err := os.Stat(b)
	if err != nil {
		return false, err
	}
	return os.SameFile(sa, sb), nil
}

// surviveBrokenPipes keeps a log whose reader is gone from ending the process: a
// Ctrl-C in "chromafs mount … | tee log" ends tee first, and the final snapshot
// must still be taken. Signals that are caught, unlike ignored ones, are as always
// for a COMMAND.
func surviveBrokenPipes() { signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE) }
