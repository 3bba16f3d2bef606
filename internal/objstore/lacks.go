package objstore

import "cmp"

// ProbePrefix is where package probe puts its throwaway objects. No path of a
// snapshot has a key there (history escapes first segments that begin with
// ".chromafs"), and what is left there says nothing about a backup.
const ProbePrefix = ".chromafs-probe/"

// Lacks says what a store cannot do, or the key that it is used with may not: each
// field is the reason, "" where it can. The zero value lacks nothing. Package probe
// finds out, package adapt does without.
type Lacks struct {
	Copy       string `json:"copy,omitempty"`        // copies of whole objects, pinned to their source
	PartCopy   string `json:"part_copy,omitempty"`   // copies into a part of an upload, likewise
	BulkDelete string `json:"bulk_delete,omitempty"` // many keys in one request
	Uploads    string `json:"uploads,omitempty"`     // the listing of unfinished uploads
	Abort      string `json:"abort,omitempty"`       // the removal of such an upload
	Delete     string `json:"delete,omitempty"`      // the removal of an object
	Create     string `json:"create,omitempty"`      // writes on condition that nothing is there, atomic
	Replace    string `json:"replace,omitempty"`     // writes on condition of an ETag, atomic
	Encrypt    string `json:"encrypt,omitempty"`     // the encryption that was asked for
}

// Conditions returns why writes cannot be conditional, "" where they can.
func (l Lacks) Conditions() string {
	if l.Create != "" && l.Replace != "" && l.Create != l.Replace {
		return l.Create + "; " + l.Replace
	}
	return cmp.Or(l.Create, l.Replace)
}
