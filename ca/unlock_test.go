package ca_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
)

func wantInvalid(t testing.TB, err error, words string) {
	t.Helper()
	if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v; want Invalid with %q", err, words)
	}
}

func TestUnlockKey(t *testing.T) {
	key := ca.NewUnlockKey()
	text := ca.FormatUnlockKey(key)
	if len(text) != len("SWMKEY-1-")+43 || !strings.HasPrefix(text, "SWMKEY-1-") {
		t.Errorf("key of %d letters", len(text))
	}
	// As dockerd writes 0, 1, 2, … 31.
	var count [32]byte
	for i := range count {
		count[i] = byte(i)
	}
	if got := ca.FormatUnlockKey(count[:]); got != "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8" {
		t.Error(got)
	}
	if got, err := ca.ParseUnlockKey(" " + text + "\n"); err != nil || !bytes.Equal(got, key) {
		t.Errorf("%v", err)
	}
	if ca.FormatUnlockKey(nil) != "" {
		t.Error("no key has a text")
	}
	for _, bad := range []string{"", "SWMKEY-1-", text[1:], text + "A", text[:len(text)-1], strings.Replace(text, "-1-", "-2-", 1), text[:20] + "\n" + text[20:]} {
		_, err := ca.ParseUnlockKey(bad)
		wantInvalid(t, err, "SWMKEY-1-…")
		if bad != "" && strings.Contains(err.Error(), bad) && len(bad) > len("SWMKEY-1-") {
			t.Error("the error quotes the key")
		}
	}
}

func FuzzParseUnlockKey(f *testing.F) {
	f.Add(ca.FormatUnlockKey(make([]byte, 32)))
	f.Add("SWMKEY-1-")
	f.Add("SWMKEY-2-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8")
	f.Fuzz(func(t *testing.T, s string) {
		key, err := ca.ParseUnlockKey(s)
		if err != nil {
			return
		}
		if ca.FormatUnlockKey(key) != strings.TrimSpace(s) {
			t.Errorf("%q is read as another key", s)
		}
	})
}
