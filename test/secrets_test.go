package test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// file writes a file for the client to read.
func (n *node) file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// one is the id of a service's only container.
func (n *node) one(t *testing.T, service string) string {
	t.Helper()
	return n.awaitContainers(t, service, 1)[0]
}

// TestSecrets follows secrets and configs from the client into containers, and out
// of them.
func TestSecrets(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	const value = "the-one-and-only-s3cret"
	n.docker(t, "secret", "create", "-l", "a=b", "pw", n.file(t, "pw", value))
	n.docker(t, "config", "create", "--template-driver", "golang", "conf",
		n.file(t, "conf", `{{.Service.Name}} {{.Task.Slot}} {{env "WHO"}} {{secret "key"}}`))
	if out := n.docker(t, "secret", "ls", "-q", "-f", "label=a=b"); len(strings.Fields(out)) != 1 {
		t.Errorf("listed by label: %q", out)
	}
	if out := n.docker(t, "secret", "ls", "-q", "-f", "name=nope"); out != "" {
		t.Errorf("listed by another name: %q", out)
	}
	contains(t, n.docker(t, "secret", "inspect", "--pretty", "pw"), "a=b")
	if out := n.docker(t, "secret", "inspect", "pw"); strings.Contains(out, "Data") {
		t.Errorf("inspect tells the secret: %s", out)
	}
	n.service(t, "db", "-d", "--secret", "source=pw,target=key,uid=7,gid=8,mode=0440", "--secret", "source=pw,target=/etc/pw", "--config", "source=conf,target=etc/conf",
		"--env", "WHO=me-{{.Task.Slot}}", "app:1", "sleep")
	id := n.one(t, "db")
	for path, want := range map[string]string{"/run/secrets/key": value, "/etc/pw": value, "/etc/conf": "db 1 me-1 " + value} {
		if out := n.docker(t, "exec", id, "/prog", "read", path); out != want {
			t.Errorf("%s: %q, want %q", path, out, want)
		}
	}
	contains(t, n.dockerFails(t, "exec", id, "/prog", "write", "/run/secrets/key", "x").stderr, "read-only")
	n.onDisk(t, value)

	t.Run("refused", func(t *testing.T) {
		for want, args := range map[string][]string{
			"secret pw already exists":            {"secret", "create", "pw", n.file(t, "x", "x")},
			"less than 512000 bytes":              {"secret", "create", "big", n.file(t, "big", strings.Repeat("x", 512000))},
			"less than 1024000 bytes":             {"config", "create", "big", n.file(t, "big", strings.Repeat("x", 1024000))},
			"driver":                              {"secret", "create", "-d", "vault", "d"},
			`"jinja" is not known`:                {"secret", "create", "--template-driver", "jinja", "j", n.file(t, "x", "x")},
			"there is no .Nope":                   {"config", "create", "--template-driver", "golang", "t", n.file(t, "t", "{{.Nope}}")},
			"in use by the following service: db": {"secret", "rm", "pw"},
			"legion.version-off":                  {"secret", "create", "-l", "legion.version-off=pw", "v", n.file(t, "x", "x")},
			"secret not found: nosuch":            {"service", "create", "--name", "x", "--secret", "nosuch", "app:1"},
			"conflicting target":                  {"service", "create", "--name", "x", "--no-resolve-image", "--secret", "pw", "--config", "source=conf,target=/run/secrets/pw", "app:1"},
			"is not a number":                     {"service", "create", "--name", "x", "--no-resolve-image", "--secret", "source=pw,target=x,uid=root", "app:1"},
		} {
			if stderr := n.dockerFails(t, args...).stderr; !strings.Contains(stderr, want) {
				t.Errorf("%v: %s, want %s", args, stderr, want)
			}
		}
	})
	t.Run("gone with the last user", func(t *testing.T) {
		files := filepath.Join(n.dir, "exec", "files")
		if entries, err := os.ReadDir(files); err != nil || len(entries) == 0 {
			t.Fatalf("no files in %s: %v", files, err)
		}
		n.service(t, "once", "-d", "--restart-condition", "none", "--secret", "pw", "app:1", "read", "/run/secrets/pw")
		n.awaitTask(t, "once", "{{.CurrentState}}", "complete")
		ended := n.docker(t, "ps", "-aq", "--no-trunc", "-f", "label=com.docker.swarm.service.name=once")
		contains(t, n.docker(t, "logs", ended), value)
		contains(t, n.dockerFails(t, "start", ended).stderr, "in memory only")
		n.docker(t, "service", "rm", "once")
		n.docker(t, "service", "scale", "-d", "db=0")
		await(t, "the files are gone, though the container may be there", func() error {
			held := 0
			err := filepath.WalkDir(files, func(_ string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					held++
				}
				return err
			})
			if err != nil && !errors.Is(err, fs.ErrNotExist) || held > 0 {
				return fmt.Errorf("%d files, %w", held, err)
			}
			return nil
		})
		n.docker(t, "service", "rm", "db")
		n.docker(t, "secret", "rm", "pw")
		n.docker(t, "config", "rm", "conf")
	})
}

