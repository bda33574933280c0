package main

import (
	"go/token"
	"reflect"

	"golang.org/x/tools/go/analysis"
	"honnef.co/go/tools/unused"
)

// unusedAnalyzer reports what nobody uses. Staticcheck's own analyzer only
// returns it, because its command merges a package's variants; go vet shows us
// just one, that with the tests.
func unusedAnalyzer() *analysis.Analyzer {
	base := unused.Analyzer.Analyzer
	return &analysis.Analyzer{
		Name:       "unused",
		Doc:        "reports constants, variables, functions, fields and types that are not used",
		Requires:   []*analysis.Analyzer{base},
		ResultType: reflect.TypeFor[struct{}](),
		Run: func(pass *analysis.Pass) (any, error) {
			files := map[string]*token.File{}
			for _, f := range pass.Files {
				tf := pass.Fset.File(f.Pos())
				files[tf.Name()] = tf
			}
			for _, o := range pass.ResultOf[base].(unused.Result).Unused {
				tf := files[o.Position.Filename]
				if tf == nil || o.Position.Line > tf.LineCount() {
					continue
				}
				pass.Reportf(tf.LineStart(o.Position.Line), "%s %s is unused", o.Kind, o.Name)
			}
			return struct{}{}, nil
		},
	}
}
