package test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// image makes an image whose only files are /prog (engine/enginetest/prog) and
// /web (demo/web), and loads it. config is more JSON for its config.
func (n *node) image(t *testing.T, name, config string) {
	t.Helper()
	n.imageOf(t, name, config, map[string]string{"prog": "./engine/enginetest/prog", "web": "./demo/web"})
}

// imageOf makes an image of our programs, each a file in its root, and loads it.
func (n *node) imageOf(t *testing.T, name, config string, programs map[string]string) {
	t.Helper()
	rootfs := filepath.Join(n.dir, "rootfs-"+strings.Join(slices.Sorted(maps.Keys(programs)), "-"))
	if _, err := os.Stat(rootfs); err != nil {
		for bin, pkg := range programs {
			build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(rootfs, bin), pkg)
			build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("build %s: %v\n%s", pkg, err, out)
			}
		}
		if err := os.MkdirAll(rootfs+"/tmp", 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if config != "" {
		config = "," + config
	}
	archive, err := exec.Command(root+"/scripts/pack-image", name, rootfs, `"Entrypoint":["/prog"],"Env":["PATH=/"]`+config).Output()
	if err != nil {
		t.Fatalf("pack-image: %v", err)
	}
	file := n.dir + "/image.tar"
	if err := os.WriteFile(file, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	n.docker(t, "image", "load", "-q", "-i", file)
}

// service creates one of the image app:1 and waits until docker says that it
// has converged.
func (n *node) service(t *testing.T, name string, args ...string) {
	t.Helper()
	n.docker(t, append([]string{"service", "create", "-q", "--no-resolve-image", "--restart-delay", "100ms", "--name", name}, args...)...)
}

// containers are the full ids of a service's running containers, sorted.
func (n *node) containers(service string) ([]string, error) {
	out, err := n.command("docker", "ps", "-q", "--no-trunc", "-f", "label=com.docker.swarm.service.name="+service)
	ids := strings.Fields(out)
	slices.Sort(ids)
	return ids, err
}

// awaitContainers waits until the service has so many running ones.
func (n *node) awaitContainers(t *testing.T, service string, count int) []string {
	t.Helper()
	var ids []string
	await(t, fmt.Sprintf("%d containers of %s", count, service), func() (err error) {
		if ids, err = n.containers(service); err == nil && len(ids) != count {
			err = fmt.Errorf("there are %d", len(ids))
		}
		return err
	})
	return ids
}

// awaitReplicas waits for a line of service ls, as web 3/3.
func (n *node) awaitReplicas(t *testing.T, service, replicas string) {
	t.Helper()
	await(t, service+" "+replicas, func() error {
		out, err := n.command("docker", "service", "ls", "--format", "{{.Name}} {{.Replicas}}", "-f", "name="+service)
		if err == nil && !slices.Contains(strings.Split(strings.TrimSpace(out), "\n"), service+" "+replicas) {
			err = fmt.Errorf("service ls says %q", out)
		}
		return err
	})
}

// inspect evaluates a template on an object.
func (n *node) inspect(t *testing.T, object, template string) string {
	t.Helper()
	return n.docker(t, "inspect", "-f", template, object)
}

// pids are the processes of a service's containers, as the host numbers them,
// sorted.
func (n *node) pids(t *testing.T, service string) []int {
	t.Helper()
	pids, err := n.processes(service)
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

// processes is pids for a service that may be changing: a container that goes
// between two questions is an error.
func (n *node) processes(service string) ([]int, error) {
	ids, err := n.containers(service)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	out, err := n.command("docker", append([]string{"inspect", "-f", "{{.State.Pid}}"}, ids...)...)
	if err != nil {
		return nil, err
	}
	var pids []int
	for word := range strings.FieldsSeq(out) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, nil
}

// tasks are lines of service ps.
func (n *node) tasks(t *testing.T, service, format string) []string {
	t.Helper()
	out := n.docker(t, "service", "ps", "--no-trunc", "--format", format, service)
	if out == "" {
		return nil
	}
	return strings.Split(out, "\n")
}

// awaitTask waits until a line of service ps has all the words, ignoring case.
func (n *node) awaitTask(t *testing.T, service, format string, words ...string) {
	t.Helper()
	await(t, fmt.Sprintf("a task of %s with %q", service, words), func() error {
		out, err := n.command("docker", "service", "ps", "--no-trunc", "--format", format, service)
		if err != nil {
			return err
		}
		for line := range strings.SplitSeq(strings.ToLower(out), "\n") {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, strings.ToLower(w)) }) {
				return nil
			}
		}
		return fmt.Errorf("service ps says %q", out)
	})
}

// api sends a request and returns status and body.
func (n *node) api(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://legion/v1.44"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := n.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// message is the text of an API error.
func message(t *testing.T, body string) string {
	t.Helper()
	var e struct{ Message string }
	if err := json.Unmarshal([]byte(body), &e); err != nil || e.Message == "" {
		t.Errorf("an error's body is %q, want {\"message\": …}", body)
	}
	return e.Message
}

// contains fails the test unless the text has the part, ignoring case.
func contains(t *testing.T, text, part string) {
	t.Helper()
	if !strings.Contains(strings.ToLower(text), strings.ToLower(part)) {
		t.Errorf("no %q in: %s", part, text)
	}
}