// awaitUpdate waits until the service's update is in a state.
func (n *node) awaitUpdate(t *testing.T, service, state string) {
	t.Helper()
	await(t, "the update is "+state, func() error {
		s, err := n.command("docker", "service", "inspect", "-f", "{{.UpdateStatus.State}}", service)
		if s = strings.TrimSpace(s); err == nil && s != state {
			err = errors.New(s)
		}
		return err
	})
}

// onDisk fails the test if the text is anywhere in the node's folder, but for what
// the test itself wrote there.
func (n *node) onDisk(t *testing.T, text string) {
	t.Helper()
	data := filepath.Join(n.dir, "data")
	if _, err := os.Stat(data); err != nil {
		t.Fatal(err)
	}
	files := 0
	err := filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // it has gone meanwhile
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		files++
		if bytes.Contains(b, []byte(text)) {
			t.Errorf("a secret is on the disk: %s", path)
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("looked into %d files: %v", files, err)
	}
}

// TestTemplates has a service's templates filled in, those too that Docker has not.
func TestTemplates(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	n.service(t, "tpl", "-d", "--replicas", "2", "--hostname", "{{.Service.Name}}-{{.Task.Slot}}", "-e", "N={{.Node.Hostname}}/{{.Task.Name}}",
		"--label", "tier=front", "--container-label", "router=/{{.Service.Name}}/{{.Service.Labels.tier}}", "--container-label", "other={{.Names}}",
		"--mount", "type=volume,source=data-{{.Task.Slot}},target=/data/{{.Task.Slot}},volume-label=slot={{.Task.Slot}}",
		"--log-driver", "json-file", "--log-opt", "tag={{.Service.Name}}.{{.Task.Slot}}",
		"app:1", "all", "echo", "slot={{.Task.Slot}}", "format={{.ID}}", ",", "sleep")
	seen := map[string]bool{}
	for _, id := range n.awaitContainers(t, "tpl", 2) {
		host := n.inspect(t, id, "{{.Config.Hostname}}")
		slot := strings.TrimPrefix(host, "tpl-")
		seen[slot] = true
		for format, want := range map[string]string{
			`{{index .Config.Labels "router"}}`:                  "/tpl/front",
			`{{index .Config.Labels "other"}}`:                   "{{.Names}}",
			`{{index .Config.Cmd 2}}`:                            "slot=" + slot,
			`{{index .Config.Cmd 3}}`:                            "format={{.ID}}",
			`{{range .Mounts}}{{.Name}} {{.Destination}}{{end}}`: "data-" + slot + " /data/" + slot,
			`{{index .HostConfig.LogConfig.Config "tag"}}`:       "tpl." + slot,
		} {
			if got := n.inspect(t, id, format); got != want {
				t.Errorf("%s: %s, want %s", format, got, want)
			}
		}
		if out := n.docker(t, "exec", id, "/prog", "env", "N"); !strings.Contains(out, "/tpl."+slot+".") {
			t.Errorf("variable: %s", out)
		}
		if out := n.docker(t, "volume", "inspect", "-f", "{{.Labels.slot}}", "data-"+slot); out != slot {
			t.Errorf("the volume's label is %s", out)
		}
	}
	if !seen["1"] || !seen["2"] {
		t.Errorf("slots %v", seen)
	}
	n.service(t, "glob", "-d", "--mode", "global", "--hostname", "{{.Task.Slot}}", "app:1", "sleep")
	if host, want := n.inspect(t, n.one(t, "glob"), "{{.Config.Hostname}}"), n.docker(t, "node", "ls", "-q"); host != want {
		t.Errorf("slot of a global service: %s, want the node %s", host, want)
	}
	n.service(t, "plain", "-d", "--label", "legion.templates=docker", "app:1", "all", "echo", "{{.Service.Name}}", ",", "sleep")
	if got := n.inspect(t, n.one(t, "plain"), "{{index .Config.Cmd 2}}"); got != "{{.Service.Name}}" {
		t.Errorf("left as it is: %s", got)
	}
	for want, args := range map[string][]string{
		"ContainerSpec.Env[0] (X): bad template":     {"-e", "X={{.Nope.", "app:1"},
		"there is no .Service.Nope":                  {"--hostname", "{{.Service.Nope}}", "app:1"},
		"100000 steps":                               {"-e", "X={{range 100000000000}}{{end}}", "app:1"},
		"a width above 999":                          {"-e", `X={{printf "%1000000000d" 1}}`, "app:1"},
		"uses itself":                                {"-e", `X={{define "a"}}{{template "a"}}{{end}}{{template "a"}}`, "app:1"},
		"legion.templates=docker leaves it as it is": {"app:1", "{{json .Service.Name}}"},
	} {
		if stderr := n.dockerFails(t, append([]string{"service", "create", "-d", "--no-resolve-image", "--name", "x"}, args...)...).stderr; !strings.Contains(stderr, want) {
			t.Errorf("%v: %s, want %s", args, stderr, want)
		}
	}
	// What only shows when the task comes is a reason in service ps.
	n.service(t, "late", "-d", "--replicas", "2", "--restart-condition", "none", "-e", `X={{if eq .Task.Slot "2"}}{{index .Task.Name 99}}{{end}}`, "app:1", "sleep")
	n.awaitTask(t, "late", "{{.Name}} {{.CurrentState}} {{.Error}}", "late.2 rejected", "ContainerSpec.Env[0] (X): bad template", "index out of range")
	n.one(t, "late")
}

