package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Server answers on the socket of one DIR. Its methods are not for concurrent use.
type Server struct {
	http      *http.Server
	folder    *folder
	key       string
	withdrawn bool
	done      chan error
}

// Listen makes the socket of key in a folder, which is made too, and answers on
// it by asking h. What a dead daemon left there is replaced; a socket that
// answers is an error. The caller holds DIR's lock.
func Listen(path, key string, h Handler, log *slog.Logger) (*Server, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the control socket: %w", err)
	}
	f, err := openFolder(path)
	if err != nil {
		return nil, fmt.Errorf("make the control socket: %w", err)
	}
	l, err := listen(f, key)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the control socket: %w", err), f.file.Close())
	}
	s := &Server{
		folder: f, key: key, done: make(chan error, 1),
		http: &http.Server{
			Handler:           routes(h, log),
			ReadHeaderTimeout: 10 * time.Second,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
	}
	go func() { s.done <- s.http.Serve(l) }()
	return s, nil
}

// ListenFirst is Listen in the first of several folders in which that works.
func ListenFirst(paths []string, key string, h Handler, log *slog.Logger) (*Server, error) {
	var errs []error
	for _, path := range paths {
		s, err := Listen(path, key, h, log)
		if err == nil {
			return s, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func listen(f *folder, key string) (*net.UnixListener, error) {
	if err := f.private(); err != nil {
		return nil, err
	}
	address := f.address(key)
	switch c, err := net.Dial("unix", address); {
	case err == nil:
		c.Close()
		return nil, fmt.Errorf("%s/%s.sock: another daemon answers there", f.path, key)
	case errors.Is(err, unix.ECONNREFUSED):
		if err := os.Remove(address); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // Close does that, before the folder's descriptor goes
	if err := os.Chmod(address, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Withdraw removes the socket, so that the next daemon of this DIR can make its
// own, while the answers under way are still given. Once it was called, the
// caller may give DIR's lock back.
func (s *Server) Withdraw() error {
	if s.withdrawn {
		return nil
	}
	s.withdrawn = true
	if err := os.Remove(s.folder.address(s.key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Close withdraws the socket, waits for the answers under way until ctx ends, and
// stops.
func (s *Server) Close(ctx context.Context) error {
	err := errors.Join(s.Withdraw(), s.http.Shutdown(ctx))
	if serveErr := <-s.done; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return errors.Join(err, s.folder.file.Close())
}

func routes(h Handler, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		st, err := h.Status(r.Context())
		answer(w, log, st, err)
	})
	mux.HandleFunc("POST /snapshot", func(w http.ResponseWriter, r *http.Request) {
		snap, err := h.Snapshot(r.Context())
		answer(w, log, snap, err)
	})
	mux.HandleFunc("POST /unmount", func(w http.ResponseWriter, r *http.Request) {
		answer(w, log, struct{}{}, h.Unmount(r.Context()))
	})
	return mux
}

func answer(w http.ResponseWriter, log *slog.Logger, value any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		value = remote(err)
	}
	if err := json.NewEncoder(w).Encode(value); err != nil {
		log.Debug("a command hung up before its answer", "error", err)
	}
}
