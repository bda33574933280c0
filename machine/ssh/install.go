package ssh

import (
	"fmt"
	"strings"

	"github.com/legion-swarm/legion/machine"
	"github.com/legion-swarm/legion/settings"
)

// Where things are on the host.
const (
	binary   = "/usr/local/bin/legion"
	confDir  = "/etc/legion"
	runFile  = confDir + "/run"
	caFile   = confDir + "/machine-ca.pem"
	certFile = confDir + "/machine-cert.pem"
	keyFile  = confDir + "/machine-key.pem"
	unitName = "legion.service"
	unitFile = "/etc/systemd/system/" + unitName
	logFile  = "/var/log/legion.log"
)

// runScript starts the daemon; whatever starts services on the host runs it.
func runScript(o Options, e machine.Engine) string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\n# Starts Legion's daemon. Written by: legion machine create.\n")
	for _, v := range e.Env {
		name, value, _ := strings.Cut(v, "=")
		fmt.Fprintf(&b, "export %s=%s\n", name, machine.Quote(value))
	}
	args := append([]string{
		binary, "daemon", "--host", "unix://" + settings.DefaultSocket, "--host", fmt.Sprintf("tcp://0.0.0.0:%d", o.APIPort),
		"--tlsverify", "--tlscacert", caFile, "--tlscert", certFile, "--tlskey", keyFile,
	}, e.Flags...)
	b.WriteString("exec")
	for _, a := range args {
		b.WriteString(" " + machine.Quote(a))
	}
	b.WriteString("\n")
	return b.String()
}

// unit is the systemd unit. Containers outlive the daemon, so only its own
// process is ended with it.
const unit = `[Unit]
Description=Legion
Documentation=https://docs.docker.com
After=network-online.target firewalld.service nss-lookup.target
Wants=network-online.target

[Service]
Type=notify
ExecStart=` + runFile + `
ExecReload=/bin/kill -s HUP $MAINPID
Restart=always
RestartSec=2
TimeoutStartSec=0
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
Delegate=yes
KillMode=process
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
`

// service are the lines of shell that handle the daemon on a host.
type service struct{ start, stop, kill, remove string }

// running names the daemon's process, where no service manager knows it.
const running = `pid=$(cat ` + settings.DefaultPidfile + ` 2>/dev/null) && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null`

func bySystemd() service {
	return service{
		start:  "systemctl daemon-reload && systemctl enable -q " + unitName + " && systemctl start " + unitName,
		stop:   "systemctl stop " + unitName,
		kill:   "systemctl kill -s KILL --kill-who=main " + unitName + "; systemctl stop " + unitName,
		remove: "systemctl disable -q --now " + unitName + "; rm -f " + unitFile + "; systemctl daemon-reload",
	}
}

// byHand is for hosts without systemd.
func byHand() service {
	const stop = running + ` && { kill "$pid"; for i in $(seq 300); do kill -0 "$pid" 2>/dev/null || exit 0; sleep 0.1; done; echo "process $pid does not end" >&2; exit 1; }; true`
	return service{
		start:  running + ` && exit 0; setsid ` + runFile + ` </dev/null >>` + logFile + ` 2>&1 &`,
		stop:   stop,
		kill:   running + ` && kill -9 "$pid"; true`,
		remove: "(" + stop + ")",
	}
}

// uninstall removes what was installed; the node's data stays.
const uninstall = "rm -f " + binary + " " + runFile + " " + caFile + " " + certFile + " " + keyFile + "; rmdir " + confDir + " 2>/dev/null; true"

// put is a line of shell that writes standard input to a file, whole or not at
// all.
func put(path, mode string) string {
	return fmt.Sprintf("umask 077 && mkdir -p -m 755 $(dirname %[1]s) && cat >%[1]s.new && chmod %[2]s %[1]s.new && mv -f %[1]s.new %[1]s", path, mode)
}

// claim is a line of shell that makes a file, and fails if it is there: of several
// that would install at once, one does.
func claim(path string) string {
	return fmt.Sprintf("mkdir -p -m 755 $(dirname %[1]s) && set -C && : >%[1]s", path)
}

// machineOf reads what `uname -sm` says and returns Go's name for the
// processor.
func machineOf(uname string) (string, error) {
	w := strings.Fields(uname)
	if len(w) != 2 {
		return "", fmt.Errorf("uname says %q", uname)
	}
	if w[0] != "Linux" {
		return "", fmt.Errorf("the host runs %s: a machine runs Linux", w[0])
	}
	arch := map[string]string{"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}[w[1]]
	if arch == "" {
		return "", fmt.Errorf("the host is a %s, which is not known", w[1])
	}
	return arch, nil
}
