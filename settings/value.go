package settings

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"
)

// value is where one option is kept, settable by a flag and by the file.
type value interface {
	pflag.Value
	// setJSON replaces what is there.
	setJSON(raw json.RawMessage) error
}

// The kinds of JSON that a scalar is written as.
const (
	jsonString = 1 << iota
	jsonNumber
	jsonBool
)

// scalar is an option with one value, parsed from text.
type scalar[T any] struct {
	p     *T
	kind  string // for the help text
	json  int
	want  string // completes "want …"
	parse func(string) (T, error)
}

func (s scalar[T]) Type() string { return s.kind }

func (s scalar[T]) String() string {
	if s.p == nil {
		return ""
	}
	switch v := any(*s.p).(type) {
	case netip.Addr:
		if !v.IsValid() {
			return ""
		}
	case netip.Prefix:
		if !v.IsValid() {
			return ""
		}
	}
	return fmt.Sprint(*s.p)
}

func (s scalar[T]) Set(text string) error {
	v, err := s.parse(text)
	if err != nil {
		return fmt.Errorf("want %s", s.want)
	}
	*s.p = v
	return nil
}

func (s scalar[T]) setJSON(raw json.RawMessage) error {
	text, kind := string(raw), 0
	switch {
	case len(raw) > 0 && raw[0] == '"':
		if err := json.Unmarshal(raw, &text); err != nil {
			return err
		}
		kind = jsonString
	case text == "true" || text == "false":
		kind = jsonBool
	case len(raw) > 0 && (raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9'):
		kind = jsonNumber
	}
	if kind&s.json == 0 {
		return fmt.Errorf("want %s, not %s", s.want, raw)
	}
	if err := s.Set(text); err != nil {
		return fmt.Errorf("%w, not %s", err, raw)
	}
	return nil
}

func text(p *string) value {
	return scalar[string]{p, "string", jsonString, "text", func(s string) (string, error) { return s, nil }}
}

func boolean(p *bool) value {
	return scalar[bool]{p, "bool", jsonBool, "true or false", strconv.ParseBool}
}

func number(p *int) value {
	return scalar[int]{p, "int", jsonNumber, "a whole number", strconv.Atoi}
}

func size(p *int64) value {
	return scalar[int64]{p, "bytes", jsonString | jsonNumber, "a size as 64M or a number of bytes", units.RAMInBytes}
}

func address(p *netip.Addr) value {
	return scalar[netip.Addr]{p, "ip", jsonString, "an IP address", netip.ParseAddr}
}

func prefix(p *netip.Prefix) value {
	return scalar[netip.Prefix]{p, "cidr", jsonString, "an address with its subnet's length, as 192.168.1.1/24", netip.ParsePrefix}
}

// list is an option that is given several times.
type list[T any] struct {
	p       *[]T
	want    string
	parse   func(string) (T, error)
	changed bool // the first one replaces the default
}

func (l *list[T]) Type() string { return "list" }

func (l *list[T]) String() string {
	if l.p == nil || len(*l.p) == 0 {
		return ""
	}
	return fmt.Sprint(*l.p)
}

func (l *list[T]) Set(text string) error {
	v, err := l.parse(text)
	if err != nil {
		return fmt.Errorf("want %s", l.want)
	}
	if !l.changed {
		l.changed, *l.p = true, nil
	}
	*l.p = append(slices.Clone(*l.p), v)
	return nil
}

func (l *list[T]) setJSON(raw json.RawMessage) error {
	var texts []string
	if err := json.Unmarshal(raw, &texts); err != nil {
		return fmt.Errorf("want a list of texts, not %s", raw)
	}
	*l.p, l.changed = nil, true
	for _, t := range texts {
		if err := l.Set(t); err != nil {
			return fmt.Errorf("%w, not %q", err, t)
		}
	}
	return nil
}

func texts(p *[]string) value {
	return &list[string]{p: p, want: "text", parse: func(s string) (string, error) { return s, nil }}
}

func addresses(p *[]netip.Addr) value {
	return &list[netip.Addr]{p: p, want: "an IP address", parse: netip.ParseAddr}
}

// pools are written base=10.0.0.0/8,size=24, and in the file as objects.
type pools struct{ *list[AddressPool] }

func addressPools(p *[]AddressPool) value {
	return pools{&list[AddressPool]{p: p, want: "base=CIDR,size=LENGTH", parse: parsePool}}
}

func (l pools) Type() string { return "pool-options" }

func (l pools) setJSON(raw json.RawMessage) error {
	var read []struct {
		Base string
		Size int
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&read); err != nil {
		return fmt.Errorf(`want [{"base": CIDR, "size": LENGTH}, …], not %s`, raw)
	}
	*l.p, l.changed = nil, true
	for _, r := range read {
		if err := l.Set(fmt.Sprintf("base=%s,size=%d", r.Base, r.Size)); err != nil {
			return err
		}
	}
	return nil
}

func parsePool(text string) (AddressPool, error) {
	var p AddressPool
	for part := range strings.SplitSeq(text, ",") {
		k, v, _ := strings.Cut(part, "=")
		var err error
		switch strings.TrimSpace(k) {
		case "base":
			p.Base, err = netip.ParsePrefix(v)
		case "size":
			p.Size, err = strconv.Atoi(v)
		default:
			err = errors.New("unknown key")
		}
		if err != nil {
			return p, err
		}
	}
	if !p.Base.IsValid() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
		return p, errors.New("no subnet of that size")
	}
	return p, nil
}

