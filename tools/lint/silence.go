package main

import (
	"go/ast"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/tools/go/analysis"
)

// One match: the names; the reason is required.
var nolint = regexp.MustCompile(`^//nolint:([\w,]+) // \S`)

// silencing returns the check without the findings that a comment excuses,
// without those in generated files, and without the unchecked errors of what
// tests defer: a test that can't close its input has other worries.
func silencing(a *analysis.Analyzer) *analysis.Analyzer {
	next := a.Run
	a.Run = func(pass *analysis.Pass) (any, error) {
		excused, generated := excuses(pass, a.Name)
		deferred := deferredInTests(pass)
		report, p := pass.Report, *pass
		p.Report = func(d analysis.Diagnostic) {
			at := pass.Fset.Position(d.Pos)
			if !generated[at.Filename] && !excused[line{at.Filename, at.Line}] && !(a.Name == "errcheck" && deferred[line{at.Filename, at.Line}]) {
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

func deferredInTests(pass *analysis.Pass) map[line]bool {
	deferred := map[line]bool{}
	for _, f := range pass.Files {
		if !strings.HasSuffix(pass.Fset.Position(f.Pos()).Filename, "_test.go") {
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if d, ok := n.(*ast.DeferStmt); ok {
				at := pass.Fset.Position(d.Pos())
				deferred[line{at.Filename, at.Line}] = true
			}
			return true
		})
	}
	return deferred
}
