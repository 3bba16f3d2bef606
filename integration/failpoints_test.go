package integration

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Every failpoint of the source is in the kill matrix, or it is said where else
// something dies there; and both know no others. A new one needs an entry.
func TestNoFailpointIsForgotten(t *testing.T) {
	t.Parallel()
	source := map[string]bool{}
	for _, pkg := range packages(t, "..") {
		maps.Copy(source, pkg.failpoints(t))
	}
	table := maps.Clone(elsewhere)
	for _, d := range killMatrix {
		table[d.at] = "the matrix"
	}
	for _, name := range slices.Sorted(maps.Keys(source)) {
		if table[name] == "" {
			t.Errorf("%s is not in the kill matrix: add an entry to killMatrix, or say in elsewhere what dies there", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(table)) {
		if !source[name] {
			t.Errorf("there is no failpoint %s any more", name)
		}
	}
	if len(source) < 40 {
		t.Errorf("only %d failpoints were found: %v", len(source), slices.Sorted(maps.Keys(source)))
	}
}

// code is a package's source.
type code struct {
	files []*ast.File
	asked map[*ast.Ident]bool // parameters whose values are being looked for
}

// packages parses the product below root.
func packages(t *testing.T, root string) map[string]*code {
	t.Helper()
	all := map[string]*code{}
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "integration" || d.Name() == "failpoint" || strings.HasPrefix(d.Name(), ".") && name != root):
			return fs.SkipDir
		case !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			return err
		}
		folder := filepath.Dir(name)
		if all[folder] == nil {
			all[folder] = &code{asked: map[*ast.Ident]bool{}}
		}
		all[folder].files = append(all[folder].files, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// failpoints returns the names that a package passes to failpoint.Hit.
func (c *code) failpoints(t *testing.T) map[string]bool {
	names := map[string]bool{}
	c.calls("Hit", func(within *ast.FuncDecl, call *ast.CallExpr) {
		if s, ok := call.Fun.(*ast.SelectorExpr); !ok || fmt.Sprint(s.X) != "failpoint" {
			return
		}
		for _, name := range c.values(call.Args[0], within) {
			if !strings.Contains(name, "/") {
				t.Errorf("%s: it cannot be told what names of failpoints %s makes", within.Name, name)
			}
			names[name] = true
		}
	})
	return names
}

// calls visits all calls of a function or method of this name.
func (c *code) calls(name string, visit func(within *ast.FuncDecl, call *ast.CallExpr)) {
	for _, file := range c.files {
		for _, decl := range file.Decls {
			within, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(within, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				switch f := call.Fun.(type) {
				case *ast.SelectorExpr:
					ok = f.Sel.Name == name
				case *ast.Ident:
					ok = f.Name == name
				default: // a conversion
					ok = false
				}
				if ok {
					visit(within, call)
				}
				return true
			})
		}
	}
}

// values returns what a text may be: constants as they are; of a parameter what the
// package passes for it; of a conversion all constants of the field's type; else "*".
func (c *code) values(e ast.Expr, within *ast.FuncDecl) (texts []string) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil {
			return []string{text}
		}
	case *ast.BinaryExpr:
		for _, left := range c.values(e.X, within) {
			for _, right := range c.values(e.Y, within) {
				texts = append(texts, left+right)
			}
		}
		return texts
	case *ast.Ident:
		i := parameter(within, e.Name)
		if i < 0 {
			break
		}
		if c.asked[e] { // a function that passes it on to itself, or to one of its name
			return nil
		}
		c.asked[e] = true
		defer delete(c.asked, e)
		c.calls(within.Name.Name, func(from *ast.FuncDecl, call *ast.CallExpr) {
			if len(call.Args) == arity(within) {
				texts = append(texts, c.values(call.Args[i], from)...)
			}
		})
		return texts
	case *ast.CallExpr:
		if field, ok := e.Args[0].(*ast.SelectorExpr); ok && fmt.Sprint(e.Fun) == "string" {
			return c.constants(field.Sel.Name)
		}
	}
	return []string{"*"}
}

// parameter returns the place of a function's parameter, -1 where it has none of this name.
func parameter(f *ast.FuncDecl, name string) int {
	i := 0
	for _, field := range f.Type.Params.List {
		for _, n := range field.Names {
			if n.Name == name {
				return i
			}
			i++
		}
	}
	return -1
}

func arity(f *ast.FuncDecl) (n int) {
	for _, field := range f.Type.Params.List {
		n += max(1, len(field.Names))
	}
	return n
}

// constants returns the texts of a type's constants.
func (c *code) constants(kind string) (texts []string) {
	for _, file := range c.files {
		for _, decl := range file.Decls {
			group, ok := decl.(*ast.GenDecl)
			if !ok || group.Tok != token.CONST {
				continue
			}
			for _, spec := range group.Specs {
				v := spec.(*ast.ValueSpec)
				if v.Type != nil && fmt.Sprint(v.Type) == kind {
					texts = append(texts, c.values(v.Values[0], nil)...)
				}
			}
		}
	}
	return texts
}
