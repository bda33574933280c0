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

// silencing returns the check without the findings that a comment excuses, and
// without those in generated files.
func silencing(a *analysis.Analyzer) *analysis.Analyzer {
	next := a.Run
	a.Run = func(pass *analysis.Pass) (any, error) {
		excused, generated := excuses(pass, a.Name)
		report, p := pass.Report, *pass
		p.Report = func(d analysis.Diagnostic) {
			at := pass.Fset.Position(d.Pos)
			if !generated[at.Filename] && !excused[line{at.Filename, at.Line}] {
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
