package exectest_test

import (
	"context"
	"testing"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/agent/exec/exectest"
	"github.com/legion-swarm/legion/api"
)

func TestFake(t *testing.T) {
	scripts := map[string]exectest.Script{}
	fake := exectest.NewFake(func(t *api.Task) exectest.Script { return scripts[t.ID] })
	task := func(s exectest.Script) *api.Task {
		id := api.NewID()
		scripts[id] = s
		return &api.Task{ID: id, Spec: &api.TaskSpec{}}
	}
	exectest.Executor(t, exectest.Harness{
		Restart: func(*testing.T) exec.Executor { return fake },
		Sleep:   func(*testing.T) *api.Task { return task(exectest.Script{}) },
		Exit:    func(_ *testing.T, code int) *api.Task { return task(exectest.Script{Exits: true, Code: code}) },
		Print:   func(_ *testing.T, lines ...string) *api.Task { return task(exectest.Script{Exits: true, Lines: lines}) },
		Missing: func(*testing.T) *api.Task {
			return task(exectest.Script{Prepare: func(context.Context) error { return exec.ErrRejected }})
		},
	})
}
