package test

import (
	"strings"
	"testing"
)

// TestGatewayModes has the command line say what becomes of published ports in
// networks that are routed, and why a network can't be made.
func TestGatewayModes(t *testing.T) {
	n := startedNode(t)
	n.image(t, "app:1", "")
	const option = "com.docker.network.bridge."
	contains(t, n.dockerFails(t, "network", "create", "-o", option+"gateway_mode_ipv4=isolated", "x").stderr, "gateway mode 'isolated' can only be used for an internal network")
	contains(t, n.dockerFails(t, "network", "create", "-o", option+"gateway_mode_ipv4=open", "x").stderr, "must be one of the gateway modes nat, nat-unprotected, routed and isolated")
	n.docker(t, "network", "create", "-o", option+"gateway_mode_ipv4=routed", "routed")
	n.docker(t, "network", "create", "both")
	n.docker(t, "network", "create", "--internal", "-o", option+"gateway_mode_ipv4=isolated", "alone")
	n.docker(t, "run", "-d", "--name", "one", "--network", "routed", "-p", "18080:80", "app:1", "sleep")
	for _, c := range []struct{ what, want string }{
		{n.docker(t, "port", "one"), "80/tcp -> 0.0.0.0:"},
		{n.docker(t, "inspect", "-f", "{{json .NetworkSettings.Ports}}", "one"), `{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":""}]}`},
		{n.docker(t, "ps", "--format", "{{.Ports}}", "--filter", "name=one"), "80/tcp"},
		{n.docker(t, "network", "inspect", "-f", "{{index .Options \""+option+"gateway_mode_ipv4\"}}", "routed"), "routed"},
	} {
		if c.what != c.want {
			t.Errorf("got %q, not %q", c.what, c.want)
		}
	}
	if out := n.docker(t, "network", "inspect", "-f", "{{json .IPAM.Config}}", "alone"); strings.Contains(out, "Gateway") {
		t.Errorf("an isolated network: %s", out)
	}
	n.docker(t, "network", "connect", "--gw-priority", "1", "both", "one")
	contains(t, n.docker(t, "port", "one"), "80/tcp -> 0.0.0.0:18080")
	n.docker(t, "network", "disconnect", "both", "one")
	if got := n.docker(t, "port", "one"); got != "80/tcp -> 0.0.0.0:" {
		t.Errorf("disconnected: %q", got)
	}
	n.docker(t, "rm", "-f", "one")
	n.docker(t, "network", "rm", "routed", "both", "alone")
}
