package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"

	"github.com/chromafs/chromafs/internal/exitcode"
)

// command is one subcommand.
type command struct {
	name  string // one word, or two: "history list"
	args  string // what follows the flags, for the usage line
	short string // one line
	long  string // what else its help says; may be ""
	// setup adds the command's flags and returns what runs it once they are parsed.
	setup func(*pflag.FlagSet) runner
}

// runner runs a command with the arguments that are no flags.
type runner func(ctx context.Context, e *env, args arguments) error

// arguments are what is left of a command line without the flags.
type arguments struct {
	words []string
	dash  int // how many of the words stand before "--"; -1: there is none
}

// commands lists all subcommands in the order in which help shows them.
func commands() []command {
	return []command{
		mountCommand(), snapshotCommand(), restoreCommand(), syncCommand(),
		historyListCommand(), historyClearCommand(), historyPruneCommand(), historyVerifyCommand(), historyAdoptCommand(),
		statusCommand(), doctorCommand(), unmountCommand(), versionCommand(),
	}
}

// dispatch finds the command, parses its flags and runs it.
func dispatch(ctx context.Context, e *env, args []string) error {
	if len(args) == 0 {
		printOverview(e.stderr)
		return usageError("no command was given")
	}
	switch args[0] {
	case "help", "-h", "--help":
		return help(e, args[1:])
	case "--version":
		args = []string{"version"}
	}
	c, rest, err := find(args)
	if err != nil {
		return err
	}
	flags := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	flags.SortFlags = false
	run := c.setup(flags)
	if err := flags.Parse(rest); errors.Is(err, pflag.ErrHelp) {
		printHelp(e.stdout, c)
		return nil
	} else if err != nil {
		return exitcode.New(exitcode.Usage, fmt.Errorf("%s: %w", c.name, err), "chromafs "+c.name+" --help shows its flags")
	}
	if err := fromEnvironment(flags, e.getenv); err != nil {
		return err
	}
	return run(ctx, e, arguments{flags.Args(), flags.ArgsLenAtDash()})
}

// find returns the command whose name the first one or two words are.
func find(args []string) (command, []string, error) {
	var group []string
	for _, c := range commands() {
		words := strings.Fields(c.name)
		if args[0] != words[0] {
			continue
		}
		if len(words) == 1 {
			return c, args[1:], nil
		}
		if len(args) > 1 && args[1] == words[1] {
			return c, args[2:], nil
		}
		group = append(group, words[1])
	}
	if group != nil {
		return command{}, nil, usageError("%s: one of %s must follow", args[0], strings.Join(group, ", "))
	}
	return command{}, nil, usageError("no such command: %s", args[0])
}

// variable returns the name of the environment variable of a flag.
func variable(flag string) string {
	return "CHROMAFS_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// strangers returns the variables of an environment that look like ours and belong
// to no flag: most likely they are misspelt. Those of tests and scripts are fine.
func strangers(environ []string) (names []string) {
	known := map[string]bool{readyVariable: true}
	for _, c := range commands() {
		flags := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
		c.setup(flags)
		flags.VisitAll(func(f *pflag.Flag) { known[variable(f.Name)] = true })
	}
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "CHROMAFS_") && !known[name] &&
			!strings.HasPrefix(name, "CHROMAFS_TEST_") && !strings.HasPrefix(name, "CHROMAFS_FAILPOINTS") &&
			!strings.HasPrefix(name, "CHROMAFS_QUICKSTART_") {
			names = append(names, name)
		}
	}
	return names
}

// fromEnvironment gives flags that were not set on the command line the values of
// their environment variables.
func fromEnvironment(flags *pflag.FlagSet, getenv func(string) string) error {
	var first error
	flags.VisitAll(func(f *pflag.Flag) {
		value := getenv(variable(f.Name))
		if f.Changed || value == "" || first != nil {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			first = exitcode.New(exitcode.Usage, fmt.Errorf("environment variable %s: %w", variable(f.Name), err), "correct or unset it")
		}
	})
	return first
}

func help(e *env, args []string) error {
	if len(args) == 0 {
		printOverview(e.stdout)
		return nil
	}
	if len(args) == 1 {
		for _, c := range commands() {
			if strings.HasPrefix(c.name, args[0]+" ") {
				printOverview(e.stdout)
				return nil
			}
		}
	}
	c, _, err := find(args)
	if err != nil {
		return err
	}
	printHelp(e.stdout, c)
	return nil
}

func printOverview(w io.Writer) {
	fmt.Fprint(w, "chromafs keeps a ChromaDB directory alive on machines whose disk does not last.\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  chromafs %s\n        %s\n", usageLine(c), c.short)
	}
	fmt.Fprint(w, `
Every flag can be given as an environment variable: --store as CHROMAFS_STORE,
--s3-endpoint as CHROMAFS_S3_ENDPOINT. A flag on the command line wins.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 store unreachable or refused,
4 another writer holds the store or the two sides diverged, 5 integrity,
6 no space. mount with a COMMAND exits with the command's own code first.
`)
}

func usageLine(c command) string {
	line := c.name + " [flags]"
	if c.args != "" {
		line += " " + c.args
	}
	return line
}

func printHelp(w io.Writer, c command) {
	flags := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	flags.SortFlags = false
	c.setup(flags)
	fmt.Fprintf(w, "%s\n\n  chromafs %s\n", c.short, usageLine(c))
	if c.long != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(c.long))
	}
	if flags.HasFlags() {
		fmt.Fprintf(w, "\nFlags (each also as an environment variable, --%s as %s):\n%s",
			firstFlag(flags), variable(firstFlag(flags)), flags.FlagUsages())
	}
}

func firstFlag(flags *pflag.FlagSet) (name string) {
	flags.VisitAll(func(f *pflag.Flag) {
		if name == "" {
			name = f.Name
		}
	})
	return name
}

// take checks how many words a command got and hands them out.
func (a arguments) take(what string, least, most int) ([]string, error) {
	if len(a.words) < least || len(a.words) > most {
		return nil, usageError("%s: %d arguments, want %s", what, len(a.words), plural(least, most))
	}
	return a.words, nil
}

func plural(least, most int) string {
	if least == most {
		return fmt.Sprint(least)
	}
	return fmt.Sprintf("%d to %d", least, most)
}
