package test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestUpdateFlags gives every flag of "docker service update" to the stock client
// once, and looks at what came of it.
func TestUpdateFlags(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	n.docker(t, "service", "create", "-d", "--no-resolve-image", "--name", "web", "--replicas", "0", "app:1", "sleep")
	for _, name := range []string{"secret", "config"} {
		n.docker(t, name, "create", name+"1", mustAbs(t, "updates_test.go"))
	}
	const (
		container = "{{json .Spec.TaskTemplate.ContainerSpec."
		task      = "{{json .Spec.TaskTemplate."
	)
	for _, c := range []struct{ flags, field, want string }{
		{"--args=one", container + "Args}}", `["one"]`},
		{"--cap-add=NET_RAW", container + "CapabilityAdd}}", `["CAP_NET_RAW"]`},
		{"--cap-drop=CHOWN", container + "CapabilityDrop}}", `["CAP_CHOWN"]`},
		{"--config-add=config1", container + "Configs}}", `"config1"`},
		{"--config-rm=config1", container + "Configs}}", `null`},
		{"--constraint-add=node.role==worker", task + "Placement.Constraints}}", `["node.role==worker"]`},
		{"--constraint-rm=node.role==worker", task + "Placement.Constraints}}", ``},
		{"--container-label-add=a=b", container + "Labels}}", `{"a":"b"}`},
		{"--container-label-rm=a", container + "Labels}}", ``},
		{"--dns-add=1.1.1.1", container + "DNSConfig.Nameservers}}", `["1.1.1.1"]`},
		{"--dns-option-add=ndots:2", container + "DNSConfig.Options}}", `["ndots:2"]`},
		{"--dns-search-add=example.com", container + "DNSConfig.Search}}", `["example.com"]`},
		{"--dns-rm=1.1.1.1 --dns-option-rm=ndots:2 --dns-search-rm=example.com", container + "DNSConfig}}", `{}`},
		{"--endpoint-mode=dnsrr", "{{.Spec.EndpointSpec.Mode}}", `dnsrr`},
		{"--endpoint-mode=vip", "{{.Spec.EndpointSpec.Mode}}", `vip`},
		{"--entrypoint=/testprog", container + "Command}}", `["/testprog"]`},
		{"--env-add=A=b", container + "Env}}", `["A=b"]`},
		{"--env-rm=A", container + "Env}}", ``},
		{"--force", task + "ForceUpdate}}", `1`},
		{"--generic-resource-add=gpu=1", task + "Resources.Reservations.GenericResources}}", `"gpu"`},
		{"--generic-resource-rm=gpu", task + "Resources.Reservations.GenericResources}}", ``},
		{"--group-add=7", container + "Groups}}", `["7"]`},
		{"--group-rm=7", container + "Groups}}", ``},
		{"--health-cmd=true --health-interval=2s --health-retries=4 --health-start-interval=1s --health-start-period=3s --health-timeout=5s", container + "Healthcheck}}", `{"Test":["CMD-SHELL","true"],"Interval":2000000000,"Timeout":5000000000,"StartPeriod":3000000000,"Retries":4}`},
		// (The client sends no start interval with updates.)
		{"--no-healthcheck", container + "Healthcheck.Test}}", `["NONE"]`},
		{"--host-add=db:10.0.0.9", container + "Hosts}}", `["10.0.0.9 db"]`},
		{"--host-rm=db:10.0.0.9", container + "Hosts}}", ``},
		{"--hostname=h1", container + "Hostname}}", `"h1"`},
		{"--image=app:2", container + "Image}}", `"app:2"`},
		{"--init", container + "Init}}", `true`},
		{"--isolation=default", container + "Isolation}}", `"default"`},
		{"--label-add=team=x", "{{json .Spec.Labels}}", `{"team":"x"}`},
		{"--label-rm=team", "{{json .Spec.Labels}}", `{}`},
		{"--limit-cpu=0.5 --limit-memory=64M --limit-pids=100", task + "Resources.Limits}}", `{"NanoCPUs":500000000,"MemoryBytes":67108864,"Pids":100}`},
		{"--log-driver=json-file --log-opt=max-size=1m", task + "LogDriver}}", `{"Name":"json-file","Options":{"max-size":"1m"}}`},
		{"--mount-add=type=volume,source=v,target=/v", container + "Mounts}}", `"/v"`},
		{"--mount-rm=/v", container + "Mounts}}", ``},
		{"--network-add=host", task + "Networks}}", `"Target"`},
		{"--network-rm=host", task + "Networks}}", ``},
		{"--oom-score-adj=100", container + "OomScoreAdj}}", `100`},
		{"--placement-pref-add=spread=node.labels.zone", task + "Placement.Preferences}}", `"node.labels.zone"`},
		{"--placement-pref-rm=spread=node.labels.zone", task + "Placement.Preferences}}", ``},
		{"--publish-add=18099:80", "{{json .Spec.EndpointSpec.Ports}}", `18099`},
		{"--publish-rm=80", "{{json .Spec.EndpointSpec.Ports}}", ``},
		{"--read-only", container + "ReadOnly}}", `true`},
		{"--replicas=0", "{{.Spec.Mode.Replicated.Replicas}}", `0`},
		{"--replicas-max-per-node=3", task + "Placement.MaxReplicas}}", `3`},
		{"--reserve-cpu=0.25 --reserve-memory=32M", task + "Resources.Reservations}}", `{"NanoCPUs":250000000,"MemoryBytes":33554432}`},
		{"--restart-condition=on-failure --restart-delay=3s --restart-max-attempts=2 --restart-window=9s", task + "RestartPolicy}}", `{"Condition":"on-failure","Delay":3000000000,"MaxAttempts":2,"Window":9000000000}`},
		{"--rollback-delay=1s --rollback-failure-action=continue --rollback-max-failure-ratio=0.25 --rollback-monitor=2s --rollback-order=start-first --rollback-parallelism=3", "{{json .Spec.RollbackConfig}}", `{"Parallelism":3,"Delay":1000000000,"FailureAction":"continue","Monitor":2000000000,"MaxFailureRatio":0.25,"Order":"start-first"}`},
		{"--update-delay=1s --update-failure-action=rollback --update-max-failure-ratio=0.5 --update-monitor=2s --update-order=start-first --update-parallelism=0", "{{json .Spec.UpdateConfig}}", `{"Parallelism":0,"Delay":1000000000,"FailureAction":"rollback","Monitor":2000000000,"MaxFailureRatio":0.5,"Order":"start-first"}`},
		{"--secret-add=secret1", container + "Secrets}}", `"secret1"`},
		{"--secret-rm=secret1", container + "Secrets}}", `null`},
		{"--stop-grace-period=4s --stop-signal=SIGINT", container + "StopGracePeriod}}", `4000000000`},
		{"--sysctl-add=net.ipv4.ip_forward=1", container + "Sysctls}}", `{"net.ipv4.ip_forward":"1"}`},
		{"--sysctl-rm=net.ipv4.ip_forward", container + "Sysctls}}", ``},
		{"--tty", container + "TTY}}", `true`},
		{"--ulimit-add=nofile=100:200", container + "Ulimits}}", `[{"Name":"nofile","Hard":200,"Soft":100}]`},
		{"--ulimit-rm=nofile", container + "Ulimits}}", ``},
		{"--user=1:1 --workdir=/tmp", container + "User}}", `"1:1"`},
		{"--with-registry-auth --quiet", container + "Image}}", `"app:2"`},
		{"--rollback", container + "Image}}", `"app:2"`},
	} {
		args := append([]string{"service", "update", "-d", "--no-resolve-image"}, strings.Fields(c.flags)...)
		if c.flags == "--rollback" {
			args = []string{"service", "update", "-d", "--rollback"}
		}
		if _, err := n.command("docker", append(args, "web")...); err != nil {
			t.Errorf("%s: %v", c.flags, err)
			continue
		}
		if got := strings.TrimSpace(n.docker(t, "service", "inspect", "-f", c.field, "web")); c.want == "" && got != "null" && got != "[]" && got != "{}" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %s is %s, want %s", c.flags, c.field, got, c.want)
		}
	}
	for flags, why := range map[string]string{
		"--update-order=sideways": "sideways", "--update-failure-action=explode": "explode", "--update-max-failure-ratio=2": "ratio",
		"--rollback-failure-action=rollback": "rollback", "--label-add=legion.update.canary=some": "legion.update.canary", "--label-add=legion.nope=1": "legion.nope",
		"--constraint-add=node.role~worker": "constraint", "--restart-condition=never": "never", "--endpoint-mode=nope": "nope", "--network-add=nope": "nope",
	} {
		if err := n.dockerFails(t, append([]string{"service", "update", "-d", flags}, "web")...); !strings.Contains(err.stderr, why) {
			t.Errorf("%s: %s, want %q in it", flags, err.stderr, why)
		}
	}
}

