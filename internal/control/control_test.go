package control

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/exitcode"
)

type fake struct {
	snapshot Snapshot
	status   Status
	err      error
	unmount  func(context.Context) error
}

func (f *fake) Snapshot(context.Context) (Snapshot, error) { return f.snapshot, f.err }
func (f *fake) Status(context.Context) (Status, error)     { return f.status, f.err }
func (f *fake) Unmount(ctx context.Context) error          { return f.unmount(ctx) }

func serve(t *testing.T, folder, key string, h Handler) *Server {
	t.Helper()
	s, err := Listen(folder, key, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func stop(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

func client(t *testing.T, key string, folders ...string) *Client {
	t.Helper()
	c, err := Connect(t.Context(), Target{Path: "/dir", Key: key}, folders)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRoundTrip(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "chromafs")
	now := time.Date(2026, 11, 22, 20, 15, 30, 0, time.UTC)
	h := &fake{
		snapshot: Snapshot{ID: "id", Sequence: 3, Created: now, Consistency: "quiescent", Files: 6, Bytes: 7, BytesUploaded: 8, Removed: 1, DurationMS: 9},
		status:   Status{Dir: "/dir", Mounted: true, Last: &LastSnapshot{ID: "id", Created: now}, DirtySince: &now, FreeBytes: 1 << 60},
	}
	s := serve(t, folder, "1-2", h)
	defer stop(t, s)
	c := client(t, "1-2", filepath.Join(t.TempDir(), "missing"), folder)
	snap, err := c.Snapshot(t.Context())
	if err != nil || snap != h.snapshot {
		t.Errorf("snapshot: %+v, %v", snap, err)
	}
	st, err := c.Status(t.Context())
	if err != nil || !reflect.DeepEqual(st, h.status) {
		t.Errorf("status: %+v, %v", st, err)
	}
	for path, want := range map[string]os.FileMode{"": 0o700 | os.ModeDir, "1-2.sock": 0o600 | os.ModeSocket} {
		if fi, err := os.Stat(filepath.Join(folder, path)); err != nil || fi.Mode() != want {
			t.Errorf("%q: %v, %v; want mode %v", path, fi.Mode(), err, want)
		}
	}
}

func TestErrorsKeepTheirCodeAndHint(t *testing.T) {
	folder := t.TempDir()
	s := serve(t, folder, "1-2", &fake{err: exitcode.New(exitcode.Store, errors.New("store s3://b/p: refused"), "check the key")})
	defer stop(t, s)
	_, err := client(t, "1-2", folder).Snapshot(t.Context())
	if err == nil || err.Error() != "store s3://b/p: refused" || exitcode.Of(err) != exitcode.Store || exitcode.Hint(err) != "check the key" {
		t.Errorf("got %v, code %d, hint %q", err, exitcode.Of(err), exitcode.Hint(err))
	}
}

// The next daemon may come before the last one has given its answers.
func TestWithdrawnSocketBelongsToTheNext(t *testing.T) {
	folder := t.TempDir()
	first := serve(t, folder, "1-2", &fake{status: Status{PID: 1}})
	if err := first.Withdraw(); err != nil {
		t.Fatal(err)
	}
	second := serve(t, folder, "1-2", &fake{status: Status{PID: 2}})
	defer stop(t, second)
	stop(t, first)
	if st, err := client(t, "1-2", folder).Status(t.Context()); err != nil || st.PID != 2 {
		t.Errorf("the second daemon answers %+v, %v", st, err)
	}
}

// Close waits for the answer of an unmount that itself ends the daemon.
func TestUnmountIsAnsweredBeforeTheServerEnds(t *testing.T) {
	folder := t.TempDir()
	asked, finish := make(chan struct{}), make(chan struct{})
	s := serve(t, folder, "1-2", &fake{unmount: func(context.Context) error {
		close(asked)
		<-finish
		return nil
	}})
	answered := make(chan error, 1)
	c := client(t, "1-2", folder)
	go func() { answered <- c.Unmount(t.Context()) }()
	<-asked
	closed := make(chan struct{})
	go func() { stop(t, s); close(closed) }()
	select {
	case err := <-answered:
		t.Fatalf("answered too early: %v", err)
	case <-closed:
		t.Fatal("closed under an unanswered request")
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	<-closed
	if _, err := Connect(t.Context(), Target{Path: "/dir", Key: "1-2"}, []string{folder}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

func TestStaleSocketIsReplacedALiveOneIsNot(t *testing.T) {
	folder := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(folder, "1-2.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as a killed daemon leaves it
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dead := Target{Path: "/dir", Key: "1-2", Mountpoint: "/mnt/x"}
	_, err = Connect(t.Context(), dead, []string{folder})
	var de *DeadError
	if !errors.As(err, &de) || !errors.Is(err, ErrNotRunning) || !strings.Contains(exitcode.Hint(err), "/mnt/x") {
		t.Errorf("a stale socket: %v", err)
	}
	s := serve(t, folder, "1-2", &fake{status: Status{PID: 1}})
	defer stop(t, s)
	if _, err := Listen(folder, "1-2", &fake{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("took the socket of a live daemon")
	}
	if st, err := client(t, "1-2", folder).Status(t.Context()); err != nil || st.PID != 1 {
		t.Errorf("the first daemon answers %+v, %v", st, err)
	}
}

func TestLongFolderNames(t *testing.T) {
	folder := filepath.Join(t.TempDir(), strings.Repeat("long/", 30), "chromafs")
	s := serve(t, folder, "18446744073709551615-18446744073709551615", &fake{status: Status{PID: 7}})
	defer stop(t, s)
	st, err := client(t, "18446744073709551615-18446744073709551615", folder).Status(t.Context())
	if err != nil || st.PID != 7 {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestListenRefusesAFolderOthersCanWrite(t *testing.T) {
	folder := t.TempDir()
	if err := os.Chmod(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(folder, "1-2", &fake{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("listens where anyone can put a socket")
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(link, "1-2", &fake{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("listens behind a symbolic link")
	}
}

func TestAnswerOfSomethingElse(t *testing.T) {
	folder := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(folder, "1-2.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.NotFoundHandler()}
	go srv.Serve(l)
	defer srv.Close()
	if err := client(t, "1-2", folder).Unmount(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("got %v", err)
	}
}

func TestFindOfAPlainDirectory(t *testing.T) {
	path := t.TempDir()
	target, err := Find(path)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := datadir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if target.Key != dir.Key() || target.OnMount || target.Mountpoint != "" {
		t.Errorf("%+v, want key %s", target, dir.Key())
	}
	if _, err := Find(filepath.Join(path, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func TestFolders(t *testing.T) {
	env := func(value string) func(string) string {
		return func(name string) string {
			if name == "XDG_RUNTIME_DIR" {
				return value
			}
			return ""
		}
	}
	for _, tc := range []struct {
		uid  int
		xdg  string
		want []string
	}{
		{0, "/run/user/0", []string{"/run/chromafs", "/tmp/chromafs-0"}},
		{1000, "/run/user/1000", []string{"/run/user/1000/chromafs", "/tmp/chromafs-1000"}},
		{1000, "", []string{"/tmp/chromafs-1000"}},
		{1000, "relative", []string{"/tmp/chromafs-1000"}},
	} {
		own := OwnFolders(tc.uid, env(tc.xdg))
		if !slices.Equal(own, tc.want) {
			t.Errorf("uid %d, XDG %q: %q", tc.uid, tc.xdg, own)
		}
		for _, path := range append(own, "/run/chromafs") {
			if !slices.Contains(Folders(tc.uid, env(tc.xdg)), path) {
				t.Errorf("uid %d, XDG %q: nobody would look in %s", tc.uid, tc.xdg, path)
			}
		}
	}
}

func TestListenFirstWorksWhereTheFirstCannotBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(t.TempDir(), "chromafs")
	s, err := ListenFirst([]string{filepath.Join(file, "chromafs"), folder}, "1-2", &fake{status: Status{PID: 1}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, s)
	if st, err := client(t, "1-2", folder).Status(t.Context()); err != nil || st.PID != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := ListenFirst([]string{filepath.Join(file, "chromafs")}, "1-2", &fake{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("listens nowhere")
	}
}
