package legion_test

import (
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// Longest files, in lines. Code that grows past it has two subjects.
const (
	maxLines     = 450
	maxTestLines = 600
)

func TestFilesAreShort(t *testing.T) {
	for _, f := range sources(t) {
		if limit := map[bool]int{false: maxLines, true: maxTestLines}[f.test]; f.lines > limit {
			t.Errorf("%s has %d lines: split it by subject below %d", f.name, f.lines, limit)
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range sources(t) {
		if strings.HasSuffix(f.name, "_test.go") {
			continue
		}
		documented[f.pkg] = documented[f.pkg] || f.ast.Doc != nil && strings.TrimSpace(f.ast.Doc.Text()) != ""
	}
	for pkg, ok := range documented {
		if !ok {
			t.Errorf("package %s has no package comment", pkg)
		}
		if slices.Contains([]string{"util", "utils", "common", "helpers", "types", "misc", "pkg"}, path.Base(pkg)) {
			t.Errorf("package %s is named after nothing: name the actor or the thing", pkg)
		}
	}
}

func TestEveryExportedNameSaysWhatItIs(t *testing.T) {
	for _, f := range sources(t) {
		if f.test || f.ast.Name.Name == "main" {
			continue
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) && !wellKnown(d) {
					t.Errorf("%s: %s has no comment", f.at(d), d.Name.Name)
				}
			case *ast.GenDecl:
				checkSpecs(t, f, d)
			}
		}
	}
}

// wellKnown are methods whose contract the standard library states.
func wellKnown(d *ast.FuncDecl) bool {
	return d.Recv != nil && slices.Contains([]string{"Error", "String", "Unwrap", "Is", "Read", "Write", "Close", "Len", "Less", "Swap",
		"Set", "Type", "MarshalJSON", "UnmarshalJSON", "Flush", "Push", "Pop", "Seek", "Unlock", "Lock"}, d.Name.Name)
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return true
		}
	}
}

func checkSpecs(t *testing.T, f source, d *ast.GenDecl) {
	t.Helper()
	for _, s := range d.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if s.Name.IsExported() && s.Doc == nil && d.Doc == nil && s.Comment == nil {
				t.Errorf("%s: type %s has no comment", f.at(s), s.Name.Name)
			}
		case *ast.ValueSpec:
			if slices.ContainsFunc(s.Names, (*ast.Ident).IsExported) && s.Doc == nil && d.Doc == nil && s.Comment == nil {
				t.Errorf("%s: %s has no comment", f.at(s), s.Names[0].Name)
			}
		}
	}
}

// State that no caller owns makes tests depend on each other and two nodes in
// one process impossible. Tests may have tables.
func TestNoInitAndNoGlobals(t *testing.T) {
	for _, f := range sources(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: init() runs in every command, whatever is asked: call it where it is needed", f.at(d))
			}
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
				for _, s := range g.Specs {
					if v := s.(*ast.ValueSpec); !constant(g, v) && !(f.test && len(v.Values) > 0) {
						t.Errorf("%s: package variable %s: make it a constant, a function, or part of who uses it", f.at(v), v.Names[0].Name)
					}
				}
			}
		}
	}
}

// constant accepts `var _ Iface = …`, sentinel errors, embedded files, and in
// tests the -update kind of flags.
func constant(g *ast.GenDecl, v *ast.ValueSpec) bool {
	if v.Names[0].Name == "_" || g.Doc != nil && strings.Contains(rawComments(g.Doc), "//go:embed") || v.Doc != nil && strings.Contains(rawComments(v.Doc), "//go:embed") {
		return true
	}
	if len(v.Values) != 1 {
		return false
	}
	call, ok := v.Values[0].(*ast.CallExpr)
	if !ok {
		return false
	}
	fun, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, _ := fun.X.(*ast.Ident)
	if pkg == nil {
		return false
	}
	name := pkg.Name + "." + fun.Sel.Name
	return slices.Contains([]string{"errors.New", "fmt.Errorf", "api.Errorf", "flag.Bool"}, name)
}

func rawComments(g *ast.CommentGroup) string {
	var b strings.Builder
	for _, c := range g.List {
		b.WriteString(c.Text)
	}
	return b.String()
}

// Tests wait for conditions, or for the bubble's clock (testing/synctest). What
// polls a kernel sleeps between two looks, in the loop's post statement or with
// a reason on the line; product code has contexts, and needs a good reason.
func TestNoSleeps(t *testing.T) {
	for _, f := range sources(t) {
		if under(f.pkg, "test", "demo", "engine/enginetest/prog") {
			continue
		}
		bubbles := slices.Contains(f.imports, "testing/synctest")
		polls := map[ast.Node]bool{}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if loop, ok := n.(*ast.ForStmt); ok && loop.Post != nil {
				ast.Inspect(loop.Post, func(n ast.Node) bool { polls[n] = true; return true })
			}
			return true
		})
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if call(n, "time", "Sleep") && (!f.test || !bubbles && !polls[n] && !commented(f, n, "// ")) && !commented(f, n, "//nolint:sleep // ") {
				t.Errorf("%s: time.Sleep can't be cancelled: wait on a context, a timer or a condition", f.at(n))
			}
			return true
		})
	}
}

// commented reports whether a comment that begins so is on the node's line.
func commented(f source, n ast.Node, prefix string) bool {
	line := f.fset.Position(n.Pos()).Line
	for _, g := range f.ast.Comments {
		for _, c := range g.List {
			if f.fset.Position(c.Pos()).Line == line && strings.HasPrefix(c.Text, prefix) {
				return true
			}
		}
	}
	return false
}

// call reports whether the node is pkg.name.
func call(n ast.Node, pkg, name string) bool {
	sel, ok := n.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == pkg
}

// TestNoMarkers: what is not done is said in an issue, not in the code.
func TestNoMarkers(t *testing.T) {
	for _, f := range sources(t) {
		for _, g := range f.ast.Comments {
			for _, word := range strings.FieldsFunc(g.Text(), func(r rune) bool { return !unicode.IsLetter(r) }) {
				if word == "TODO" || word == "FIXME" || word == "XXX" || word == "HACK" {
					t.Errorf("%s: %s in a comment: do it, or open an issue", f.at(g), word)
				}
			}
		}
	}
}
