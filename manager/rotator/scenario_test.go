package rotator

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

var rewrite = flag.Bool("rewrite", false, "write what happens into the scenario files")

// TestScenarios runs testdata/*.txt. A line that begins with "> " is a command;
// what the plan makes of it follows, indented by two spaces; the rest is prose.
// The commands are in the method command. Each takes a second.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	for _, f := range files {
		want, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		got := replay(t, string(want))
		switch {
		case bytes.Equal(want, got):
		case *rewrite:
			if err := os.WriteFile(f, got, 0o644); err != nil {
				t.Fatal(err)
			}
		default:
			t.Errorf("%s went differently (-rewrite accepts it):\n%s", f, got)
		}
	}
}

type world struct {
	t     *testing.T
	now   time.Time
	store *store.Store
	out   bytes.Buffer
}

func replay(t *testing.T, scenario string) []byte {
	w := &world{t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	var err error
	if w.store, err = store.NewLocal(store.Config{Now: func() time.Time { return w.now }}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(scenario) {
		if strings.HasPrefix(line, "  ") {
			continue
		}
		w.out.WriteString(line)
		if strings.HasPrefix(line, "> ") {
			w.now = w.now.Add(time.Second)
			w.command(strings.Fields(line[2:]))
			w.plan()
		}
	}
	return w.out.Bytes()
}

func (w *world) update(f func(tx *store.Tx) error) {
	w.t.Helper()
	if _, err := w.store.Update(w.t.Context(), f); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) command(args []string) {
	switch args[0] {
	case "secret", "config": // secret NAME [VERSION-OF]
		labels := map[string]string{}
		if len(args) > 2 {
			labels[api.VersionOfLabel] = args[2]
		}
		a := swarm.Annotations{Name: args[1], Labels: labels}
		w.update(func(tx *store.Tx) error {
			if args[0] == "secret" {
				s := &api.Secret{}
				s.ID, s.Spec.Annotations = "id-"+args[1], a
				return store.Create(tx, s)
			}
			c := &api.Config{}
			c.ID, c.Spec.Annotations = "id-"+args[1], a
			return store.Create(tx, c)
		})
	case "rm": // rm SECRET
		w.update(func(tx *store.Tx) error { return store.Delete[*api.Secret](tx, "id-"+args[1]) })
	case "service": // service NAME [rotate] [secret|config=NAME:TARGET…]
		w.service(args[1], args[2:])
	case "rolled-back": // rolled-back SERVICE SECRET STATE: to that secret
		w.update(func(tx *store.Tx) error {
			s := *store.Get[*api.Service](tx, args[1])
			c := *s.Spec.TaskTemplate.ContainerSpec
			r := *c.Secrets[0]
			r.SecretID, r.SecretName = "id-"+args[2], args[2]
			c.Secrets = []*swarm.SecretReference{&r}
			s.Spec.TaskTemplate.ContainerSpec = &c
			s.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateState(args[3]), StartedAt: new(w.now)}
			return store.Put(tx, &s)
		})
	case "updated": // updated SERVICE: by a user
		w.update(func(tx *store.Tx) error {
			s := *store.Get[*api.Service](tx, args[1])
			s.UpdateStatus = nil
			return store.Put(tx, &s)
		})
	default:
		w.t.Fatalf("no command %s", args[0])
	}
}

func (w *world) service(name string, args []string) {
	s := &api.Service{}
	s.ID, s.Spec.Name, s.Spec.Labels = name, name, map[string]string{}
	c := &swarm.ContainerSpec{}
	s.Spec.TaskTemplate.ContainerSpec = c
	for _, arg := range args {
		if arg == "rotate" {
			s.Spec.Labels["legion.rotate"] = "true"
			continue
		}
		kind, ref, _ := strings.Cut(arg, "=")
		object, target, _ := strings.Cut(ref, ":")
		switch {
		case kind == "secret":
			c.Secrets = append(c.Secrets, &swarm.SecretReference{SecretID: "id-" + object, SecretName: object, File: &swarm.SecretReferenceFileTarget{Name: target}})
		case target == "":
			c.Configs = append(c.Configs, &swarm.ConfigReference{ConfigID: "id-" + object, ConfigName: object, Runtime: &swarm.ConfigReferenceRuntimeTarget{}})
		default:
			c.Configs = append(c.Configs, &swarm.ConfigReference{ConfigID: "id-" + object, ConfigName: object, File: &swarm.ConfigReferenceFileTarget{Name: target}})
		}
	}
	w.update(func(tx *store.Tx) error { return store.Create(tx, s) })
}

// plan carries out what is planned, as often as something is.
func (w *world) plan() {
	for range 3 {
		view := w.store.View()
		versions := Read(view)
		for s := range store.List[*api.Service](view) {
			spec, changed := Plan(s, versions)
			if !changed {
				continue
			}
			was, is := s.Spec.TaskTemplate.ContainerSpec, spec.TaskTemplate.ContainerSpec
			for i, r := range is.Secrets {
				if o := was.Secrets[i]; o.SecretID != r.SecretID {
					fmt.Fprintf(&w.out, "  %s: secret %s is %s (%s), was %s\n", s.ID, r.File.Name, r.SecretName, r.SecretID, o.SecretName)
				}
			}
			for i, r := range is.Configs {
				if o := was.Configs[i]; o.ConfigID != r.ConfigID {
					fmt.Fprintf(&w.out, "  %s: config %s is %s (%s), was %s\n", s.ID, r.File.Name, r.ConfigName, r.ConfigID, o.ConfigName)
				}
			}
			w.update(func(tx *store.Tx) error {
				n := *store.Get[*api.Service](tx, s.ID)
				n.Spec, n.UpdateStatus = spec, nil
				return store.Put(tx, &n)
			})
		}
	}
}
