package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"

	"golang.org/x/sys/unix"
)

// Client asks one running mount.
type Client struct {
	http   *http.Client
	folder *folder
}

// Connect finds the socket of a target's mount in the first of the folders that
// has one which answers. It fails with ErrNotRunning where none does: with
// *DeadError where a mount is in sight all the same.
func Connect(ctx context.Context, t Target, folders []string) (*Client, error) {
	var forbidden error
	for _, path := range folders {
		c, err := connect(ctx, path, t.Key)
		switch {
		case err == nil:
			return c, nil
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR):
		case errors.Is(err, fs.ErrPermission):
			forbidden = err
		default:
			return nil, fmt.Errorf("ask the mount of %s: %w", t.Path, err)
		}
	}
	switch {
	case t.Mountpoint != "" && forbidden != nil:
		return nil, &ForbiddenError{Err: forbidden}
	case t.Mountpoint != "":
		return nil, &DeadError{Mountpoint: t.Mountpoint}
	default:
		return nil, fmt.Errorf("%s: %w", t.Path, ErrNotRunning)
	}
}

func connect(ctx context.Context, path, key string) (*Client, error) {
	f, err := openFolder(path)
	if err != nil {
		return nil, err
	}
	if err := f.trusted(); err != nil {
		return nil, errors.Join(err, f.file.Close())
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", f.address(key))
	}
	conn, err := dial(ctx, "", "")
	if err != nil {
		return nil, errors.Join(err, f.file.Close())
	}
	return &Client{
		http:   &http.Client{Transport: &http.Transport{DialContext: dial}},
		folder: f,
	}, conn.Close()
}

// Close hangs up.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return c.folder.file.Close()
}

// Status asks for the mount's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	return st, c.ask(ctx, http.MethodGet, "status", &st)
}

// Snapshot asks for a snapshot and waits for it.
func (c *Client) Snapshot(ctx context.Context) (Snapshot, error) {
	var snap Snapshot
	return snap, c.ask(ctx, http.MethodPost, "snapshot", &snap)
}

// Unmount asks for the final flush and waits until the mount is gone.
func (c *Client) Unmount(ctx context.Context) error {
	return c.ask(ctx, http.MethodPost, "unmount", nil)
}

// answerLimit bounds what is read of one answer; a status is a few hundred bytes.
const answerLimit = 1 << 20

func (c *Client) ask(ctx context.Context, method, what string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://chromafs/"+what, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the mount for %s: %w", what, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit))
	if err != nil {
		return fmt.Errorf("ask the mount for %s: %w", what, err)
	}
	if resp.StatusCode != http.StatusOK {
		var failed RemoteError
		if err := json.Unmarshal(body, &failed); err != nil || failed.Message == "" {
			return fmt.Errorf("ask the mount for %s: it answered %s: %.200q", what, resp.Status, body)
		}
		return &failed
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("ask the mount for %s: read its answer: %w", what, err)
	}
	return nil
}
