package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/fusefs"
	"github.com/chromafs/chromafs/history"
	"github.com/chromafs/chromafs/internal/control"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/dirview"
	"github.com/chromafs/chromafs/internal/objstore/retry"
	"github.com/chromafs/chromafs/internal/reconcile"
	"github.com/chromafs/chromafs/uploader"
)

// session is one mount from its start to its end (end.go).
//
// What start sets is not changed afterwards. The control socket's handlers run at
// the same time as run and end; they ask the journal, the uploader and the file
// system, which are safe for that, and stop being answered once gone is closed.
type session struct {
	env     *env
	options mountOptions
	place   place
	local   *local
	ready   *readiness

	catalog  *history.Catalog
	known    *knowledge // of the store
	uploader *uploader.Uploader
	handover *handover        // nil until the store is known
	origin   reconcile.Result // how DIR was brought up to date
	fs       *fusefs.FS       // nil until it is mounted
	server   *control.Server
	guard    *guardian // nil where MOUNTPOINT is DIR
	child    *child    // nil without a COMMAND

	background sync.WaitGroup     // the uploader's Run and the guard
	stopRun    context.CancelFunc // ends them

	askedOnce sync.Once
	asked     chan struct{} // closed when somebody asked for an unmount
	gone      chan struct{} // closed when the mount, its journal and its lock are gone
	result    error         // of the end; read after gone
}

// processors is how many goroutines may run at once while a mount is served, on any
// machine. A thread that comes back from reading /dev/fuse can only go on with one
// of Go's processors. With as many as the machine has cores, all of them tend to
// belong to threads that are still blocked in the kernel, and the request waits
// until the scheduler notices (on two cores, a SQLite transaction took 1.9 ms with
// 2, 1.7 with 4, 1.55 with 8 and no less with 16).
const processors = 8

// useProcessors sees to that, unless the environment says otherwise. It comes after
// mounting: as many goroutines read requests as there were processors then, and when
// a burst of them is spread over many threads, each has to be woken.
func useProcessors() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < processors {
		runtime.GOMAXPROCS(processors)
	}
}

// start does everything that comes before the mount is of use, in the order of
// DESIGN §7. Where it fails, abandon takes back what it did.
func (s *session) start(ctx context.Context) error {
	s.asked, s.gone = make(chan struct{}), make(chan struct{})
	if err := s.ready.detach(s.local.dir, s.env.log); err != nil {
		return err
	}
	var err error
	if s.catalog, s.known, err = s.options.store.openToWrite(s.env, s.local.dir.State(), retry.Patient); err != nil {
		return err
	}
	s.handover = newHandover(s)
	s.uploader, err = newUploader(s.env, s.local, s.catalog, s.known, s.options.upload, s.cut, s.lastMutation, s.handover.tookOver)
	if err != nil {
		return err
	}
	warnOfUsers(s.local, s.env.log)
	// A mount that cannot come about must not take the store over: that fences
	// whoever serves it now.
	if err := fusefs.CanMount(s.local.dir); err != nil {
		return err
	}
	if err := s.reconcile(ctx); err != nil {
		return err
	}
	scratch, err := parseScratchLimit(s.options.scratchLimit)
	if err != nil {
		return err
	}
	s.fs, err = fusefs.Mount(ctx, fusefs.Options{
		Dir: s.local.dir, Mountpoint: s.place.mountpoint, Recorder: s.local.journal,
		AllowOther: s.options.allowOther, FirstCut: s.local.journal.State().Cut + 1, Key: s.local.dir.Key(),
		QuiesceTimeout: s.options.quiesceTimeout, ScratchLimit: scratch, Log: s.env.log, Now: s.env.now,
	})
	if err != nil {
		return err
	}
	useProcessors()
	folders := control.OwnFolders(os.Geteuid(), s.env.getenv)
	if s.server, err = control.ListenFirst(folders, s.local.dir.Key(), handler{s}, s.env.log); err != nil {
		return err
	}
	s.startBackground()
	if s.place.command != nil {
		if s.child, err = startChild(s.place.command, s.place.workDir, s.env.log); err != nil {
			return err
		}
	}
	close(s.handover.serving)
	return s.ready.announce()
}

