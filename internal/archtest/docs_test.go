package archtest

import (
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	citedSymbol  = regexp.MustCompile("`([a-z][a-z0-9]*)\\.([A-Z][A-Za-z]*)`")
	citedPackage = regexp.MustCompile("`(internal/[a-z0-9/]+|fusefs|journal|uploader|history|cmd/chromafs|integration)`")
)

func architecture(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The map names every package, and nothing that does not exist.
func TestArchitectureNamesWhatThereIs(t *testing.T) {
	text := architecture(t)
	exists := map[string]bool{}
	symbols := map[string]bool{}
	for _, f := range source(t) {
		exists[f.folder()] = true
		if f.isTest() {
			continue
		}
		for _, d := range f.syntax.Decls {
			for _, name := range declared(d) {
				symbols[path.Base(f.folder())+"."+name] = true
			}
		}
	}
	cited := map[string]bool{}
	for _, match := range citedPackage.FindAllStringSubmatch(text, -1) {
		cited[match[1]] = true
		if !exists[match[1]] {
			t.Errorf("docs/architecture.md names %s, which does not exist", match[1])
		}
	}
	for pkg := range exists {
		if !cited[pkg] && !strings.HasPrefix(pkg, "integration/") {
			t.Errorf("docs/architecture.md does not name %s", pkg)
		}
	}
	for _, match := range citedSymbol.FindAllStringSubmatch(text, -1) {
		if symbol := match[1] + "." + match[2]; !symbols[symbol] {
			t.Errorf("docs/architecture.md cites %s, which does not exist", symbol)
		}
	}
}

// declared lists the names that a declaration makes at the package's level.
func declared(d ast.Decl) (names []string) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil {
			names = append(names, d.Name.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				names = append(names, spec.Name.Name)
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					names = append(names, name.Name)
				}
			}
		}
	}
	return names
}
