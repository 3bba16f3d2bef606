package journal

// Names in DIR/.chromafs.
const (
	fileName    = "journal.db"
	newName     = "journal.db.new" // being written, see rewrite
	reserveName = "reserve"
)

// formatVersion is the version of the format that this code writes.
const formatVersion = 1
