package history

import (
	"time"

	"github.com/chromafs/chromafs/internal/tree"
)

// Format is the version of the head and of the manifests that this program
// writes, and the newest that it reads.
const Format = 1

// Consistency says how the cut of a snapshot was reached.
type Consistency string

// The ways a cut is reached.
const (
	Quiescent       Consistency = "quiescent"        // nothing was in the middle of anything
	CrashConsistent Consistency = "crash-consistent" // as a power cut would have left it
)

// Summary is what the head says of the newest snapshot.
type Summary struct {
	ID             ID        `json:"id"`
	Created        time.Time `json:"created"`
	Files          int       `json:"files"`
	Bytes          int64     `json:"bytes"`
	ManifestSHA256 string    `json:"manifest_sha256"`
}

// Head is manifest.json, the one object that is replaced: what is published, and
// who may publish next. Its ETag is the fence (S3, W1).
type Head struct {
	Format   int      `json:"format"`
	Lineage  string   `json:"lineage"`  // random; made with the store's first head, kept ever after
	Sequence uint64   `json:"sequence"` // of the newest snapshot; 0 where there is none
	Epoch    uint64   `json:"epoch"`    // grows with every takeover
	Writer   string   `json:"writer"`   // who took over with this epoch
	Nonce    string   `json:"nonce"`    // random; of this very write
	Newest   *Summary `json:"newest"`   // nil: no snapshot was published yet
	History  []ID     `json:"history"`  // what is listed, oldest first, the newest included
}

// Lists reports whether a snapshot is on the list.
func (h Head) Lists(id ID) bool {
	for _, listed := range h.History {
		if listed == id {
			return true
		}
	}
	return false
}

// Manifest is what one snapshot holds. It is written once, after every object it
// names (S2), and never changes (H1).
type Manifest struct {
	Format      int
	Lineage     string
	Sequence    uint64
	Epoch       uint64
	Writer      string
	Nonce       string
	ID          ID
	Created     time.Time
	Consistency Consistency
	Entries     []tree.Record // sorted by path; every parent folder is one of them
}

// Files returns how many files a manifest names and how many bytes they hold.
func (m *Manifest) Files() (files int, bytes int64) {
	for i := range m.Entries {
		if m.Entries[i].Type == tree.File {
			files++
			bytes += m.Entries[i].Size
		}
	}
	return files, bytes
}

// Summary returns what the head says of this snapshot once it is the newest.
func (m *Manifest) Summary(sha256hex string) *Summary {
	files, bytes := m.Files()
	return &Summary{ID: m.ID, Created: m.Created, Files: files, Bytes: bytes, ManifestSHA256: sha256hex}
}
