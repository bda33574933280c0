package dockerapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/legion-swarm/legion/api"
)

// docker runs the stock docker command against the socket.
func docker(t *testing.T, path, stdin string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+path, "DOCKER_CONFIG="+filepath.Dir(path), "DOCKER_CLI_HINTS=false", "TZ=UTC")
	var o, e bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &o, &e
	err := cmd.Run()
	var exited *exec.ExitError
	if err != nil && (!errors.As(err, &exited) || ctx.Err() != nil) {
		t.Fatalf("docker %s: %v (the tests need Debian's docker-cli); %s%s", strings.Join(args, " "), err, o.String(), e.String())
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

func TestStockClient(t *testing.T) {
	for _, q := range []struct {
		args   string // split at blanks
		stdin  string
		status int
		out    string // expression that standard output matches
		err    string
	}{
		{args: "version", out: `(?s)Server: Legion.*API version:\s+1\.56 \(minimum version 1\.24\)`},
		{args: "info", out: `(?s)Swarm: inactive.*Name: host1`},
		{args: "ps", out: `4e5f6a7b8c9d\s+app:1\s+"/testprog sleep"\s+About an hour ago\s+Up 59 minutes\s+0\.0\.0\.0:8080->80/tcp\s+web\n`},
		{args: "ps -q --no-trunc -f label=x=y", out: "^" + webID + "\n$"},
		{args: "inspect -f {{.NetworkSettings.IPAddress}}/{{.State.Pid}} web", out: "^172.17.0.2/77\n$"},
		{args: "plugin inspect nothere", status: 1, err: `plugin "nothere" not found`},
		{args: "container inspect nothere", status: 1, err: "(?i)no such container: nothere"},
		{args: "logs web", out: "^out 1\nout 2\n$", err: "^err 1\n$"},
		{args: "logs -t --details web", out: `^1970-01-01T00:01:40\.000000005Z k=v\+w out 1\n`},
		{args: "exec web ls", out: "^exec output\n$"},
		{args: "exec -d web ls", out: "^$"},
		{args: "top web", out: `PID\s+CMD\n77\s+testprog\n`},
		{args: "stats --no-stream web", out: `4e5f6a7b8c9d\s+web\s+20\.00%\s+1MiB / 1GiB`},
		{args: "cp web:/etc/hello.txt -", out: "world"},
		{args: "wait web", out: "^0\n$"},
		{args: "start web", out: "^web\n$"},
		{args: "stop web", out: "^web\n$"},
		{args: "kill web", out: "^web\n$"},
		{args: "rm -f web", out: "^web\n$"},
		{args: "rename web other", out: "^$"},
		{args: "diff web", out: "^$"},
		{args: "commit web new:1", out: "^sha256:22\n$"},
		{args: "update --memory 64m web", out: "^web\n$"},
		{args: "export web", out: "^tar$"},
		{args: "events --until 200", out: `(?m)^1970-01-01T00:01:40\S+ container start 4e5f\S+ \(image=app:1, name=web\)$`},
		{args: "events --until 200 --format json", out: `"status":"start"`},
		{args: "image ls", out: `app\s+1\s+111111111111\s+About an hour ago\s+5\.24MB`},
		{args: "pull app:1", out: "Pulling from library/app"},
		{args: "push app:1", out: "push refers to repository"},
		{args: "image load", stdin: "tar", out: "^Loaded image: app:1\n$"},
		{args: "image import -", stdin: "tar", out: "^sha256:33\n$"},
		{args: "image history app:1", out: "COPY"},
		{args: "image rm app:1", out: "^Untagged: app:1\n$"},
		{args: "image save app:1", out: "^tar$"},
		{args: "image prune -f", out: "Total reclaimed space: 0B"},
		{args: "tag app:1 app:2", out: "^$"},
		{args: "search x", status: 1, err: "not served"},
		{args: "system df", out: `Images\s+1\s+0\s+7B`},
		{args: "volume ls", out: "DRIVER"},
		{args: "volume create v", out: "^v\n$"},
		{args: "volume rm v", out: "^v\n$"},
		{args: "network ls", out: `net1\s+bridge\s+bridge\s+local`},
		{args: "network create n", out: "^net1\n$"},
		{args: "network inspect n", out: `"Containers": \{\}`},
		{args: "plugin ls", out: "ENABLED"},
		{args: "swarm init --advertise-addr 127.0.0.1", out: `(?s)Swarm initialized: current node \(node1a+\) is now a manager.*SWMTKN-1-w`},
		{args: "swarm join-token -q worker", out: "^SWMTKN-1-w\n$"},
		{args: "swarm update --task-history-limit 2", out: "Swarm updated"},
		{args: "swarm leave --force", out: "Node left the swarm"},
		{args: "swarm unlock-key -q", out: "^SWMKEY-1-x\n$"},
		{args: "node ls", out: `node1a+ \*?\s+host1\s+Ready\s+Active\s+Leader\s+1\.2\.3`},
		{args: "node inspect --pretty host1", out: `Hostname:\s+host1`},
		{args: "node update --availability drain host1", out: "^host1\n$"},
		{args: "node ps host1", out: `web\.1`},
		{args: "service create --no-resolve-image -d --name web app:1 sleep", out: "^" + svcID + "\n$"},
		{args: "service ls", out: `svc1aaaaaaaa\s+web\s+replicated\s+3/3\s+app:1`},
		{args: "service ps web", out: `task1aaaaaaa\s+web\.1\s+app:1\s+host1\s+Running\s+Running about a minute ago`},
		{args: "service inspect --pretty web", out: `(?s)Name:\s+web.*Replicas:\s+3`},
		{args: "service inspect nothere", status: 1, err: "(?i)no such service: nothere"},
		{args: "service logs web", out: `(?m)^web\.1\.task1a+@host1\s+\| out 1$`, err: `\| err 1`},
		{args: "service update -d --replicas 5 web", out: "^web\n$"},
		{args: "service scale -d web=4", out: "web scaled to 4"},
		{args: "service rollback -d web", out: "^web\n$"},
		{args: "service rm web", out: "^web\n$"},
		{args: "secret create s -", stdin: "data", out: "^sec1\n$"},
		{args: "secret ls", out: "sec1"},
		{args: "config create c -", stdin: "data", out: "^cfg1\n$"},
		{args: "config inspect --pretty c", out: "seen"},
	} {
		t.Run(q.args, func(t *testing.T) {
			f := newFake()
			close(f.started) // containers have ended: wait returns
			f.started = closed()
			path := serve(t, newServer(t, f))
			out, errs, status := docker(t, path, q.stdin, strings.Fields(q.args)...)
			if status != q.status || !regexp.MustCompile(q.out).MatchString(out) || !regexp.MustCompile(q.err).MatchString(errs) {
				t.Errorf("status %d, want %d; out %q, want %s; err %q, want %s; backend saw %s", status, q.status, out, q.out, errs, q.err, f.took())
			}
		})
	}
}

func closed() chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}

