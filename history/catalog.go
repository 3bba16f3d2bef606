package history

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/chromafs/chromafs/internal/objstore"
)

// Catalog reads and changes what a store holds of chromafs. It keeps no state of
// its own but what it has logged, and is safe for concurrent use.
type Catalog struct {
	store objstore.Store
	log   *slog.Logger
	rand  io.Reader // nonces and writer ids of its own writes

	noUploads atomic.Bool // that uploads cannot be looked for was logged
	noCopy    atomic.Bool // that "current" is sent, for want of copies, was logged
	unpinned  atomic.Bool // ETags are not those in the manifests: see fetchPart
}

// NewCatalog returns the catalog of a store. It asks once: a store that is to be
// asked again does that by itself (package retry).
func NewCatalog(store objstore.Store, log *slog.Logger) *Catalog {
	return &Catalog{store: store, log: log, rand: rand.Reader}
}

// Store returns the store.
func (c *Catalog) Store() objstore.Store { return c.store }

// parallel bounds the requests that one operation has under way.
const parallel = 8

// Head returns what is published, and the ETag on which the next publication is
// conditional. Where nothing is, the error is ErrNoBackup if a complete listing
// proves that nothing was (R4): then the head may name no snapshot, with its
// ETag, or be missing, with the ETag "". Otherwise it is ErrHeadLost, ErrForeign,
// ErrNewerFormat or the store's.
func (c *Catalog) Head(ctx context.Context) (Head, string, error) {
	h, etag, err := c.readHead(ctx)
	if err == nil && h.Newest != nil {
		return h, etag, nil
	}
	if err != nil && !errors.Is(err, objstore.ErrNotFound) && !errors.Is(err, errUnreadable) {
		return Head{}, "", err
	}
	return h, etag, c.proveEmpty(ctx, h, err)
}

// errUnreadable: manifest.json is there, but makes no sense.
var errUnreadable = errors.New("it is damaged")

// readHead reads manifest.json and nothing else, once more where it makes no sense: it
// may have been damaged on the way. An error that is errUnreadable comes with the ETag
// of what cannot be read.
func (c *Catalog) readHead(ctx context.Context) (Head, string, error) {
	h, etag, err := c.readHeadOnce(ctx)
	if errors.Is(err, errUnreadable) || errors.Is(err, ErrNewerFormat) {
		c.log.Warn("what is published cannot be read, reading it again", "error", err)
		return c.readHeadOnce(ctx)
	}
	return h, etag, err
}

