package legion_test

import (
	"go/ast"
	"path"
	"slices"
	"strings"
	"testing"
)

// pure packages decide; they have no clock, no dice, no disk and no network of
// their own. The value lists their files that drive: read, call, write.
func pure() map[string][]string {
	return map[string][]string{
		"api":                  {"id.go"}, // ids are made before the log
		"settings":             {},
		"templates":            {},
		"agent/exec":           {},
		"store":                {"store.go", "config.go", "pace.go"}, // when, not what, watchers are told
		"manager/scheduler":    {"loop.go"},
		"manager/orchestrator": {"loop.go", "agenda.go"},
		"manager/allocator":    {"loop.go"},
		"manager/rotator":      {"loop.go"},
	}
}

func TestPureCodeHasNoClock(t *testing.T) {
	clocks := []string{"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Sleep"}
	for _, f := range sources(t) {
		drivers, ok := pure()[f.pkg]
		if !ok || f.test || slices.Contains(drivers, path.Base(f.name)) {
			continue
		}
		for _, i := range f.imports {
			if strings.HasPrefix(i, "math/rand") || i == "crypto/rand" || i == "os" || i == "net/http" {
				t.Errorf("%s imports %s: %s is pure; give it what it needs as an argument", f.name, i, f.pkg)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && call(n, "net", sel.Sel.Name) && !slices.Contains([]string{"SplitHostPort", "JoinHostPort", "IP", "IPNet", "ParseCIDR", "ParseIP"}, sel.Sel.Name) {
				t.Errorf("%s: net.%s in pure code", f.at(n), sel.Sel.Name)
			}
			for _, c := range clocks {
				if call(n, "time", c) {
					t.Errorf("%s: time.%s in pure code: time is an argument", f.at(n), c)
				}
			}
			return true
		})
	}
}