// docker run waits, attaches and starts in an order that must not hang.
func TestStockClientRuns(t *testing.T) {
	f := newFake()
	f.exitCode = 5
	path := serve(t, newServer(t, f))
	out, errs, status := docker(t, path, "shout\n", "run", "-i", "app:1", "cat")
	if status != 5 || out != "SHOUT\n" || errs != "hello\n" {
		t.Errorf("status %d, out %q, err %q; backend saw %s", status, out, errs, f.took())
	}
}

func TestStockClientFollowsUntilInterrupted(t *testing.T) {
	f := newFake()
	path := serve(t, newServer(t, f))
	cmd := exec.CommandContext(t.Context(), "docker", "logs", "-f", "web")
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("out 1\nout 2\n"))); err != nil {
		t.Error(err)
	}
	_ = cmd.Process.Signal(os.Interrupt)
	_ = soon(t, f.attached, "the end of the backend's logs")
	_ = cmd.Wait() // interrupted
}

func TestStockClientCopiesIn(t *testing.T) {
	f := newFake()
	path := serve(t, newServer(t, f))
	file := filepath.Join(t.TempDir(), "in.txt")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, status := docker(t, path, "", "cp", file, "web:/tmp/hello.txt"); status != 0 {
		t.Fatal(errs)
	}
	if i := slices.IndexFunc(f.took(), func(s string) bool { return strings.HasPrefix(s, "ContainerExtract(web, /tmp, hello.txt=data") }); i < 0 {
		t.Errorf("backend saw %s", f.took())
	}
}

func TestStockClientAgainstNoManager(t *testing.T) {
	f := newFake()
	f.fail("ServiceList", api.Errorf(api.Unavailable, "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again."))
	_, errs, status := docker(t, serve(t, newServer(t, f)), "", "service", "ls")
	if status != 1 || !strings.Contains(errs, "Error response from daemon: This node is not a swarm manager") {
		t.Errorf("status %d, %q", status, errs)
	}
}
