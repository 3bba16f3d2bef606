package history

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chromafs/chromafs/internal/atomicfile"
	"github.com/chromafs/chromafs/internal/datadir"
	"github.com/chromafs/chromafs/internal/exitcode"
	"github.com/chromafs/chromafs/internal/tree"
)

// Stage says how far an unfinished restore has come.
type Stage string

// The stages that have an intent.
const (
	StageInPlace   Stage = "in-place"  // DIR itself is being overwritten: only the store can finish it
	StageRetire    Stage = "retire"    // the new copy is whole; the old one is being moved away
	StageInstall   Stage = "install"   // the new one is being moved in
	StageInstalled Stage = "installed" // the new one is in place; the journal may not know yet
)

// Pending is an unfinished restore.
type Pending struct {
	ID             ID     `json:"id"`
	Lineage        string `json:"lineage"`
	Sequence       uint64 `json:"sequence"`
	Epoch          uint64 `json:"epoch"`
	ManifestSHA256 string `json:"manifest_sha256,omitempty"`
	Stage          Stage  `json:"stage"`
}

// intent is what .chromafs/restore.json holds: from when it is there until
// FinishRestore, DIR is not to be served.
type intent struct {
	Format int `json:"format"`
	Pending
	Backup  string `json:"backup,omitempty"`   // name in backups/ for the old copy; "": it is removed
	InPlace bool   `json:"in_place,omitempty"` // it was installed in place
}

const (
	intentName     = datadir.RestorePrefix + ".json" // in .chromafs
	maxIntentBytes = 64 << 10
)

// Names in scratch/. All begin with datadir.RestorePrefix.
func stageName(id ID) string    { return datadir.RestorePrefix + "-" + string(id) }
func manifestName(id ID) string { return stageName(id) + ".json" }
func retiredName(id ID) string  { return stageName(id) + ".old" }

// Unfinished returns the restore that DIR is in the middle of, nil if there is none.
func Unfinished(dir *datadir.Dir) (*Pending, error) {
	p, err := readIntent(dir)
	if p == nil || err != nil {
		return nil, err
	}
	return &p.Pending, nil
}

// Manifest returns the manifest of the snapshot being restored, which is kept
// beside the intent: all stages but StageInPlace are finished without the store,
// by Restore with this manifest, even where the snapshot was rotated away since.
func (p *Pending) Manifest(dir *datadir.Dir) (*Manifest, error) {
	data, err := readSmall(dir.Scratch(), manifestName(p.ID), maxManifestBytes)
	if err != nil {
		return nil, fmt.Errorf("read the manifest of the unfinished restore: %w", err)
	}
	return decodeManifestOf(p.ID, data)
}

// FinishRestore removes what a restore left in scratch, and then its intent. The
// caller has rebased the journal. Without an intent it does nothing.
func FinishRestore(dir *datadir.Dir) error {
	p, err := readIntent(dir)
	if p == nil || err != nil {
		return err
	}
	if p.Stage != StageInstalled {
		return fmt.Errorf("finish the restore of %s: it is at stage %q", p.ID, p.Stage)
	}
	if err := DiscardPartial(dir); err != nil {
		return err
	}
	if err := unix.Unlinkat(int(dir.State().Fd()), intentName, 0); err != nil {
		return &os.PathError{Op: "remove", Path: intentName, Err: err}
	}
	if err := dir.State().Sync(); err != nil {
		return fmt.Errorf("finish the restore of %s: %w", p.ID, err)
	}
	return nil
}

// DiscardPartial removes from scratch what interrupted restores have fetched. It
// leaves what an unfinished one (Unfinished) needs.
func DiscardPartial(dir *datadir.Dir) error {
	p, err := readIntent(dir)
	if err != nil {
		return err
	}
	return discard(dir, func(name string) bool {
		return p != nil && p.Stage != StageInstalled && strings.HasPrefix(name, stageName(p.ID))
	})
}

// discardOthers removes what restores of other snapshots left in scratch, unless
// p, which is still to be replaced, needs it.
func (r *restorer) discardOthers(p *intent) error {
	return discard(r.dir, func(name string) bool {
		return strings.HasPrefix(name, stageName(r.m.ID)) || p != nil && name == manifestName(p.ID)
	})
}

func discard(dir *datadir.Dir, keep func(name string) bool) error {
	names, err := readNames(dir.Scratch())
	if err != nil {
		return fmt.Errorf("look for interrupted restores: %w", err)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, datadir.RestorePrefix+"-") || keep(name) {
			continue
		}
		if err := removeTree(dir.Scratch(), name); err != nil {
			return fmt.Errorf("remove an interrupted restore: %w", err)
		}
	}
	return nil
}

func readIntent(dir *datadir.Dir) (*intent, error) {
	if dir.State() == nil { // opened for reading only, and never mounted
		return nil, nil
	}
	data, err := readSmall(dir.State(), intentName, maxIntentBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p, err := decodeIntent(data)
	if err != nil {
		return nil, exitcode.New(exitcode.Integrity,
			fmt.Errorf("%s/%s/%s is damaged: %w", dir.Path(), datadir.StateName, intentName, err),
			"a restore was interrupted here; move DIR away and mount an empty one to bring the newest snapshot back")
	}
	return p, nil
}

func decodeIntent(data []byte) (*intent, error) {
	if err := checkDocument(data, maxIntentBytes); err != nil {
		return nil, err
	}
	var p intent
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, err
	}
	if _, err := ParseID(string(p.ID)); err != nil {
		return nil, err
	}
	switch p.Stage {
	case StageInPlace, StageRetire, StageInstall, StageInstalled:
	default:
		return nil, fmt.Errorf("there is no stage %q", p.Stage)
	}
	if p.Backup != "" && !backupPattern.MatchString(p.Backup) {
		return nil, fmt.Errorf("%q is no name of a backup", p.Backup)
	}
	return &p, nil
}

func (r *restorer) newIntent(stage Stage) *intent {
	return &intent{Format: Format, Pending: Pending{ID: r.m.ID, Lineage: r.m.Lineage, Sequence: r.m.Sequence,
		Epoch: r.m.Epoch, ManifestSHA256: r.o.ManifestSHA256, Stage: stage}}
}

// write makes the intent durable.
func (p *intent) write(r *restorer) error {
	if err := r.at("intent-" + string(p.Stage)); err != nil {
		return err
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(r.dir.State(), intentName, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("note what the restore does next: %w", err)
	}
	return r.at(string(p.Stage))
}

func (r *restorer) saveManifest() error {
	data, err := EncodeManifest(r.m)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(r.dir.Scratch(), manifestName(r.m.ID), data, 0o600); err != nil {
		return fmt.Errorf("keep the manifest: %w", err)
	}
	return r.at("manifest")
}

func readSmall(dir *os.File, name string, limit int64) ([]byte, error) {
	f, err := tree.OpenBeneath(dir, name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}