// TestVersions follows canaries, plans and versions through the command line.
func TestVersions(t *testing.T) {
	n := swarmNode(t)
	for _, image := range []string{"app:1", "app:2"} {
		n.image(t, image, "")
	}
	n.service(t, "web", "--replicas", "3", "--update-monitor", "200ms", "--label", "legion.update.canary=1", "--label", "legion.history=2", "app:1", "sleep")
	n.awaitContainers(t, "web", 3)

	plan := n.legion(t, "service", "plan", "--image", "app:2", "--replicas", "4", "web")
	for _, want := range []string{"image app:1 → app:2", "replicas 3 → 4", "3 tasks replaced, 1 made, 0 ended", "legion service promote web"} {
		contains(t, plan, want)
	}
	contains(t, n.legion(t, "service", "plan", "--constraint-add", "node.labels.zone==a", "web"), "scheduling constraints not satisfied on 1 node")
	contains(t, n.docker(t, "service", "inspect", "-f", "{{.Spec.TaskTemplate.ContainerSpec.Image}}", "web"), "app:1")

	n.docker(t, "service", "update", "-d", "--no-resolve-image", "--image", "app:2", "web")
	status := func(want string) {
		t.Helper()
		awaitFor(t, 20*time.Second, want, func() error {
			if s := n.docker(t, "service", "inspect", "-f", "{{.UpdateStatus.State}}: {{.UpdateStatus.Message}}", "web"); !strings.Contains(s, want) {
				return fmt.Errorf("%s", s)
			}
			return nil
		})
	}
	status("updating: 1 of 3 tasks are canaries")
	n.legion(t, "service", "promote", "web")
	status("completed")
	n.docker(t, "service", "scale", "-d", "web=2")
	history := n.legion(t, "service", "history", "web")
	for _, want := range []string{"VERSION", "3 *", "replicas 3 → 2", "image app:1 → app:2"} {
		contains(t, history, want)
	}
	n.legion(t, "service", "rollback", "--to", "1", "web")
	status("rollback_completed")
	for _, id := range n.awaitContainers(t, "web", 3) {
		if image := n.inspect(t, id, "{{.Config.Image}}"); image != "app:1" {
			t.Errorf("image %s", image)
		}
	}
	if got := strings.Fields(n.legion(t, "service", "history", "-q", "web")); len(got) != 3 || got[0] != "4" {
		t.Errorf("versions %v, want three, 4 the newest", got)
	}
	if _, err := n.command(legionBinary(t), "service", "rollback", "--to", "1", "web"); err == nil || !strings.Contains(err.Error(), "no version 1") {
		t.Error(err)
	}
}