// newUploader wires an uploader for a DIR that this process holds.
func newUploader(e *env, l *local, c *history.Catalog, k *knowledge, o uploadOptions,
	cut func(context.Context) (uploader.View, error), lastMutation func() time.Time, tookOver func(history.Head)) (*uploader.Uploader, error) {
	most, _ := parseSize(o.maxFile) // validated
	return uploader.New(uploader.Options{
		MaxSparse: most, Cut: cut, Queue: l.journal, Catalog: c, Check: databaseCheck(o.verify, e.log), Ready: k.ready,
		Interval: o.interval, Settle: o.settle, Keep: o.keep, LastMutation: lastMutation,
		Now: e.now, Rand: rand.Reader, Log: e.log, TookOver: tookOver,
	})
}

// startBackground starts the uploader and, where DIR can be reached beside the
// mount, the guard.
func (s *session) startBackground() {
	ctx, cancel := context.WithCancel(context.Background())
	s.stopRun = cancel
	if !s.place.same {
		s.guard = newGuardian(s.local, s.lastMutation, s.env.log)
		s.background.Go(func() { s.guard.run(ctx) })
	}
	s.background.Go(func() {
		if err := s.uploader.Run(ctx); err != nil {
			s.env.log.Error("the uploader stopped; nothing is stored any more until the next mount", keyError, err)
		}
	})
}

// cut takes the view that the next snapshot is made of: of the mount while it is
// there, of DIR itself once it is gone.
func (s *session) cut(ctx context.Context) (uploader.View, error) {
	var view uploader.View
	var err error
	if s.mounted() {
		view, err = s.fs.Cut(ctx)
	} else {
		view, err = dirview.New(ctx, dirview.Options{
			Root:   s.local.dir.Root(),
			Number: max(s.fs.Info().Cut, s.local.journal.State().Cut) + 1,
			Skip:   datadir.Outside(s.local.dir.Root()),
			Now:    s.env.now,
			Log:    s.env.log,
		})
	}
	if err != nil {
		s.local.noteSpace(err)
		return nil, err
	}
	return view, nil
}

func (s *session) lastMutation() time.Time {
	if s.fs == nil {
		return time.Time{}
	}
	return s.fs.LastMutation()
}

// run serves until something says that it is to end, and ends it.
func (s *session) run(signals <-chan os.Signal) error {
	s.env.log.Info("serving", keyDir, s.local.dir.Path(), keyMountpoint, s.place.mountpoint,
		keyStore, s.catalog.Store().String(), keyPID, os.Getpid())
	var childDone <-chan struct{}
	if s.child != nil {
		childDone = s.child.done
	}
	for {
		select {
		case sig := <-signals:
			if !s.isEnd(sig) {
				s.passOn(sig)
				continue
			}
			return s.endWith(signals, "signal "+sig.String(), sig)
		case <-childDone:
			return s.endWith(signals, "the command ended", unix.SIGTERM)
		case <-s.fs.Done():
			return s.endWith(signals, "unmounted from outside", unix.SIGTERM)
		case <-s.asked:
			return s.endWith(signals, "unmount was asked for", unix.SIGTERM)
		}
	}
}

// isEnd reports whether a signal ends the mount. A COMMAND decides itself what a
// hangup means; without one it means that the terminal is gone.
func (s *session) isEnd(sig os.Signal) bool {
	return sig == unix.SIGTERM || sig == unix.SIGINT || s.child == nil && (sig == unix.SIGHUP || sig == unix.SIGQUIT)
}

func (s *session) passOn(sig os.Signal) {
	if s.child != nil {
		s.child.signal(sig)
	}
}

// endWith ends the mount while signals go on being passed to the COMMAND.
func (s *session) endWith(signals <-chan os.Signal, reason string, sig os.Signal) error {
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case sig := <-signals:
				s.passOn(sig)
			case <-ended:
				return
			}
		}
	}()
	return s.end(reason, sig)
}

// abandon takes a start that failed back. Nothing was written through the mount
// that the journal does not know.
func (s *session) abandon() error {
	var errs []error
	if s.child != nil { // it must not live on, on a mount that nobody serves
		s.child.stop(unix.SIGTERM, s.options.stopTimeout)
	}
	if s.stopRun != nil {
		s.stopRun()
		s.background.Wait()
	}
	if s.handover != nil {
		s.handover.close()
	}
	if s.fs != nil {
		errs = append(errs, s.fs.Unmount(true))
	}
	if s.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
		defer cancel()
		errs = append(errs, s.server.Close(ctx))
	}
	if s.guard != nil {
		errs = append(errs, s.guard.close())
	}
	if err := errors.Join(append(errs, s.local.close())...); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}
