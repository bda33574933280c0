package control

import (
	"regexp"
	"testing"
)

func TestRandomNames(t *testing.T) {
	seen := map[string]bool{}
	for try := range 200 {
		name := randomName(try)
		if !regexp.MustCompile(`^[a-z]+_[a-z]+[0-9]*$`).MatchString(name) {
			t.Errorf("%q", name)
		}
		seen[name] = true
	}
	if len(seen) < 150 {
		t.Errorf("only %d different names of 200", len(seen))
	}
}
