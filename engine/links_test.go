package engine

import "testing"

func TestSplitLink(t *testing.T) {
	for l, want := range map[string][2]string{
		"db": {"db", "db"}, "db:base": {"db", "base"}, "/db:/web/base": {"db", "base"}, "db:": {"db", "db"},
	} {
		if name, alias := splitLink(l); name != want[0] || alias != want[1] {
			t.Errorf("%s: %s, %s", l, name, alias)
		}
	}
}

// A link's old lines go, in both families; what users wrote stays.
func TestWithLink(t *testing.T) {
	const own = "127.0.0.1\tlocalhost\n10.0.0.9\tbase\n10.0.0.8 other base host\n172.17.0.9\tme\n"
	old := "172.17.0.2\tbase host db\nfd00::2\tbase host db\n"
	now := "172.17.0.5\tbase host renamed\n"
	if got := withLink(own+old, "base", "host", now); got != own+now {
		t.Errorf("got\n%s", got)
	}
	if got := withLink("10.0.0.1\ta", "base", "host", now); got != "10.0.0.1\ta\n"+now {
		t.Errorf("without a last new line:\n%s", got)
	}
	if got := withLink(own+"172.17.0.2\tdb\n", "db", "db", ""); got != own {
		t.Errorf("names that are one:\n%s", got)
	}
}
