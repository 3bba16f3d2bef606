package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
	"github.com/chromafs/chromafs/uploader"
)

const (
	answerTimeout = 5 * time.Second        // for answers under way when the socket closes
	busyTimeout   = time.Second            // how long a mount in use is asked again before it is detached
	busyRetry     = 20 * time.Millisecond  // between two of those
	firstRetry    = 500 * time.Millisecond // of the final flush while the store is unavailable
	maxRetry      = 10 * time.Second
)

var errFlushTimeout = errors.New("--flush-timeout has passed")

// end brings the mount to its end (DESIGN §6): a snapshot starts at once, beside
// the COMMAND's own stop; what was written meanwhile follows once nobody can write
// any more; then everything is given back, the store to whoever waits for it included.
// It returns what the process ends with.
func (s *session) end(reason string, sig os.Signal) error {
	log := s.env.log
	log.Info("ending", keyReason, reason)
	s.handover.keeper.Ending()
	ctx, cancel := context.WithTimeoutCause(context.Background(), s.options.flushTimeout, errFlushTimeout)
	defer cancel()
	first := make(chan struct{})
	go func() {
		defer close(first)
		// Handed over to a mount that has not come: what was written since gets into the list.
		if s.uploader.Status().Yielded {
			if _, err := s.uploader.Reclaim(ctx); err != nil {
				log.Warn("the store stays handed over; what was written since goes to a branch", keyError, err)
			}
		}
		// The uploader logs a failure; the last delta tries again.
		_, _ = s.uploader.Snapshot(ctx)
	}()
	if s.child != nil {
		s.child.stop(sig, s.options.stopTimeout)
	}
	<-first
	detached := s.takeDown()
	s.stopRun()
	s.background.Wait()
	flushErr := s.flush(ctx)
	s.result = s.verdict(flushErr)
	s.handover.close()
	closeErr := s.giveBack(detached)
	close(s.gone)
	ctx, cancel = context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	closeErr = errors.Join(closeErr, s.server.Close(ctx))
	if closeErr != nil {
		log.Error("not everything could be put in order; the next mount looks at every file", keyError, closeErr)
	}
	if s.child != nil && s.child.code != 0 {
		if s.result != nil {
			log.Error("the final snapshot is not complete", keyError, s.result)
		}
		return &silentError{s.child.code}
	}
	return s.result
}

// takeDown unmounts. Where other processes still use the mount, its name is taken
// away and they go on until this process ends; it reports whether that was so.
func (s *session) takeDown() (detached bool) {
	deadline := time.Now().Add(busyTimeout)
	err := s.fs.Unmount(false)
	for errors.Is(err, syscall.EBUSY) && time.Now().Before(deadline) {
		time.Sleep(busyRetry)
		err = s.fs.Unmount(false)
	}
	if err == nil {
		return false
	}
	if errors.Is(err, syscall.EINVAL) {
		s.env.log.Warn("the mount was detached by someone else and is still in use", keyMountpoint, s.place.mountpoint)
		return true
	}
	s.env.log.Warn("the mount is in use; it is detached, and what is written to it from now on may have to wait for the next mount",
		keyMountpoint, s.place.mountpoint, keyError, err)
	if err := s.fs.Unmount(true); err != nil {
		s.env.log.Error("the mount could not be taken away", keyMountpoint, s.place.mountpoint, keyError, err)
	}
	return true
}

// flush takes snapshots until nothing is dirty, and tries again while the store is
// unavailable, until ctx ends.
func (s *session) flush(ctx context.Context) error {
	wait := firstRetry
	for {
		// While it is mounted the kernel may hold writes that no mark tells of yet.
		if !s.mounted() && s.local.journal.Dirty().Empty() && s.local.journal.State().Intent == nil {
			return nil
		}
		_, err := s.uploader.Snapshot(ctx)
		switch {
		case err == nil && s.mounted():
			return nil // detached: whoever still writes would keep this going for ever
		case err == nil:
			continue
		case ctx.Err() != nil || !errors.Is(err, objstore.ErrUnavailable):
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
			wait = min(2*wait, maxRetry)
		}
	}
}

func (s *session) mounted() bool {
	select {
	case <-s.fs.Done():
		return false
	default:
		return true
	}
}

// verdict says what is left behind, as an error for the person who asked.
func (s *session) verdict(flushErr error) error {
	dirty := s.local.journal.Dirty()
	if dirty.Empty() && flushErr == nil {
		return nil
	}
	if flushErr == nil {
		flushErr = errors.New("processes that still used the mount wrote after the last snapshot")
	}
	if up := s.uploader.Status(); up.Fenced || up.Yielded {
		return s.leftAside(flushErr)
	}
	code, hint := exitcode.Store, "nothing is lost: it is on the local disk, marked, and is stored after the next mount of "+s.place.dir
	switch own := exitcode.Hint(flushErr); {
	case errors.Is(flushErr, uploader.ErrWiped):
		hint = own
	case errors.Is(flushErr, uploader.ErrDamaged):
		code, hint = exitcode.Integrity, own
	case own != "":
		hint += "; " + own
	}
	return exitcode.New(code, fmt.Errorf("the final snapshot of %s is not complete: %w", s.place.dir, flushErr), hint)
}

// leftAside is the verdict on a writer whose changes are in no list: they are on a
// branch, if one could be stored, and on the local disk. That is a conflict although
// nothing is lost; where what was written came to nothing, there is none.
func (s *session) leftAside(flushErr error) error {
	const then = "the next mount of %[1]s serves the store's newest snapshot and keeps what is local in .chromafs/backups"
	var fenced *uploader.AsideError
	if errors.As(flushErr, &fenced) && fenced.Branch != "" {
		return exitcode.New(exitcode.Conflict, fmt.Errorf("the list of snapshots does not have what %s holds: %w", s.place.dir, flushErr),
			fmt.Sprintf("nothing is lost: "+then+"; to go on with the branch instead: chromafs restore --at %[2]s %[1]s, then mount", s.place.dir, fenced.Branch))
	}
	if fenced != nil && fenced.Failed == nil {
		return nil
	}
	hint := fmt.Sprintf("nothing is lost as long as this disk is there: "+then+" and as a branch in the store", s.place.dir)
	if fenced != nil && exitcode.Hint(fenced.Failed) != "" {
		hint += "; " + exitcode.Hint(fenced.Failed)
	}
	return exitcode.New(exitcode.Conflict, fmt.Errorf("the store does not have what %s holds: %w", s.place.dir, flushErr), hint)
}

// giveBack records the clean stop and gives back the socket's name, the guard, the
// journal and the lock, in this order: once the lock is free, the next mount finds
// nothing in its way.
func (s *session) giveBack(detached bool) error {
	var errs []error
	if !detached && !s.mounted() {
		entries, _, err := tree.Walk(s.local.dir.Root(), datadir.Outside(s.local.dir.Root()))
		if err == nil {
			err = s.local.journal.Stop(entries)
		}
		errs = append(errs, err)
	}
	errs = append(errs, s.server.Withdraw())
	if s.guard != nil {
		errs = append(errs, s.guard.close())
	}
	return errors.Join(append(errs, s.local.close())...)
}
