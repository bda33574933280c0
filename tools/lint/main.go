// Command lint holds all static checks in one tool for go vet, so that the tree
// is loaded once and what did not change is taken from Go's build cache:
//
//	go vet -vettool=lint ./...
//
// A finding is silenced by "//nolint:NAME // why" at the end of its line, NAME
// being the check's or "all"; without a reason it is not.
package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/kisielk/errcheck/errcheck"
	"github.com/polyfloyd/go-errorlint/errorlint"
	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/passes/nilness"
	"golang.org/x/tools/go/analysis/passes/unusedwrite"
	"golang.org/x/tools/go/analysis/unitchecker"
	"honnef.co/go/tools/analysis/lint"
	"honnef.co/go/tools/simple"
	"honnef.co/go/tools/staticcheck"
	"honnef.co/go/tools/stylecheck"
)

// Checks of staticcheck that are left out, and why.
var leftOut = []string{
	"ST1000",                     // package comments: the tree's own test
	"ST1003",                     // names: Docker's API has its own spelling
	"ST1016",                     // receiver names
	"ST1020", "ST1021", "ST1022", // the form of doc comments
	"SA1019", // deprecated: Docker's API keeps deprecated fields that clients read
}

func main() {
	checks := []*analysis.Analyzer{errcheck.Analyzer, errorlint.NewAnalyzer(), nilness.Analyzer, unusedwrite.Analyzer, unusedAnalyzer()}
	for _, l := range [][]*lint.Analyzer{staticcheck.Analyzers, simple.Analyzers, stylecheck.Analyzers} {
		for _, a := range l {
			if !slices.Contains(leftOut, a.Analyzer.Name) {
				checks = append(checks, a.Analyzer)
			}
		}
	}
	unique := map[string]*analysis.Analyzer{}
	for _, a := range checks {
		unique[a.Name] = silencing(a)
	}
	unitchecker.Main(slices.SortedFunc(maps.Values(unique), func(a, b *analysis.Analyzer) int { return strings.Compare(a.Name, b.Name) })...)
}