// TestRotation: a new version of a secret reaches the service by a rolling update.
func TestRotation(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	n.docker(t, "secret", "create", "pw", n.file(t, "pw", "first"))
	n.docker(t, "config", "create", "conf", n.file(t, "conf", "one"))
	n.service(t, "web", "-d", "--label", "legion.rotate=true", "--replicas", "2", "--update-delay", "0s", "--update-monitor", "100ms", "--update-parallelism", "2",
		"--secret", "source=pw,target=key", "--config", "source=conf,target=/conf", "app:1", "sleep")
	n.service(t, "fixed", "-d", "--secret", "pw", "app:1", "sleep")
	fixed := n.one(t, "fixed")
	rolled := func(t *testing.T, path, want string) {
		t.Helper()
		await(t, "the new version", func() error {
			ids, err := n.containers("web")
			if err != nil || len(ids) != 2 {
				return fmt.Errorf("%v, %w", ids, err)
			}
			for _, id := range ids {
				if out, err := n.command("docker", "exec", id, "/prog", "read", path); err != nil || out != want {
					return fmt.Errorf("%q, %w", out, err)
				}
			}
			return nil
		})
	}
	n.docker(t, "secret", "create", "-l", "legion.version-of=pw", "pw-2", n.file(t, "pw", "second"))
	rolled(t, "/run/secrets/key", "second")
	contains(t, n.docker(t, "service", "inspect", "-f", "{{json .Spec.TaskTemplate.ContainerSpec.Secrets}}", "web"), `"SecretName":"pw-2"`)
	contains(t, n.dockerFails(t, "secret", "rm", "pw").stderr, "in use by the following service: fixed")
	if got := n.one(t, "fixed"); got != fixed {
		t.Error("a service that did not ask for it was updated")
	}
	n.docker(t, "service", "rm", "fixed")
	n.docker(t, "config", "create", "-l", "legion.version-of=conf", "conf-2", n.file(t, "conf", "two"))
	rolled(t, "/conf", "two")
	n.docker(t, "secret", "create", "-l", "legion.version-of=pw", "pw-3", n.file(t, "pw", "third"))
	rolled(t, "/run/secrets/key", "third")

	// Back to what there was before, and no rotation until there is something newer.
	n.docker(t, "service", "rollback", "-d", "web")
	rolled(t, "/run/secrets/key", "second")
	n.awaitUpdate(t, "web", "rollback_completed")
	contains(t, n.docker(t, "service", "inspect", "-f", "{{json .Spec.TaskTemplate.ContainerSpec.Secrets}}", "web"), `"SecretName":"pw-2"`)
	n.docker(t, "secret", "rm", "pw", "pw-3")
}

