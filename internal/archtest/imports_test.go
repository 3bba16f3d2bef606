package archtest

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// libraries says which package alone may import a library, its tests included.
// The integration module stands outside: it drives the built binary.
var libraries = map[string]string{
	"github.com/hanwen/go-fuse":   "fusefs",
	"github.com/ncruces/":         "internal/dbcheck",
	"go.etcd.io/bbolt":            "journal",
	"github.com/minio/minio-go":   "internal/objstore/s3",
	"github.com/spf13/pflag":      "cmd",
	"github.com/versity/":         "integration",
	"honnef.co/go/tools":          "integration",
	"github.com/stretchr/testify": "nobody",
}

// ignorance says what a package must not reach, directly or through other
// packages of the module.
var ignorance = map[string][]string{
	"fusefs":            {"journal", "uploader", "history", "internal/objstore", "go.etcd.io/bbolt"},
	"journal":           {"fusefs", "uploader", "history", "internal/objstore", "github.com/hanwen/go-fuse"},
	"uploader":          {"fusefs", "internal/objstore/s3", "internal/dbcheck", "github.com/hanwen/go-fuse", "github.com/minio/minio-go"},
	"history":           {"fusefs", "journal", "uploader", "internal/objstore/s3", "github.com/hanwen/go-fuse", "go.etcd.io/bbolt"},
	"internal/objstore": {"fusefs", "journal", "uploader", "history"},
	"internal":          {"fusefs", "journal", "uploader", "history"},
}

// aboveTheRest are internal packages that are no small mechanism but join the
// public ones, with the reason.
var aboveTheRest = map[string]string{
	"internal/reconcile": "decides and carries out what a mount does with the two sides, so it knows journal and history",
	"internal/dirview":   "a View of a plain folder for the uploader",
}

// forTests are packages that only test code may import.
var forTests = []string{"internal/testutil", "internal/objstore/storetest", "internal/objstore/memstore"}

func within(pkg, parent string) bool {
	return pkg == parent || strings.HasPrefix(pkg, parent+"/")
}

// local returns the folder of an import of this module.
func local(imported string) (string, bool) {
	return strings.CutPrefix(imported, module+"/")
}

func TestLibrariesStayWhereTheyBelong(t *testing.T) {
	for _, f := range source(t) {
		for _, imported := range f.imports(t) {
			for library, owner := range libraries {
				if strings.HasPrefix(imported, library) && !within(f.folder(), owner) && !within(f.folder(), "integration") {
					t.Errorf("%s imports %s, which only %s may", f.path, imported, owner)
				}
			}
		}
	}
}

func TestPackagesKnowOnlyWhatTheyMay(t *testing.T) {
	graph := map[string]map[string]bool{}
	for _, f := range source(t) {
		if f.isTest() {
			continue
		}
		if graph[f.folder()] == nil {
			graph[f.folder()] = map[string]bool{}
		}
		for _, imported := range f.imports(t) {
			if folder, ok := local(imported); ok {
				imported = folder
			}
			graph[f.folder()][imported] = true
		}
	}
	for pkg := range graph {
		reached := reach(graph, pkg)
		for parent, banned := range ignorance {
			if !within(pkg, parent) || aboveTheRest[pkg] != "" && parent == "internal" {
				continue
			}
			for _, ban := range banned {
				for _, other := range reached {
					if within(other, ban) && !within(other, pkg) {
						t.Errorf("%s reaches %s, which %s must know nothing of", pkg, other, parent)
					}
				}
			}
		}
	}
}

// reach lists all that pkg imports, directly or not, sorted.
func reach(graph map[string]map[string]bool, pkg string) []string {
	seen := map[string]bool{}
	todo := []string{pkg}
	for len(todo) > 0 {
		next := todo[0]
		todo = todo[1:]
		for imported := range graph[next] {
			if !seen[imported] {
				seen[imported] = true
				todo = append(todo, imported)
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

func TestNothingImportsTheCommandOrTestCode(t *testing.T) {
	for _, f := range source(t) {
		for _, imported := range f.imports(t) {
			folder, ok := local(imported)
			if !ok {
				continue
			}
			if within(folder, "cmd") {
				t.Errorf("%s imports %s", f.path, imported)
			}
			for _, testing := range forTests {
				if within(folder, testing) && !f.isTest() && !testPackage(f.folder()) {
					t.Errorf("%s imports %s, which is for tests", f.path, imported)
				}
			}
		}
	}
}

func testPackage(folder string) bool {
	for _, testing := range forTests {
		if within(folder, testing) {
			return true
		}
	}
	return within(folder, "integration")
}
