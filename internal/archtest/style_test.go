package archtest

import (
	"go/ast"
	"strings"
	"testing"
)

const (
	maxFileLines     = 500
	maxFunctionLines = 80
)

// longFiles and longFunctions are reviewed exceptions: path, or path:function, and
// the reason why it reads better in one piece.
var (
	longFiles     = map[string]string{}
	longFunctions = map[string]string{}
)

func TestNothingIsTooLongToRead(t *testing.T) {
	unused := map[string]bool{}
	for name := range longFiles {
		unused[name] = true
	}
	for name := range longFunctions {
		unused[name] = true
	}
	for _, f := range source(t) {
		if n := f.lines(); n > maxFileLines {
			if longFiles[f.path] == "" {
				t.Errorf("%s has %d lines, more than %d", f.path, n, maxFileLines)
			}
			delete(unused, f.path)
		}
		for _, d := range f.syntax.Decls {
			function, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			n := f.set.Position(function.End()).Line - f.set.Position(function.Pos()).Line + 1
			name := f.path + ":" + function.Name.Name
			if n > maxFunctionLines {
				if longFunctions[name] == "" {
					t.Errorf("%s has %d lines, more than %d", name, n, maxFunctionLines)
				}
				delete(unused, name)
			}
		}
	}
	for name := range unused {
		t.Errorf("the exception for %s is no longer needed", name)
	}
}

func TestEveryPackageHasOneDocComment(t *testing.T) {
	docs := map[string][]string{}
	packages := map[string]string{}
	for _, f := range source(t) {
		// A folder may hold nothing but tests: then one of them carries it.
		name := strings.TrimSuffix(f.syntax.Name.Name, "_test")
		if packages[f.folder()] == "" || !f.isTest() {
			packages[f.folder()] = name
		}
		if f.syntax.Doc != nil && hasText(f.syntax.Doc) {
			docs[f.folder()] = append(docs[f.folder()], f.path)
			want := "Package " + name + " "
			if name == "main" {
				want = "Command "
			}
			if !strings.HasPrefix(f.syntax.Doc.Text(), want) {
				t.Errorf("%s: the package comment does not begin with %q", f.path, want)
			}
		}
	}
	for folder := range packages {
		switch found := docs[folder]; len(found) {
		case 1:
		case 0:
			t.Errorf("%s has no package comment", folder)
		default:
			t.Errorf("%s has several package comments: %v", folder, found)
		}
	}
}

// hasText reports whether a comment says anything but directives.
func hasText(c *ast.CommentGroup) bool { return strings.TrimSpace(c.Text()) != "" }

func TestNoInit(t *testing.T) {
	for _, f := range source(t) {
		for _, d := range f.syntax.Decls {
			if function, ok := d.(*ast.FuncDecl); ok && function.Name.Name == "init" && function.Recv == nil {
				t.Errorf("%s has an init: what runs should be seen where it is called", f.path)
			}
		}
	}
}