// TestReadiness: a task counts as running once its test has succeeded, and stays
// when it fails later.
func TestReadiness(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	const states = "{{.Name}} {{.CurrentState}} {{.Error}}"
	n.service(t, "web", "-d", "--label", `legion.ready.test=["/prog","read","/tmp/ready"]`, "--label", "legion.ready.interval=200ms", "--label", "legion.ready.retries=2",
		"--update-order", "start-first", "--update-monitor", "100ms", "app:1", "sleep")
	n.awaitTask(t, "web", states, "starting", "not ready: its test ended with status 1", "/tmp/ready")
	id := n.one(t, "web")
	n.awaitReplicas(t, "web", "0/1")
	n.docker(t, "exec", id, "/prog", "write", "/tmp/ready", "1")
	n.awaitReplicas(t, "web", "1/1")

	n.docker(t, "exec", id, "/prog", "remove", "/tmp/ready")
	n.awaitTask(t, "web", states, "running", "not ready")
	n.stop(t)
	n.start(t)
	n.awaitTask(t, "web", states, "running", "not ready")
	n.docker(t, "exec", id, "/prog", "write", "/tmp/ready", "1")
	await(t, "it is ready again", func() error {
		if tasks := n.tasks(t, "web", states); len(tasks) != 1 || strings.Contains(tasks[0], "not ready") {
			return fmt.Errorf("%q", tasks)
		}
		return nil
	})
	if again := n.one(t, "web"); again != id {
		t.Error("a task that was not ready was replaced")
	}

	// An update waits: the old task stays until the new one is ready.
	n.docker(t, "service", "update", "-d", "-q", "--no-resolve-image", "--env-add", "V=2", "web")
	var fresh string
	for _, c := range n.awaitContainers(t, "web", 2) {
		if c != id {
			fresh = c
		}
	}
	n.awaitTask(t, "web", states, "starting", "not ready")
	n.awaitContainers(t, "web", 2)
	n.docker(t, "exec", fresh, "/prog", "write", "/tmp/ready", "1")
	if only := n.one(t, "web"); only != fresh {
		t.Errorf("%s runs, want %s", only, fresh)
	}
	n.awaitUpdate(t, "web", "completed")
	// Another test is another task.
	n.docker(t, "service", "update", "-d", "-q", "--no-resolve-image", "--label-add", `legion.ready.test=["/prog","exit","0"]`, "web")
	await(t, "a new task", func() error {
		ids, err := n.containers("web")
		if err != nil || len(ids) != 1 || ids[0] == fresh {
			return fmt.Errorf("%v, %w", ids, err)
		}
		return nil
	})
	contains(t, n.dockerFails(t, "service", "create", "--name", "x", "--label", "legion.ready.interval=soon", "app:1").stderr, "legion.ready.interval")

	// An unhealthy one is replaced, ready or not; one that starts is not up.
	n.image(t, "app:sick", `"Healthcheck":{"Test":["CMD","/prog","read","/tmp/well"],"Interval":300000000,"Timeout":1000000000,"Retries":1,"StartPeriod":60000000000,"StartInterval":100000000}`)
	n.service(t, "sick", "-d", "app:sick", "sleep")
	first := n.one(t, "sick")
	n.awaitReplicas(t, "sick", "0/1")
	n.docker(t, "exec", first, "/prog", "write", "/tmp/well", "1")
	n.awaitReplicas(t, "sick", "1/1")
	n.docker(t, "exec", first, "/prog", "remove", "/tmp/well")
	n.awaitTask(t, "sick", states, "failed", "unhealthy")
	await(t, "another task", func() error {
		ids, err := n.containers("sick")
		if err != nil || len(ids) != 1 || ids[0] == first {
			return fmt.Errorf("%v, %w", ids, err)
		}
		return nil
	})
}
