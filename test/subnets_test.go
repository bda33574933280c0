package test

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSeveralSubnets has a service and a user's container in networks whose first
// subnet is too small for them: its own, and that of the routing mesh.
func TestSeveralSubnets(t *testing.T) {
	s := newSwarm(t, []string{"one"}, []string{"two"})
	one, two := s.nodes["one"], s.nodes["two"]
	if status, out := one.api(t, "DELETE", "/networks/ingress", ""); status != 204 {
		t.Fatalf("%d %s", status, out)
	}
	for _, request := range []string{ // the docker command mixes subnets up before it sends them
		`{"Name": "mesh", "Driver": "overlay", "Ingress": true, "IPAM": {"Config": [{"Subnet": "10.11.0.0/29"}, {"Subnet": "10.12.0.0/28"}]}}`,
		`{"Name": "several", "Driver": "overlay", "Attachable": true, "EnableIPv6": true, "IPAM": {"Config": [
			{"Subnet": "10.66.0.0/29"}, {"Subnet": "10.67.0.0/28", "Gateway": "10.67.0.14", "IPRange": "10.67.0.8/29"}, {"Subnet": "fd66::/126"}, {"Subnet": "fd67::/64"}]}}`,
	} {
		if status, out := one.api(t, "POST", "/networks/create", request); status != 201 {
			t.Fatalf("%d %s", status, out)
		}
	}
	if got, want := one.docker(t, "network", "inspect", "-f", "{{range .IPAM.Config}}{{.Subnet}} by {{.Gateway}},{{end}}", "several"), "10.66.0.0/29 by 10.66.0.1,10.67.0.0/28 by 10.67.0.14,fd66::/126 by fd66::1,fd67::/64 by fd67::1,"; got != want {
		t.Errorf("subnets %s", got)
	}
	const tasks = 6
	one.service(t, "web", "--replicas", fmt.Sprint(tasks), "--network", "several", "-p", "8080:8080", "--entrypoint", "/web", "app:1")
	two.docker(t, "run", "-d", "--name", "c1", "--network", "several", "--ip", "10.67.0.2", "--entrypoint", "/web", "app:1")
	client := two.inspect(t, "c1", "{{.Id}}")
	inside := func(args ...string) (string, error) {
		o := s.try("ssh", "two", strings.Join(args, " "))
		return o.stdout + o.stderr, o.err
	}
	found, subnets := map[string]bool{}, map[string]bool{}
	for _, n := range []*node{one, two} {
		for _, id := range n.awaitContainers(t, "web", tasks/2) {
			found[id[:12]] = true
			for _, field := range []string{"IPAddress", "GlobalIPv6Address"} {
				host := n.inspect(t, id, "{{.NetworkSettings.Networks.several."+field+"}}")
				if subnets[host[:5]] = true; strings.Contains(host, ":") {
					host = "[" + host + "]"
				}
				await(t, "an answer of "+host, func() error { return two.reaches(t, inside, client, host, id) })
			}
		}
	}
	if got := slices.Sorted(maps.Keys(subnets)); fmt.Sprint(got) != "[10.66 10.67 fd66: fd67:]" {
		t.Errorf("tasks are in the subnets %v", got)
	}
	contains(t, s.run(t, "ssh", "two", "nsenter --net=/proc/"+two.inspect(t, client, "{{.State.Pid}}")+"/ns/net ip route show 10.66.0.0/29"), "dev eth0 scope link")

	// By every node, each task, whatever its subnet of the mesh is.
	for _, entry := range []string{"one", "two"} {
		answered := map[string]bool{}
		await(t, "answers of all by "+entry, func() error {
			c := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			for range 10 * tasks {
				r, err := c.Get("http://" + s.ip(t, entry) + ":8080/")
				if err != nil {
					return err
				}
				body, err := io.ReadAll(r.Body)
				_ = r.Body.Close()
				if err != nil {
					return err
				}
				for id := range found {
					if strings.Contains(string(body), id) {
						answered[id] = true
					}
				}
			}
			if len(answered) < tasks {
				return fmt.Errorf("%d of %d tasks have answered", len(answered), tasks)
			}
			return nil
		})
	}

	// The service has one address, the first subnet another four, the range of the second six.
	one.docker(t, "service", "scale", "-d", "web=30")
	await(t, "the network is full", func() error {
		out := one.docker(t, "service", "ps", "--no-trunc", "web")
		const says = "no address is left in any of its 2 subnets: 14 are in use, 6 in 10.66.0.0/29 (10.66.0.1 to 10.66.0.6), 8 in 10.67.0.0/28 (10.67.0.8 to 10.67.0.14)"
		if n := strings.Count(out, says); n != 20 {
			return fmt.Errorf("%d tasks say so: %s", n, out)
		}
		return nil
	})
	one.docker(t, "service", "rm", "web")
	two.docker(t, "rm", "-f", "c1")
	await(t, "the network is free", func() error {
		_, err := one.command("docker", "network", "rm", "several")
		return err
	})
}
