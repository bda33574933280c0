package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// place is one end of a copy: a path here, or in a machine.
type place struct {
	machine *Machine // nil: here
	driver  Driver
	path    string
}

// run runs a line of shell at the place.
func (p place) run(ctx context.Context, line string, in io.Reader, out io.Writer, complaints io.Writer) error {
	if p.machine == nil {
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", line)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, complaints
		return cmd.Run()
	}
	status, err := p.driver.Run(ctx, p.machine, Command{Line: line, Stdin: in, Stdout: out, Stderr: complaints})
	if err == nil && status != 0 {
		err = fmt.Errorf("exit status %d", status)
	}
	return err
}

// Copy copies a file, or with recursive a folder, between here and machines, or
// from one machine to another: places are PATH or MACHINE:PATH. As with scp, a
// destination that is a folder gets the source below it.
func (f *Fleet) Copy(ctx context.Context, from, to string, recursive bool) error {
	source, err := f.place(from)
	if err != nil {
		return err
	}
	target, err := f.place(to)
	if err != nil {
		return err
	}
	if source.machine == nil && target.machine == nil {
		return errors.New("neither side names a machine: want MACHINE:PATH")
	}
	send, receive := copyLines(source.path, target.path, recursive)
	r, w := io.Pipe()
	// Who fails first is to blame: the other fails for want of a partner.
	var blame sync.Once
	var failed error
	run := func(p place, line string, in io.Reader, out io.Writer) error {
		var said strings.Builder
		err := p.run(ctx, line, in, out, &said)
		if err != nil {
			blame.Do(func() { failed = fmt.Errorf("copy %s to %s: %w", from, to, explain(err, said.String())) })
		}
		return err
	}
	var g errgroup.Group
	g.Go(func() error {
		err := run(source, send, nil, w)
		_ = w.CloseWithError(err)
		return err
	})
	err = run(target, receive, r, io.Discard)
	_ = r.CloseWithError(errors.New("the other side ended"))
	if err := errors.Join(g.Wait(), err); err != nil {
		return failed
	}
	return nil
}

// explain adds what a command said to the error that it ended with.
func explain(err error, said string) error {
	if said = oneLine(said); said == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, said)
}

// copyLines are the lines of shell that send the source as an archive and put
// it at the target. As with scp, what a symbolic link points at is sent.
func copyLines(source, target string, recursive bool) (send, receive string) {
	source = path.Clean(source)
	check := "test -d %[1]s && { echo %[1]s is a folder: say -r >&2; exit 1; }; "
	if recursive {
		check = ""
	}
	if check != "" {
		check = fmt.Sprintf(check, Quote(source))
	}
	base := path.Base(source)
	send = check + fmt.Sprintf("exec tar -chf - -C %s -- %s", Quote(path.Dir(source)), Quote(base))
	receive = fmt.Sprintf(`set -e; to=%s; if [ -d "$to" ]; then exec tar -xof - -C "$to"; fi; `+
		`tmp=$(mktemp -d "$(dirname "$to")/.scp.XXXXXX"); trap 'rm -rf "$tmp"' EXIT; tar -xof - -C "$tmp"; mv -f "$tmp"/%s "$to"`, Quote(target), Quote(base))
	return send, receive
}

// Quote makes the text one word for a POSIX shell.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// place reads PATH or MACHINE:PATH. A path with a colon is written ./a:b.
func (f *Fleet) place(s string) (place, error) {
	name, p, ok := strings.Cut(s, ":")
	if !ok || strings.Contains(name, "/") {
		return place{path: s}, nil
	}
	m, d, err := f.Machine(name)
	if err != nil {
		return place{}, err
	}
	if p == "" {
		p = "."
	}
	return place{m, d, p}, nil
}
