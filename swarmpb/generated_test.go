package swarmpb_test

import (
	"os/exec"
	"testing"
)

// The committed code is what the .proto files say.
func TestGeneratedCodeIsUpToDate(t *testing.T) {
	out, err := exec.Command("../scripts/generate", "-check").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
