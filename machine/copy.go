package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"strings"

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
	var sender, receiver strings.Builder
	send, receive := copyLines(source.path, target.path, recursive)
	r, w := io.Pipe()
	var g errgroup.Group
	g.Go(func() error {
		err := source.run(ctx, send, nil, w, &sender)
		_ = w.CloseWithError(err)
		return err
	})
	err = target.run(ctx, receive, r, io.Discard, &receiver)
	_ = r.CloseWithError(errors.New("the other side ended"))
	if sent := g.Wait(); sent != nil {
		err = sent
	}
	if err != nil {
		return fmt.Errorf("copy %s to %s: %w: %s", from, to, err, oneLine(sender.String()+" "+receiver.String()))
	}
	return nil
}

// copyLines are the lines of shell that send the source as an archive and put
// it at the target.
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
	send = check + fmt.Sprintf("exec tar -cf - -C %s -- %s", Quote(path.Dir(source)), Quote(base))
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
