package enginetest

import (
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

func (s *runtimeSuite) exec(t *testing.T) {
	id := s.id(t)
	st, _ := s.run(t, engine.RuntimeContainer{ID: id, Spec: Spec("sleep")})
	go drain(st)
	pid, es, err := s.r.Exec(t.Context(), id, "one", Spec("all", "echo", "hi", ",", "err", "ho", ",", "exit", "5").Process, false)
	if err != nil {
		t.Fatal(err)
	}
	if out, errs := readAll(t, es.Stdout), readAll(t, es.Stderr); out != "hi\n" || errs != "ho\n" {
		t.Errorf("stdout %q, stderr %q", out, errs)
	}
	if e := s.exit(t, id+"/one"); e.Code != 5 || e.Pid != pid {
		t.Errorf("exit %+v, pid %d", e, pid)
	}
	_, es, err = s.r.Exec(t.Context(), id, "two", Spec("cat").Process, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(es.Stdin, "x\n"); err != nil {
		t.Fatal(err)
	}
	line(t, es.Stdout, "x")
	if err := s.r.CloseStdin(t.Context(), id, "two"); err != nil {
		t.Error(err)
	}
	_ = es.Stdin.Close()
	if e := s.exit(t, id+"/two"); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	_, es, err = s.r.Exec(t.Context(), id, "three", Spec("all", "echo", "ready", ",", "sleep").Process, false)
	if err != nil {
		t.Fatal(err)
	}
	line(t, es.Stdout, "ready")
	if err := s.r.KillExec(t.Context(), id, "three", int(syscall.SIGKILL)); err != nil {
		t.Error(err)
	}
	if e := s.exit(t, id+"/three"); e.Code != 137 {
		t.Errorf("exit %+v", e)
	}
}

func (s *runtimeSuite) execRefusals(t *testing.T) {
	ctx, id := t.Context(), s.id(t)
	s.create(t, engine.RuntimeContainer{ID: id, Spec: Spec("trap", "0")})
	_, _, err := s.r.Exec(ctx, id, "e", Spec("echo").Process, false)
	expect(t, "exec before start", err, api.Conflict)
	if _, err := s.r.Start(ctx, id); err != nil {
		t.Fatal(err)
	}
	p := Spec().Process
	p.Args = []string{"/no-such-program"}
	if _, _, err := s.r.Exec(ctx, id, "e", p, false); err == nil || !strings.Contains(err.Error(), "no such file") && !strings.Contains(err.Error(), "not found") {
		t.Errorf("exec of a program that is not there: %v", err)
	}
	expect(t, "kill an unknown exec", s.r.KillExec(ctx, id, "nobody", 9), api.NotFound)
	if err := s.r.Kill(ctx, id, int(syscall.SIGKILL), false); err != nil {
		t.Fatal(err)
	}
	s.exit(t, id)
	_, _, err = s.r.Exec(ctx, id, "e", Spec("echo").Process, false)
	expect(t, "exec after the end", err, api.Conflict)
}

func (s *runtimeSuite) execEndsFirst(t *testing.T) {
	id := s.id(t)
	st, _ := s.run(t, engine.RuntimeContainer{ID: id, Spec: Spec("sleep")})
	go drain(st)
	for _, e := range []string{"a", "b", "c"} {
		_, es, err := s.r.Exec(t.Context(), id, e, Spec("sleep").Process, false)
		if err != nil {
			t.Fatal(err)
		}
		go drain(es)
	}
	if err := s.r.Kill(t.Context(), id, int(syscall.SIGKILL), false); err != nil {
		t.Fatal(err)
	}
	s.exit(t, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	var got []string
	for _, key := range s.order {
		if key == id || strings.HasPrefix(key, id+"/") {
			got = append(got, key)
		}
	}
	if len(got) != 4 || got[3] != id {
		t.Errorf("reported in the order %v; the execs must come before the container", got)
	}
}
