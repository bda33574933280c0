package templates

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"text/template"
	"text/template/parse"
)

// maxCommands bounds how many functions one action calls.
const maxCommands = 64

// inspection walks a template before it is carried out.
type inspection struct {
	// main is set outside of {{define}}: only there it is known what $ is.
	main bool
	// named is whether something of Values is named.
	named    bool
	commands int
	calls    map[string]bool // templates that the one at hand uses
	err      error
}

// inspect finds fields that there are not, and templates that use themselves. It
// reports whether anything of Values is named.
func inspect(t *template.Template) (named bool, err error) {
	uses := map[string]map[string]bool{}
	for _, d := range t.Templates() {
		if d.Tree == nil {
			continue
		}
		in := &inspection{main: d.Name() == t.Name(), calls: map[string]bool{}}
		in.list(d.Root, in.main)
		named, err = named || in.named, errors.Join(err, in.err)
		uses[d.Name()] = in.calls
	}
	if err != nil {
		return named, err
	}
	for name := range uses {
		if reaches(uses, name, name, map[string]bool{}) {
			return named, fmt.Errorf("template %q uses itself", name)
		}
	}
	return named, nil
}

func reaches(uses map[string]map[string]bool, from, to string, seen map[string]bool) bool {
	for next := range uses[from] {
		if next == to {
			return true
		}
		if !seen[next] {
			seen[next] = true
			if reaches(uses, next, to, seen) {
				return true
			}
		}
	}
	return false
}

func (in *inspection) list(l *parse.ListNode, root bool) {
	if l == nil {
		return
	}
	for _, n := range l.Nodes {
		in.commands = 0
		switch n := n.(type) {
		case *parse.ActionNode:
			in.node(n.Pipe, root)
		case *parse.IfNode:
			in.branch(&n.BranchNode, root, root)
		case *parse.WithNode:
			in.branch(&n.BranchNode, root, false)
		case *parse.RangeNode:
			in.branch(&n.BranchNode, root, false)
		case *parse.TemplateNode:
			in.calls[n.Name] = true
			if n.Pipe != nil {
				in.node(n.Pipe, root)
			}
		}
	}
}

// branch looks into both sides; in the body, dot may be something else.
func (in *inspection) branch(b *parse.BranchNode, root, body bool) {
	in.node(b.Pipe, root)
	in.list(b.List, body)
	in.list(b.ElseList, root)
}

func (in *inspection) node(n parse.Node, root bool) {
	switch n := n.(type) {
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			in.node(c, root)
		}
	case *parse.CommandNode:
		if in.commands++; in.commands > maxCommands {
			in.fail(fmt.Errorf("more than %d commands in one action", maxCommands))
			return
		}
		for _, a := range n.Args {
			in.node(a, root)
		}
	case *parse.FieldNode:
		in.field(n.Ident, root)
	case *parse.VariableNode:
		in.field(n.Ident[1:], in.main && n.Ident[0] == "$")
	case *parse.ChainNode:
		in.node(n.Node, root)
	}
}

func (in *inspection) field(path []string, root bool) {
	if !root || len(path) == 0 {
		return
	}
	t := reflect.TypeFor[Values]()
	if _, ok := t.FieldByName(path[0]); ok {
		in.named = true
	}
	for i, name := range path {
		switch t.Kind() {
		case reflect.Struct:
			f, ok := t.FieldByName(name)
			if !ok {
				in.fail(fmt.Errorf("there is no .%s: %s has %s", strings.Join(path[:i+1], "."), whole(path[:i]), fields(t)))
				return
			}
			t = f.Type
		case reflect.Map:
			t = t.Elem()
		default:
			in.fail(fmt.Errorf("there is no .%s: %s is text", strings.Join(path[:i+1], "."), whole(path[:i])))
			return
		}
	}
}

func whole(path []string) string {
	if len(path) == 0 {
		return "a template"
	}
	return "." + strings.Join(path, ".")
}

func fields(t reflect.Type) string {
	var names []string
	for i := range t.NumField() {
		names = append(names, "."+t.Field(i).Name)
	}
	return strings.Join(names, ", ")
}

func (in *inspection) fail(err error) { in.err = errors.Join(in.err, err) }

// instrument puts an empty text before each step, so that each is written, and
// counted.
func instrument(t *template.Template) {
	for _, d := range t.Templates() {
		if d.Tree != nil {
			count(d.Root)
		}
	}
}

func count(l *parse.ListNode) {
	if l == nil {
		return
	}
	nodes := []parse.Node{&parse.TextNode{NodeType: parse.NodeText}}
	for _, n := range l.Nodes {
		switch n := n.(type) {
		case *parse.IfNode:
			count(n.List)
			count(n.ElseList)
		case *parse.WithNode:
			count(n.List)
			count(n.ElseList)
		case *parse.RangeNode:
			count(n.List)
			count(n.ElseList)
		}
		nodes = append(nodes, n, &parse.TextNode{NodeType: parse.NodeText})
	}
	l.Nodes = nodes
}
