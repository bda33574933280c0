package network_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/networktest"
)

func TestDiffThenApply(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		a, b := networktest.Random(r), networktest.Random(r)
		a.Rules4, b.UserProxy = rapid.Bool().Draw(r, "rules"), rapid.Bool().Draw(r, "proxy")
		ch := network.Diff(a, b)
		if got := ch.Apply(a); got.String() != b.String() {
			t.Fatalf("from\n%sto\n%sgot\n%s", a, b, got)
		}
		if ch.Empty() != (a.String() == b.String()) {
			t.Fatalf("Empty is %t from\n%sto\n%s", ch.Empty(), a, b)
		}
		if !network.Diff(b, b.Clone()).Empty() {
			t.Fatal("a config differs from its copy")
		}
	})
}

func TestText(t *testing.T) {
	want := `rules ipv4 ipv6 forward
underlay 10.99.0.1 port 4789
overlay net1 vni 4096 mtu 1350 10.0.9.1/24 fd09::1/64
  peer 10.0.9.200 fd09::200 at 10.99.0.2
  peer 10.0.9.201 fd09::201 at 10.99.0.3
bridge legion0 172.17.0.1/16 mtu 1400 masquerade
bridge legion1 172.18.0.1/16 fd17::1/64 mtu 1400 masquerade
sandbox o-0
  eth0 02:42:0a:00:09:02 10.0.9.2/24 fd09::2/64 on overlay net1 as vetho-2 mtu 1350
sandbox s0-0 via 172.17.0.1
  eth0 02:42:ac:11:00:02 172.17.0.2/16 on legion0 as veth0-2 mtu 1400
sandbox s1-0 via 172.18.0.1 via fd17::1
  eth0 02:42:ac:12:00:02 172.18.0.2/16 fd17::2/64 on legion1 as veth1-2 mtu 1400
port tcp 0.0.0.0:20000 -> 172.17.0.2:80 in s0-0
port tcp 0.0.0.0:21000 -> 172.18.0.2:80 in s1-0
`
	if got := networktest.Sample(1).String(); got != want {
		t.Errorf("got\n%s", got)
	}
}
