package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/objstore/probe"
	"github.com/chromafs/chromafs/internal/objstore/retry"
)

type doctorOptions struct {
	store storeOptions
	log   logOptions
	json  bool
}

func (o *doctorOptions) AddFlags(flags *pflag.FlagSet) {
	o.store.AddFlags(flags)
	o.store.AddWriteFlags(flags)
	flags.BoolVar(&o.json, "json", false, "print a JSON object")
	o.log.AddFlags(flags)
}

func doctorCommand() command {
	return command{
		name:  "doctor",
		args:  "[STORE] [DIR]",
		short: "check that a store will do, and show what it lacks",
		long: `Asks the store, and tries on throwaway objects, which it removes again, what chromafs
relies on: address, credentials, permissions, the clock, copies, conditional writes.
STORE is as --store says it. A DIR that is not mounted remembers what was found, as
it does what its first mount found; without one nothing is changed.

The exit code is that of the worst finding: 3 if the store will not do, 1 if it will
but something stays undone in it, 5 if what is published there is damaged.`,
		setup: func(flags *pflag.FlagSet) runner {
			var o doctorOptions
			o.AddFlags(flags)
			return func(ctx context.Context, e *env, args arguments) error { return runDoctor(ctx, e, o, args) }
		},
	}
}

// checkup is what a doctor finds. It is what `doctor --json` prints.
type checkup struct {
	Store        string         `json:"store"`
	Endpoint     string         `json:"endpoint,omitempty"`
	Reached      bool           `json:"reached"` // it answered to these credentials, and could be listed, read and written
	LatencyMS    float64        `json:"latency_ms,omitempty"`
	ClockAheadMS *int64         `json:"clock_ahead_ms,omitempty"` // the store's clock before this machine's; of whole seconds
	Published    string         `json:"published,omitempty"`      // the newest snapshot
	Snapshots    int            `json:"snapshots"`
	Capabilities []checked      `json:"capabilities,omitempty"`
	Left         []string       `json:"left,omitempty"` // what could not be removed again
	Findings     []finding      `json:"findings"`
	ExitCode     int            `json:"exit_code"`
	lacks        objstore.Lacks // what Capabilities tells
	ahead        time.Duration
}

// checked is one capability, as it was found.
type checked struct {
	Name    string `json:"name"`
	Has     bool   `json:"has"`
	Reason  string `json:"reason,omitempty"`
	Without string `json:"without,omitempty"` // what chromafs does without it
}

// finding is something that a person should know of.
type finding struct {
	Code int    `json:"exit_code"` // 0: for information
	What string `json:"what"`
	Next string `json:"next,omitempty"`
}

func (c *checkup) find(code int, what, next string) {
	c.Findings = append(c.Findings, finding{code, what, next})
	c.ExitCode = max(c.ExitCode, code)
}

const (
	doctorTimeout = 2 * time.Minute // for all that is asked
	clockLimit    = 5 * time.Minute // S3 refuses requests from 15 on
)