// pairs are key=value options; the later one counts.
type pairs struct {
	p       *map[string]string
	changed bool
}

func (m *pairs) Type() string { return "map" }

func (m *pairs) String() string {
	if m.p == nil || len(*m.p) == 0 {
		return ""
	}
	return fmt.Sprint(*m.p)
}

func (m *pairs) Set(text string) error {
	k, v, ok := strings.Cut(text, "=")
	if !ok || k == "" {
		return errors.New("want KEY=VALUE")
	}
	next := map[string]string{}
	if m.changed {
		maps.Copy(next, *m.p)
	}
	next[k] = v
	*m.p, m.changed = next, true
	return nil
}

func (m *pairs) setJSON(raw json.RawMessage) error {
	var read map[string]string
	if err := json.Unmarshal(raw, &read); err != nil {
		return fmt.Errorf("want an object of texts, not %s", raw)
	}
	*m.p, m.changed = read, true
	return nil
}

// ulimits are written name=soft[:hard], and in the file as Docker's objects.
type ulimits struct {
	p       *map[string]*units.Ulimit
	changed bool
}

func (u *ulimits) Type() string { return "ulimit" }

func (u *ulimits) String() string {
	if u.p == nil {
		return ""
	}
	var l []string
	for _, k := range slices.Sorted(maps.Keys(*u.p)) {
		l = append(l, (*u.p)[k].String())
	}
	return strings.Join(l, ",")
}

func (u *ulimits) Set(text string) error {
	l, err := units.ParseUlimit(text)
	if err != nil {
		return err
	}
	next := map[string]*units.Ulimit{}
	if u.changed {
		maps.Copy(next, *u.p)
	}
	next[l.Name] = l
	*u.p, u.changed = next, true
	return nil
}

func (u *ulimits) setJSON(raw json.RawMessage) error {
	var read map[string]*units.Ulimit
	if err := json.Unmarshal(raw, &read); err != nil {
		return fmt.Errorf(`want {"NAME": {"Name": NAME, "Soft": N, "Hard": N}}, not %s`, raw)
	}
	next := map[string]*units.Ulimit{}
	for name, l := range read {
		if l == nil {
			return fmt.Errorf("no limits for %q", name)
		}
		checked, err := units.ParseUlimit(fmt.Sprintf("%s=%d:%d", name, l.Soft, l.Hard))
		if err != nil {
			return err
		}
		next[name] = checked
	}
	*u.p, u.changed = next, true
	return nil
}
