package main

import (
	"go/ast"
	"go/types"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/tools/go/analysis"
)

// One match: the names; the reason is required.
var nolint = regexp.MustCompile(`^//nolint:([\w,]+) // \S`)

// silencing returns the check without the findings that a comment excuses,
// without those in generated files, and without unchecked errors that are
// harmless.
func silencing(a *analysis.Analyzer) *analysis.Analyzer {
	next := a.Run
	a.Run = func(pass *analysis.Pass) (any, error) {
		excused, generated := excuses(pass, a.Name)
		harmless := map[line]bool{}
		if a.Name == "errcheck" {
			harmless = harmlessCalls(pass)
		}
		report, p := pass.Report, *pass
		p.Report = func(d analysis.Diagnostic) {
			at := pass.Fset.Position(d.Pos)
			if !generated[at.Filename] && !excused[line{at.Filename, at.Line}] && !harmless[line{at.Filename, at.Line}] {
				d.Message += " (" + a.Name + ")"
				report(d)
			}
		}
		return next(&p)
	}
	return a
}

type line struct {
	file string
	line int
}

func excuses(pass *analysis.Pass, check string) (excused map[line]bool, generated map[string]bool) {
	excused, generated = map[line]bool{}, map[string]bool{}
	for _, f := range pass.Files {
		generated[pass.Fset.Position(f.Pos()).Filename] = ast.IsGenerated(f)
		for _, g := range f.Comments {
			for _, c := range g.List {
				m := nolint.FindStringSubmatch(c.Text)
				if m == nil {
					continue
				}
				if names := strings.Split(m[1], ","); slices.Contains(names, check) || slices.Contains(names, "all") {
					at := pass.Fset.Position(c.Pos())
					excused[line{at.Filename, at.Line}] = true
				}
			}
		}
	}
	return excused, generated
}

// harmlessCalls are lines with calls whose error tells nothing: what tests
// defer, and closing what wrote nothing or was a connection. A file is neither.
func harmlessCalls(pass *analysis.Pass) map[line]bool {
	harmless := map[line]bool{}
	mark := func(n ast.Node) {
		at := pass.Fset.Position(n.Pos())
		harmless[line{at.Filename, at.Line}] = true
	}
	for _, f := range pass.Files {
		test := strings.HasSuffix(pass.Fset.Position(f.Pos()).Filename, "_test.go")
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.DeferStmt:
				if test || closesQuietly(pass, n.Call) {
					mark(n)
				}
			case *ast.ExprStmt:
				if call, ok := n.X.(*ast.CallExpr); ok && closesQuietly(pass, call) {
					mark(n)
				}
			}
			return true
		})
	}
	return harmless
}

// closesQuietly reports whether the call is Close of something that is no
// buffer or file of written data.
func closesQuietly(pass *analysis.Pass, call *ast.CallExpr) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != "Close" {
		return false
	}
	t := pass.TypesInfo.TypeOf(sel.X)
	if t == nil || t.String() == "*os.File" {
		return false
	}
	has := func(name string) bool {
		o, _, _ := types.LookupFieldOrMethod(t, true, pass.Pkg, name)
		return o != nil
	}
	return !has("Write") || has("RemoteAddr")
}
