package test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/legion-swarm/legion/engine"
)

func TestLife(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	id := r.create(t, "one", nil, "all", "echo", "hello", ",", "err", "oops", ",", "exit", "3")
	r.start(t, id)
	if code := r.wait(t, id); code != 3 {
		t.Errorf("status %d", code)
	}
	if out := r.output(t, id); out != "hello\noops\n" && out != "oops\nhello\n" {
		t.Errorf("output %q", out)
	}
	i, err := r.ContainerInspect(t.Context(), "one", true)
	if err != nil || i.State.ExitCode != 3 || i.State.Status != container.StateExited || i.State.Pid != 0 {
		t.Errorf("%+v, %v", i.State, err)
	}
	r.start(t, id) // again, on the same root
	r.wait(t, id)
	if err := r.ContainerRemove(t.Context(), "one", engine.RemoveOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := r.ContainerInspect(t.Context(), "one", false); err == nil || err.Error() != "No such container: one" {
		t.Error(err)
	}
}

func TestSpec(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	for _, c := range []struct {
		name   string
		change func(*engine.CreateOptions)
		args   []string
		want   string
	}{
		{"env", func(o *engine.CreateOptions) { o.Config.Env = []string{"X=1 2"} }, []string{"env", "X"}, "1 2\n"},
		{"home", func(o *engine.CreateOptions) { o.Config.User = "app" }, []string{"env", "HOME"}, "/home/app\n"},
		{"hostname file", func(o *engine.CreateOptions) { o.Config.Hostname = "abc" }, []string{"read", "/etc/hostname"}, "abc\n"},
		{"init", func(o *engine.CreateOptions) { yes := true; o.Host.Init = &yes }, []string{"echo", "x"}, "x\n"},
		{"secret", func(o *engine.CreateOptions) {
			o.Files = []engine.File{{Path: "/run/secrets/s", Data: []byte("hidden"), Mode: 0o400, Secret: true}}
		}, []string{"read", "/run/secrets/s"}, "hidden"},
		{"volume has the image's content", func(o *engine.CreateOptions) { o.Host.Binds = []string{"vol:/data"} }, []string{"read", "/data/seed"}, "seed"},
		{"tmpfs", func(o *engine.CreateOptions) {
			o.Host.ReadonlyRootfs = true
			o.Host.Mounts = []mount.Mount{{Type: mount.TypeTmpfs, Target: "/t", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20}}}
		}, []string{"all", "write", "/t/f", "x", ",", "read", "/t/f"}, "x"},
		{"image mount", func(o *engine.CreateOptions) {
			o.Host.Mounts = []mount.Mount{{Type: mount.TypeImage, Source: "app:1", Target: "/other"}}
		}, []string{"read", "/other/data/seed"}, "seed"},
		{"limits", func(o *engine.CreateOptions) {
			n := int64(50)
			o.Host.Memory, o.Host.NanoCPUs, o.Host.PidsLimit = 64<<20, 5e8, &n
		}, []string{"echo", "y"}, "y\n"},
		{"privileged", func(o *engine.CreateOptions) { o.Host.Privileged = true }, []string{"echo", "p"}, "p\n"},
		{"own network", func(o *engine.CreateOptions) { o.Host.NetworkMode = "none" }, []string{"echo", "n"}, "n\n"},
		{"shareable", func(o *engine.CreateOptions) { o.Host.IpcMode = "shareable" }, []string{"echo", "s"}, "s\n"},
		{"local log", func(o *engine.CreateOptions) { o.Host.LogConfig.Type = "local" }, []string{"echo", "l"}, "l\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out := r.run(t, c.change, c.args...)
			if code != 0 || out != c.want {
				t.Errorf("status %d, output %q, want %q", code, out, c.want)
			}
		})
	}
}

func TestExecAndAttach(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	id := r.create(t, "sleeper", nil, "sleep")
	r.start(t, id)
	run := func(cmd ...string) (string, int) {
		t.Helper()
		x, err := r.ExecCreate(t.Context(), id, &container.ExecCreateRequest{Cmd: cmd, AttachStdout: true, AttachStderr: true, AttachStdin: true})
		if err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		if err := r.ExecStart(t.Context(), x, false, nil, engine.AttachOptions{Stream: true, Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &errs}); err != nil {
			return err.Error(), -1
		}
		i, err := r.ExecInspect(t.Context(), x)
		if err != nil || i.Running || i.ExitCode == nil {
			t.Fatalf("%+v, %v", i, err)
		}
		return out.String() + errs.String(), *i.ExitCode
	}
	if out, code := run("/prog", "echo", "hi"); out != "hi\n" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
	if out, code := run("/prog", "cat"); out != "in\n" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
	if _, code := run("/prog", "exit", "7"); code != 7 {
		t.Errorf("%d", code)
	}
	if out, code := run("/nothing"); code != -1 || !strings.Contains(out, "nothing") {
		t.Errorf("%q, %d", out, code)
	}
	top, err := r.ContainerTop(t.Context(), id, "")
	if err != nil || len(top.Processes) != 1 || !strings.Contains(top.Processes[0][7], "/prog") {
		t.Errorf("%+v, %v", top, err)
	}
	one := 0
	err = r.ContainerStats(t.Context(), id, false, true, func(s *container.StatsResponse) error { one++; return nil })
	if err != nil || one != 1 {
		t.Error(one, err)
	}
	timeout := 5
	if err := r.ContainerStop(t.Context(), id, engine.StopOptions{Signal: "KILL", Timeout: &timeout}); err != nil {
		t.Error(err)
	}
	// as docker run does: attach, then start
	id = r.create(t, "cat", func(o *engine.CreateOptions) { o.Config.OpenStdin, o.Config.StdinOnce = true, true }, "cat")
	var out bytes.Buffer
	done := make(chan error, 1)
	go func() {
		done <- r.ContainerAttach(t.Context(), id, engine.AttachOptions{Stream: true, Stdin: strings.NewReader("through\n"), Stdout: &out})
	}()
	r.start(t, id)
	if code := r.wait(t, id); code != 0 {
		t.Error(code)
	}
	if err := <-done; err != nil || out.String() != "through\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestRestart(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	sleeper := r.create(t, "sleeper", nil, "all", "echo", "before", ",", "sleep")
	r.start(t, sleeper)
	trap := r.create(t, "trap", nil, "trap", "9")
	r.start(t, trap)
	ready := errors.New("it takes signals")
	_, err := r.ContainerLogs(t.Context(), trap, engine.LogsOptions{Stdout: true, Follow: true, Tail: -1}, func(engine.LogMessage) error { return ready })
	if !errors.Is(err, ready) {
		t.Fatal(err)
	}
	before, err := r.ContainerInspect(t.Context(), sleeper, false)
	if err != nil {
		t.Fatal(err)
	}
	r.reopen()
	after, err := r.ContainerInspect(t.Context(), sleeper, false)
	if err != nil || after.State.Pid != before.State.Pid || !after.State.Running {
		t.Errorf("%+v, %v", after.State, err)
	}
	if out := r.output(t, sleeper); out != "before\n" {
		t.Errorf("%q", out)
	}
	if err := r.ContainerStop(t.Context(), trap, engine.StopOptions{}); err != nil {
		t.Error(err)
	}
	if code := r.wait(t, trap); code != 9 {
		t.Error(code)
	}
}
