package history

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/objstore"
	"github.com/chromafs/chromafs/internal/tree"
)

var errPending = errors.New("history: being written right now")

type Catalog struct {
	store objstore.Store
	log   *slog.Logger
}

func NewCatalog(store objstore.Store, log *slog.Logger) *Catalog { return &Catalog{store, log} }
func (c *Catalog) Store() objstore.Store                         { return c.store }
func (c *Catalog) Head(ctx context.Context) (Head, string, error) {
	return Head{}, "", errPending
}
func (c *Catalog) Manifest(ctx context.Context, id ID, wantSHA256 string) (*Manifest, error) {
	return nil, errPending
}
func (c *Catalog) PutManifest(ctx context.Context, m *Manifest) (string, error) {
	return "", errPending
}
func (c *Catalog) SwapHead(ctx context.Context, h Head, etag string) (string, error) {
	return "", errPending
}
func Rotate(ids []ID, keep int) (kept, removed []ID)                              { return nil, nil }
func (c *Catalog) Remove(ctx context.Context, id ID) error                        { return errPending }
func (c *Catalog) RefreshCurrent(ctx context.Context, prev, next *Manifest) error { return errPending }

// RepairCurrent is RefreshCurrent by a listing, for when it is not known what current holds.
func (c *Catalog) RepairCurrent(ctx context.Context, prev, next *Manifest) (copied int, err error) {
	return 0, errPending
}

// Listed is one line of the list.
type Listed struct {
	Summary
	Sequence, Epoch uint64
	Writer          string
	Consistency     Consistency
	Err             error // its manifest cannot be read
}

func (c *Catalog) List(ctx context.Context) ([]Listed, error)           { return nil, errPending }
func (c *Catalog) Resolve(ctx context.Context, text string) (ID, error) { return "", errPending }
func (c *Catalog) Clear(ctx context.Context) (removed int, err error)   { return 0, errPending }
func (c *Catalog) Adopt(ctx context.Context, id ID) (Head, error)       { return Head{}, errPending }

// DefaultPruneAge spares what a running writer may just be uploading.
const DefaultPruneAge = 24 * time.Hour

type PruneReport struct {
	Removed  []ID     // unlisted snapshots whose objects were removed
	Spared   []ID     // unlisted but younger than the age
	Branches []ID     // unlisted on purpose
	Unknown  []string // folders in history that are no ids; left alone
	Uploads  int      // abandoned uploads that were aborted
	Bytes    int64    // removed
}

func (c *Catalog) Prune(ctx context.Context, now time.Time, age time.Duration) (PruneReport, error) {
	return PruneReport{}, errPending
}

type VerifyReport struct {
	ID      ID
	Files   int
	Bytes   int64
	Damaged []*IntegrityError
}

func (c *Catalog) Verify(ctx context.Context, id ID) (VerifyReport, error) {
	return VerifyReport{}, errPending
}

type RestoreOptions struct {
	Dir            *datadir.Dir
	Manifest       *Manifest
	ManifestSHA256 string
	KeepLocal      bool
	Backups        int
	LocalClean     bool
	Parallel       int
	Now            func() time.Time
	Log            *slog.Logger
}

type RestoreResult struct {
	Files   int
	Bytes   int64
	Fetched int64  // bytes that came from the store
	Backup  string // path of the old local copy; "" where none was kept
	InPlace bool   // the old copy was overwritten for want of room
	Entries []tree.Entry
}

func Restore(ctx context.Context, c *Catalog, o RestoreOptions) (RestoreResult, error) {
	return RestoreResult{}, errPending
}

// Stage says how far an unfinished restore has come.
type Stage string

const (
	StageInPlace   Stage = "in-place"  // the local copy is being overwritten: needs the store
	StageRetire    Stage = "retire"    // the new copy is whole; the old one is being moved away
	StageInstall   Stage = "install"   // the new one is being moved in
	StageInstalled Stage = "installed" // all is in place; the journal is to be rebased
)

// Pending is an unfinished restore. Its Manifest is the one it began with, so that it can be
// finished where the store has rotated it away since (all stages but StageInPlace need no store).
type Pending struct {
	ID             ID
	Lineage        string
	Sequence       uint64
	Epoch          uint64
	ManifestSHA256 string
	Stage          Stage
}

func Unfinished(dir *datadir.Dir) (*Pending, error)             { return nil, errPending }
func (p *Pending) Manifest(dir *datadir.Dir) (*Manifest, error) { return nil, errPending }
func FinishRestore(dir *datadir.Dir) error                      { return errPending }
