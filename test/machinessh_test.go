package test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// sshd returns a shell command that runs an ssh server.
func sshd(t *testing.T) string {
	t.Helper()
	var bad strings.Builder
	get := exec.Command(root + "/scripts/get-sshd")
	get.Stderr = &bad
	out, err := get.Output()
	if err != nil {
		t.Fatalf("get-sshd: %v: %s", err, bad.String())
	}
	return strings.TrimSpace(string(out))
}

// bareHost makes a local machine into something like another computer: without
// a daemon, with /etc, /usr/local and /var of its own, and an ssh server that
// lets the key in.
func (m *machines) bareHost(t *testing.T, name string) (key string) {
	t.Helper()
	m.run(t, "create", "--local-bare", name)
	key = m.work + "/key"
	for _, file := range []string{key, m.work + "/hostkey"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	m.run(t, "ssh", name, `set -e; mkdir -p /run/own /run/sshd
for d in etc usr/local var; do mkdir -p /run/own/$d /run/work/$d; mount -t overlay overlay -o lowerdir=/$d,upperdir=/run/own/$d,workdir=/run/work/$d /$d; done
grep -q ^sshd: /etc/passwd || echo sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin >>/etc/passwd`)
	for file, to := range map[string]string{"hostkey": "/run/sshd/hostkey", "key.pub": "/run/sshd/authorized"} {
		m.run(t, "scp", m.work+"/"+file, name+":"+to)
	}
	m.run(t, "ssh", name, `chmod 700 /run/sshd; chmod 600 /run/sshd/*; chmod 755 /run/sshd; `+sshd(t)+
		` -f /dev/null -h /run/sshd/hostkey -o AuthorizedKeysFile=/run/sshd/authorized -o UsePAM=no -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no -E /run/sshd/log`)
	return key
}

// TestMachineBySSH: a host that is reached by ssh becomes a machine, works as
// one over TLS, and is left as it was.
func TestMachineBySSH(t *testing.T) {
	m := newMachines(t)
	key := m.bareHost(t, "far")
	ip := m.run(t, "ip", "far")
	contains(t, m.run(t, "ls"), "far")
	m.fails(t, []string{"env", "far"}, "without a daemon")
	// What was written since, but for the log and the daemon's data.
	const changed = "cd /run/own; find . -type f ! -name legion.log ! -path './var/lib/legion/*' | sort; pgrep -fa '/legion daemo[n]' || true"
	before := m.run(t, "ssh", "far", changed)

	create := []string{"create", "--driver", "ssh", "--ssh-host", ip, "--ssh-key", key, "--engine-opt", "data-root=/run/legion-data", "--engine-label", "by=ssh"}
	m.fails(t, append(create, "--ssh-port", "2222", "away"), "reach root@"+ip, "2222", "refused")
	m.fails(t, append(create, "--engine-opt", "nonsense", "away"), "the daemon ended", "unknown flag: --nonsense")
	if after := m.run(t, "ssh", "far", changed); after != before {
		t.Errorf("a failed create left files:\n%s\nbefore:\n%s", after, before)
	}
	o := m.try(append(create, "away")...)
	if o.err != nil {
		t.Fatalf("%v: %s", o.err, o.stderr)
	}
	t.Logf("created in %v:\n%s", o.took, o.stderr)
	contains(t, o.stderr, "no systemd")
	contains(t, m.run(t, "ls", "--filter", "name=away"), "tcp://"+ip+":2376")
	m.fails(t, append(create, "again"), "is a machine already")
	if got := m.run(t, "ssh", "away", "hostname"); got != "far" {
		t.Errorf("host name %q", got)
	}

	docker := func(args string) string {
		t.Helper()
		cmd := exec.Command("bash", "-ec", `eval "$(`+root+`/bin/legion machine env away)"; docker `+args)
		cmd.Env = append(os.Environ(), "MACHINE_STORAGE_PATH="+m.dir, "DOCKER_CONFIG="+m.work+"/client")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("docker %s: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if got := docker(`info -f "{{.Name}} {{.Labels}} $DOCKER_TLS_VERIFY"`); got != "far [by=ssh] 1" {
		t.Errorf("info %q", got)
	}
	archive := m.work + "/app.tar"
	if out, err := exec.Command("cp", root+"/build/images/web.tar", archive).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	docker("load -q -i " + archive)
	docker("run -d --name web --network host web:1")
	if out, err := exec.Command("curl", "-sS", "--retry", "5", "--retry-connrefused", "-m", "5", "http://"+ip+":8080/").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	m.run(t, "scp", archive, "away:/run/copy")
	m.run(t, "ssh", "away", "cmp /run/copy "+archive)

	m.run(t, "restart", "away")
	if got := docker("ps -q -f name=web"); got == "" {
		t.Error("the container ended with the daemon")
	}
	m.run(t, "kill", "away")
	if got := m.run(t, "status", "away"); got != "Stopped" {
		t.Errorf("state %s", got)
	}
	m.run(t, "start", "away")
	docker("rm -f web")
	m.run(t, "rm", "-y", "away")
	if after := m.run(t, "ssh", "far", changed); after != before {
		t.Errorf("left on the host:\n%s\nbefore:\n%s", after, before)
	}
}