func (c *Catalog) readHeadOnce(ctx context.Context) (Head, string, error) {
	data, obj, err := c.read(ctx, HeadKey, maxHeadBytes)
	if err != nil {
		return Head{}, "", fmt.Errorf("read what is published: %w", err)
	}
	h, err := DecodeHead(data)
	if errors.Is(err, ErrNewerFormat) {
		return Head{}, "", fmt.Errorf("read what is published in %s: %w", c.store, err)
	}
	if err != nil {
		return Head{}, obj.ETag, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return h, obj.ETag, nil
}

// read returns an object of at most limit bytes; of a bigger one limit+1 bytes.
func (c *Catalog) read(ctx context.Context, key string, limit int64) ([]byte, objstore.Object, error) {
	body, obj, err := c.store.Get(ctx, key, objstore.GetOptions{})
	if err != nil {
		return nil, obj, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	return data, obj, err
}

// proveEmpty says why a store without a usable head is without one. It returns an
// error always. cause is nil where the head is fine and names no snapshot.
func (c *Catalog) proveEmpty(ctx context.Context, h Head, cause error) error {
	found, err := c.scan(ctx, "")
	if err == nil && found.stray != "" { // some servers list for a moment what is being written (versitygw)
		found, err = c.scan(ctx, "")
	}
	if err != nil {
		return fmt.Errorf("look for a backup: %w", err)
	}
	if cause != nil && len(found.folders) > 0 {
		newest, err := c.newestWhole(ctx, found)
		if err != nil {
			return err
		}
		lost := &HeadLostError{Store: c.store.String(), Snapshots: len(found.folders)}
		if errors.Is(cause, errUnreadable) {
			lost.Cause = cause
		}
		if newest != nil {
			lost.Newest = newest.ID
		}
		return lost
	}
	if found.stray != "" {
		return &ForeignError{Store: c.store.String(), Key: found.stray}
	}
	if errors.Is(cause, errUnreadable) {
		return &HeadLostError{Store: c.store.String(), Cause: cause}
	}
	empty := &NoBackupError{Store: c.store.String(), Branches: found.branches()}
	newest, err := c.newestWhole(ctx, found)
	if err != nil {
		return err
	}
	if newest != nil {
		empty.Unpublished = newest.ID
	}
	return empty
}

// Manifest reads what a snapshot holds and checks it against its SHA-256, as the
// head or an intent names it ("" where it is not known); one that is damaged is read
// once more, for that may have happened on the way. A snapshot that is gone is
// ErrGone; one that the head lists all the same, or a manifest that is damaged or
// hostile, is ErrIntegrity.
func (c *Catalog) Manifest(ctx context.Context, id ID, wantSHA256 string) (*Manifest, error) {
	m, err := c.manifestOnce(ctx, id, wantSHA256)
	if errors.Is(err, ErrIntegrity) || errors.Is(err, ErrNewerFormat) {
		c.log.Warn("the manifest of a snapshot is damaged, reading it again", "id", id, "error", err)
		return c.manifestOnce(ctx, id, wantSHA256)
	}
	return m, err
}

func (c *Catalog) manifestOnce(ctx context.Context, id ID, wantSHA256 string) (*Manifest, error) {
	data, err := c.manifestBytes(ctx, id)
	if err != nil {
		return nil, err
	}
	if got := sumHex(data); wantSHA256 != "" && got != wantSHA256 {
		return nil, &IntegrityError{ID: id, Part: -1, Err: fmt.Errorf("its SHA-256 is %s, not %s", got, wantSHA256)}
	}
	return decodeManifestOf(id, data)
}

func (c *Catalog) manifestBytes(ctx context.Context, id ID) ([]byte, error) {
	data, _, err := c.read(ctx, ManifestKey(id), maxManifestBytes)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil, c.missing(ctx, id, &IntegrityError{ID: id, Part: -1, Err: err})
	}
	if err != nil {
		return nil, fmt.Errorf("read the manifest of snapshot %s: %w", id, err)
	}
	return data, nil
}

func decodeManifestOf(id ID, data []byte) (*Manifest, error) {
	m, err := DecodeManifest(data)
	switch {
	case errors.Is(err, ErrNewerFormat):
		return nil, fmt.Errorf("read the manifest of snapshot %s: %w", id, err)
	case err != nil:
		return nil, &IntegrityError{ID: id, Part: -1, Err: err}
	case m.ID != id:
		return nil, &IntegrityError{ID: id, Part: -1, Err: fmt.Errorf("it is that of snapshot %s", m.ID)}
	}
	return m, nil
}

// missing says what it means that an object of a snapshot is not there: rotated
// away is ErrGone, listed all the same is the error damage. So it is with a branch
// that is not complete, or is.
func (c *Catalog) missing(ctx context.Context, id ID, damage error) error {
	if id.IsBranch() {
		found, err := c.scan(ctx, SnapshotPrefix(id))
		switch {
		case err != nil:
			return fmt.Errorf("look whether branch %s is still there: %w", id, err)
		case found.folders[id].complete(id):
			return damage
		}
		return fmt.Errorf("branch %s: %w", id, ErrGone)
	}
	h, _, err := c.readHead(ctx)
	switch {
	case errors.Is(err, objstore.ErrNotFound), err == nil && h.Lists(id):
		return damage
	case err != nil:
		return fmt.Errorf("look whether snapshot %s is still listed: %w", id, err)
	}
	return fmt.Errorf("snapshot %s: %w", id, ErrGone)
}

// PutManifest stores a manifest, create-only (H1), and returns its SHA-256. That
// it is there already, byte for byte, is success: an answer was lost.
func (c *Catalog) PutManifest(ctx context.Context, m *Manifest) (string, error) {
	data, err := EncodeManifest(m)
	if err != nil {
		return "", err
	}
	_, err = c.store.Put(ctx, ManifestKey(m.ID), bytes.NewReader(data), int64(len(data)),
		objstore.PutOptions{IfAbsent: true, ContentType: "application/json"})
	if errors.Is(err, objstore.ErrPrecondition) {
		there, _, rerr := c.read(ctx, ManifestKey(m.ID), int64(len(data)))
		if rerr != nil {
			return "", fmt.Errorf("store the manifest of snapshot %s: %w", m.ID, errors.Join(err, rerr))
		}
		if bytes.Equal(there, data) {
			return sumHex(data), nil
		}
	}
	if err != nil {
		return "", fmt.Errorf("store the manifest of snapshot %s: %w", m.ID, err)
	}
	return sumHex(data), nil
}
