package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/sqlitelock"
)

// How often DIR is searched for new databases, if something was written, and how
// often for processes that opened one.
const (
	rescanEvery = 5 * time.Second
	usersEvery  = time.Minute
)

// guardian keeps applications that were pointed at DIR by mistake from writing
// past the mount, and says so loudly (DESIGN §3).
type guardian struct {
	guard        *sqlitelock.Guard
	lastMutation func() time.Time
	log          *slog.Logger
	warned       map[sqlitelock.User]bool
}

func newGuardian(l *local, lastMutation func() time.Time, log *slog.Logger) *guardian {
	return &guardian{guard: sqlitelock.NewGuard(l.dir.Root(), datadir.Outside(l.dir.Root()), log), lastMutation: lastMutation,
		log: log, warned: map[sqlitelock.User]bool{}}
}

// run looks at once and then again and again until ctx ends.
func (g *guardian) run(ctx context.Context) {
	tick := time.NewTicker(rescanEvery)
	defer tick.Stop()
	for {
		seen := g.lastMutation()
		g.look(true)
		for waited := time.Duration(0); waited < usersEvery; waited += rescanEvery {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if last := g.lastMutation(); !last.Equal(seen) {
				seen = last
				g.look(false)
			}
		}
	}
}

// look locks what is new, and looks for users too, which takes longer.
func (g *guardian) look(forUsers bool) {
	databases, err := g.guard.Rescan()
	var users []sqlitelock.User
	if err == nil && forUsers {
		users, err = sqlitelock.Users(databases)
	}
	if err != nil {
		g.log.Warn("DIR could not be searched for databases to protect", keyError, err)
	}
	for _, u := range users {
		if !g.warned[u] {
			g.warned[u] = true
			warnOfUser(g.log, u)
		}
	}
}

func (g *guardian) close() error { return g.guard.Close() }

// warnOfUsers reports processes that have a database of DIR open before anything
// is served: wherever they opened it, it was not on this mount.
func warnOfUsers(l *local, log *slog.Logger) {
	databases, err := sqlitelock.Find(l.dir.Root(), datadir.Outside(l.dir.Root()))
	var users []sqlitelock.User
	if err == nil {
		users, err = sqlitelock.Users(databases)
	}
	if err != nil {
		log.Warn("processes that use databases of DIR could not be looked for", keyError, err)
	}
	for _, u := range users {
		warnOfUser(log, u)
	}
}

func warnOfUser(log *slog.Logger, u sqlitelock.User) {
	log.Error("a process has a database of DIR open without a chromafs mount: what it writes there is not seen and may be lost; "+
		"stop it and let it use a mount", keyPID, u.PID, keyCommand, u.Command, keyPath, u.Path)
}
