package legion_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestLinksInPagesResolve: a page that points at nothing has rotted.
func TestLinksInPagesResolve(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#: ]+)(#[^)]*)?\)`)
	pages, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	designs, err := filepath.Glob("design/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, designs...) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s points at %s, which is not there", page, m[1])
			}
		}
	}
}

// TestDesignPagesAreInTheIndex: a page that nobody finds is not written.
func TestDesignPagesAreInTheIndex(t *testing.T) {
	index, err := os.ReadFile("design/README.md")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("design/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		if name := filepath.Base(page); name != "README.md" && !strings.Contains(string(index), "]("+name+")") {
			t.Errorf("design/README.md does not list %s", name)
		}
	}
}
