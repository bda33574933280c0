package legion_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const modulePath = "github.com/legion-swarm/legion"

// source is one parsed file of the tree.
type source struct {
	name    string // from the module's root
	pkg     string // import path below the module's
	imports []string
	lines   int
	test    bool // a _test.go file, or of a package that only tests use
	ast     *ast.File
	fset    *token.FileSet
}

// ours are the imports from this module, without its path.
func (s source) ours() []string {
	var l []string
	for _, i := range s.imports {
		if p, ok := strings.CutPrefix(i, modulePath+"/"); ok {
			l = append(l, p)
		}
	}
	return l
}

// at is the position of a node, for messages.
func (s source) at(n ast.Node) string {
	return s.name + ":" + strconv.Itoa(s.fset.Position(n.Pos()).Line)
}

// sources parses every Go file of the module except generated ones. Modules
// below tools/ keep their own house.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != "." && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"tools", "bin", "build", "testdata"}, name)) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || path.Dir(name) == "." {
			return nil
		}
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if ast.IsGenerated(f) {
			return nil
		}
		s := source{name: name, pkg: path.Dir(filepath.ToSlash(name)), ast: f, fset: fset, lines: fset.File(f.Pos()).LineCount()}
		s.test = strings.HasSuffix(name, "_test.go") || under(s.pkg, "test") || strings.HasSuffix(s.pkg, "test")
		for _, i := range f.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, p)
		}
		all = append(all, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
