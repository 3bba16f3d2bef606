package tree

import (
	"os"
	"path/filepath"
	"testing"
)

// A folder may vanish between being listed and being opened, at any depth.
func TestWalkOfATreeThatChanges(t *testing.T) {
	base := t.TempDir()
	root, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if err := os.MkdirAll(filepath.Join(base, "a", "b", "c"), 0o755); err != nil {
				stopped <- err
				return
			}
			if err := os.RemoveAll(filepath.Join(base, "a")); err != nil {
				stopped <- err
				return
			}
		}
	}()
	for range 3000 {
		if _, _, err := Walk(root, nil); err != nil {
			t.Errorf("a vanished folder is an error: %v", err)
			break
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
}
