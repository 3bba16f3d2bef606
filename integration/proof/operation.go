package proof

import (
	"fmt"
	"strings"
	"time"

	"github.com/chromafs/chromafs/integration/harness"
)

// Verb is a kind of write, as ChromaDB calls it.
type Verb string

// The writes.
const (
	Add    Verb = "add"
	Update Verb = "update"
	Upsert Verb = "upsert"
	Delete Verb = "delete"
)

// change is what an operation makes of one document. Version 0 is none: it is not
// there.
type change struct {
	document int // its number
	version  int
}

// operation is one request to ChromaDB, which carries it out as a whole.
type operation struct {
	number     int // in the order of sending
	verb       Verb
	collection string
	changes    []change
	sent       time.Time
	acked      time.Time // zero: not yet
}

func (o *operation) String() string {
	c := o.changes[0]
	return fmt.Sprintf("operation %d (%s of %d documents of %s, %s version %d first)",
		o.number, o.verb, len(o.changes), o.collection, harness.ID(c.document), c.version)
}

// vector is the embedding of a document in a version.
func vector(document, version int) []float64 { return harness.Vector(document*1000 + version) }

// text is the content of a document in a version.
func text(document, version int) string {
	return strings.Repeat(fmt.Sprintf("document %d version %d ", document, version), 10)
}

// body is what ChromaDB is asked, in the form both of its doors take.
func (o *operation) body() map[string]any {
	var ids, texts []string
	var vectors [][]float64
	var metadatas []map[string]any
	for _, c := range o.changes {
		ids = append(ids, harness.ID(c.document))
		vectors = append(vectors, vector(c.document, c.version))
		texts = append(texts, text(c.document, c.version))
		metadatas = append(metadatas, map[string]any{"version": c.version})
	}
	if o.verb == Delete {
		return map[string]any{"ids": ids}
	}
	return map[string]any{"ids": ids, "embeddings": vectors, "documents": texts, "metadatas": metadatas}
}
