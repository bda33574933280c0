package engine

import (
	"crypto/rand"
	"encoding/hex"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/legion-swarm/legion/api"
)

const maxName = 128

// newID returns 64 hexadecimal digits that are not a number, as Docker's ids.
func newID() string {
	for {
		var b [32]byte
		_, _ = rand.Read(b[:]) // never fails, see crypto/rand
		id := hex.EncodeToString(b[:])
		if _, err := strconv.ParseInt(id[:12], 10, 64); err != nil {
			return id
		}
	}
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

func validName(s string) bool {
	if len(s) < 2 {
		return false
	}
	for i, r := range s {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || r != '_' && r != '.' && r != '-') {
			return false
		}
	}
	return true
}

func checkName(kind, s string) error {
	if !validName(s) {
		return api.Errorf(api.Invalid, "Invalid %s name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", kind, s)
	}
	if len(s) > maxName*2 {
		return api.Errorf(api.Invalid, "Invalid %s name: it has %d characters, more than %d", kind, len(s), maxName*2)
	}
	return nil
}

// reserve takes a name for a container to come; an empty one is made up.
func (e *Engine) reserve(name, id string) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if name == "" {
		name = madeUpName()
		for try := 0; e.names[name] != ""; try++ {
			name = madeUpName() + strconv.Itoa(try)
		}
	}
	if other, ok := e.names[name]; ok {
		return "", api.Errorf(api.Exists, "Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, other)
	}
	e.names[name] = id
	return name, nil
}

func (e *Engine) unreserve(name, id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.names[name] == id {
		delete(e.names, name)
	}
}

// find returns the container with this id, name, or unambiguous id prefix.
func (e *Engine) find(name string) (*ctr, error) {
	if name == "" {
		return nil, api.Errorf(api.Invalid, "No container name or ID supplied")
	}
	name = strings.TrimPrefix(name, "/")
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.containers[name]; c != nil {
		return c, nil
	}
	if c := e.containers[e.names[name]]; c != nil {
		return c, nil
	}
	var found *ctr
	for id, c := range e.containers {
		if strings.HasPrefix(id, name) {
			if found != nil {
				return nil, api.Errorf(api.Invalid, "multiple IDs found with provided prefix: %s; the name is ambiguous", name)
			}
			found = c
		}
	}
	if found == nil {
		return nil, api.Errorf(api.NotFound, "No such container: %s", name)
	}
	return found, nil
}

// all returns every container, newest first.
func (e *Engine) all() []*ctr {
	e.mu.Lock()
	list := make([]*ctr, 0, len(e.containers))
	for _, c := range e.containers {
		list = append(list, c)
	}
	e.mu.Unlock()
	created := make(map[*ctr]int64, len(list))
	for _, c := range list {
		created[c] = c.snapshot().Created.UnixNano()
	}
	slices.SortFunc(list, func(a, b *ctr) int {
		if created[a] != created[b] {
			if created[a] > created[b] {
				return -1
			}
			return 1
		}
		return strings.Compare(a.id, b.id)
	})
	return list
}

func madeUpName() string {
	first := strings.Fields("agile amber ample ancient apt balanced bold brave bright brisk busy calm candid careful cheerful clear clever cool crisp curious daring deft eager earnest easy fair fast fearless fine fluent fond free fresh gentle gifted glad golden grand great happy hardy hidden honest humble jolly just keen kind lively loyal lucky mellow merry mild modest neat nimble noble patient plain polite proud pure quick quiet rapid ready serene sharp silent silver smart smooth solid sound steady still strong subtle sunny sure swift tender tidy tough trusty vivid warm wise witty young zesty")
	second := strings.Fields("aurelia caesar cicero cohort decimus drusus fabia flavia gaius galba hadrian horace julia junia livia livy lucan lucius manius marcus maximus nero nerva numa octavia ovid paulus pliny pompey quintus remus romulus rufus sabina scipio seneca servia sextus silvia spurius sulla tacitus tarquin tiberius titus trajan tullia varro vergil verus vespasian virgil vitruvius")
	return pick(first) + "_" + pick(second)
}

func pick(list []string) string {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(len(list))))
	if err != nil {
		return list[0]
	}
	return list[n.Int64()]
}
