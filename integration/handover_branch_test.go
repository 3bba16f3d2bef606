package integration

import (
	"encoding/json"
	"testing"

	"github.com/chromafs/chromafs/integration/harness"
)

// W2: what the old instance accepted after it had yielded is on its branch, and can be
// restored by any machine.
func TestRollingDeployLeavesABranch(t *testing.T) {
	t.Parallel()
	old, next, held := rolled(t)
	old.server.Stop()
	if code := old.mount.Stop(); code != 4 {
		t.Errorf("the old instance, of which something is in no list, exits with %d: %s", code, old.mount.Log())
	}
	next.server.Stop()
	next.mount.Unmount()

	var all []struct {
		ID     string `json:"id"`
		Branch bool   `json:"branch"`
	}
	r := harness.Must(t, 0, old.store, "history", "list", "--json")
	if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil {
		t.Fatalf("history list --json printed %q: %v", r.Stdout, err)
	}
	branch := ""
	for _, one := range all {
		if one.Branch {
			branch = one.ID // the last one
		}
	}
	if branch == "" {
		t.Fatalf("there is no branch: %s\nthe old instance said: %s", r.Stdout, old.mount.Log())
	}
	other := old.another()
	harness.Must(t, 0, old.store, "restore", "--at", branch, other.dir)
	held["late"] = 50
	harness.StartServer(t, other.dir).Verify(held)
}