func runDoctor(ctx context.Context, e *env, o doctorOptions, args arguments) error {
	words, err := args.take("doctor", 0, 2)
	if err != nil {
		return err
	}
	if len(words) > 0 && strings.Contains(words[0], "://") {
		o.store.url, words = words[0], words[1:]
	}
	if len(words) > 1 {
		return usageError("doctor: %s, want at most a STORE, as --store says it, and a DIR", count(len(words), "argument"))
	}
	if err := errors.Join(o.store.validate(), o.log.apply(e)); err != nil {
		return err
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	timed, cancel := context.WithTimeoutCause(ctx, doctorTimeout, errors.New("no answer in time"))
	defer cancel()
	return interrupted(ctx, withMemory(ctx, e, o.store, words, func(k *knowledge) error {
		c, err := examine(timed, e, o.store)
		if err != nil {
			return err
		}
		if k != nil && c.Capabilities != nil {
			if err := k.remember(c.lacks); err != nil {
				return err
			}
		}
		if o.json {
			err = printJSON(e, c)
		} else {
			err = printCheckup(e, c)
		}
		if err == nil && c.ExitCode != exitcode.Done {
			err = &silentError{c.ExitCode}
		}
		return err
	}))
}

// withMemory calls f with the memory of a DIR, if one is named. It makes none.
func withMemory(ctx context.Context, e *env, o storeOptions, words []string, f func(*knowledge) error) (err error) {
	if len(words) == 0 {
		return f(nil)
	}
	look, err := datadir.OpenReadOnly(words[0])
	if err != nil {
		return err
	}
	fresh := look.State() == nil
	if err := look.Close(); err != nil {
		return err
	}
	if fresh {
		return usage(fmt.Sprintf("doctor %s: it was never mounted, and remembers no store", words[0]), "leave it out, or name a DIR of a mount")
	}
	dir, err := datadir.Open(words[0])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := lock(ctx, dir, "chromafs doctor"); err != nil {
		return err
	}
	_, k, err := o.openToWrite(e, dir.State(), retry.Policy{})
	if err != nil {
		return err
	}
	return f(k)
}

// examine asks the store. What is wrong with the store is a finding, and no error.
func examine(ctx context.Context, e *env, o storeOptions) (*checkup, error) {
	store, err := o.bare(e)
	if err != nil {
		return nil, err
	}
	c := &checkup{Store: store.String(), Endpoint: o.endpoint, Findings: []finding{}}
	defer c.compareClocks(store)
	head, _, err := history.NewCatalog(store, e.log).Head(ctx)
	switch {
	case err == nil:
		c.Published, c.Snapshots = string(head.Newest.ID), len(head.History)
	case errors.Is(err, history.ErrNoBackup):
	case objstore.KindOf(err) != nil, ctx.Err() != nil:
		c.find(max(codeOf(err), exitcode.Store), err.Error(), exitcode.Hint(err))
		return c, nil
	default: // it answered; what is in it is another matter
		c.find(codeOf(err), err.Error(), exitcode.Hint(err))
	}
	for _, err := range store.List(ctx, history.HistoryPrefix) {
		if err != nil {
			c.find(exitcode.Store, err.Error(), exitcode.Hint(err))
			return c, nil
		}
		break // one answer is enough
	}
	report, err := probe.Run(ctx, store, probe.Options{Rand: rand.Reader, Thorough: true})
	c.Left = report.Left
	if err != nil {
		c.find(max(codeOf(err), exitcode.Store), err.Error(), exitcode.Hint(err))
		return c, nil
	}
	c.Reached, c.lacks = true, report.Lacks
	c.LatencyMS = float64(report.Latency.Microseconds()) / 1000
	c.judge(o)
	return c, nil
}

// judge says what follows from what is lacking.
func (c *checkup) judge(o storeOptions) {
	for _, one := range capabilities {
		if one.needed == encrypting && o.sse == "none" {
			continue
		}
		why := one.why(c.lacks)
		if why == "" {
			c.Capabilities = append(c.Capabilities, checked{Name: one.name, Has: true})
			continue
		}
		c.Capabilities = append(c.Capabilities, checked{one.name, false, why, one.without})
		code := one.severe
		if one.needed == byTwo && o.singleWriter {
			code = exitcode.Done
		}
		c.find(code, "no "+one.name+": "+why, one.without)
	}
}

// compareClocks says by how much the store's clock differs.
func (c *checkup) compareClocks(store objstore.Store) {
	clock, ok := store.(interface{ ClockAhead() (time.Duration, bool) })
	if !ok {
		return
	}
	ahead, known := clock.ClockAhead()
	if !known {
		return
	}
	ms := ahead.Milliseconds()
	c.ClockAheadMS, c.ahead = &ms, ahead
	if ahead.Abs() > clockLimit {
		c.find(exitcode.Failed, "the clocks differ: the store's is "+describeAhead(ahead),
			"set this machine's clock (timedatectl set-ntp true): from 15 minutes on S3 refuses what is signed by it")
	}
}

func describeAhead(d time.Duration) string {
	switch {
	case d > 0:
		return age(d) + " ahead of this machine's"
	case d < 0:
		return age(-d) + " behind this machine's"
	}
	return "as this machine's"
}

func printCheckup(e *env, c *checkup) error {
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s:\t%s\n", name, fmt.Sprintf(format, args...))
	}
	line("store", "%s%s", c.Store, suffix(c.Endpoint != "", " at "+c.Endpoint))
	if c.Reached {
		line("access", "ok: listed, read and written with these credentials")
		line("latency", "%.1f ms for a small read", c.LatencyMS)
	}
	if c.ClockAheadMS != nil {
		line("clock", "the store's is %s", describeAhead(c.ahead))
	}
	switch {
	case c.Published != "":
		line("published", "%s, the newest of %s", c.Published, count(c.Snapshots, "snapshot"))
	case c.Reached:
		line("published", "nothing")
	}
	for _, one := range c.Capabilities {
		if one.Has {
			line(one.Name, "ok")
		} else {
			line(one.Name, "NO: %s", one.Without)
		}
	}
	for _, left := range c.Left {
		line("left behind", "%s", left)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, f := range c.Findings {
		fmt.Fprintf(e.stdout, "\n%s\n", f.What)
		if f.Next != "" {
			fmt.Fprintf(e.stdout, "  %s\n", f.Next)
		}
	}
	switch {
	case c.ExitCode == exitcode.Done && len(c.Findings) == 0:
		fmt.Fprintln(e.stdout, "\nNothing is lacking.")
	case c.ExitCode == exitcode.Done:
		fmt.Fprintln(e.stdout, "\nThe store will do.")
	}
	return nil
}
