package linux

import (
	"testing"

	"github.com/google/nftables"
)

// Sets of a transaction have different numbers, whatever other connections do.
func TestSetsOfATransaction(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	var conns [2]*filterConn
	for i := range conns {
		c, err := p.connect()
		w.ok(err)
		conns[i] = c
	}
	x := &nftables.Table{Family: nftables.TableFamilyINet, Name: "x"}
	for want := range uint32(3) {
		for _, c := range conns {
			s := &nftables.Set{Table: x, Anonymous: true, Constant: true, IsMap: want == 1, KeyType: nftables.TypeMark, DataType: nftables.TypeMark}
			if err := c.AddSet(s, nil); err != nil || s.ID != want+1 || s.Name == "" {
				t.Errorf("%v: %+v", err, s)
			}
		}
	}
}
