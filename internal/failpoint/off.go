//go:build !failpoints

package failpoint

// Enabled reports whether this build has failpoints.
const Enabled = false

// Hit does nothing in this build.
func Hit(string) error { return nil }

// Off is false in this build.
func Off(string) bool { return false }
