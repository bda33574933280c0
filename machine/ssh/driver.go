package ssh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/legion-swarm/legion/machine"
)

const (
	startTimeout = 90 * time.Second
	lookTimeout  = 5 * time.Second
	maxOutput    = 64 << 10 // of a step's complaints
	begunFile    = "installed"
)

// Driver installs Legion on hosts reached by ssh.
type Driver struct {
	now func() time.Time
}

var _ machine.Driver = (*Driver)(nil)

// New returns the driver.
func New() *Driver { return &Driver{now: time.Now} }

// host is a machine's, with what was found out about it.
type host struct {
	machine *machine.Machine
	options Options
	sudo    string // before a command that needs root
	service service
	systemd bool
}

func optionsOf(m *machine.Machine) (Options, error) {
	var o Options
	if err := m.DecodeOptions(&o); err != nil {
		return o, err
	}
	return o, o.validate()
}

// Prepare checks the options.
func (d *Driver) Prepare(_ context.Context, m *machine.Machine) error {
	o, err := optionsOf(m)
	if err != nil {
		return err
	}
	if _, err := exec.LookPath("ssh"); err != nil {
		return errors.New("driver ssh needs the ssh command: install it (Debian: apt-get install openssh-client)")
	}
	if o.Key != "" {
		if _, err := os.Stat(o.Key); err != nil {
			return fmt.Errorf("--ssh-key: %w", err)
		}
	}
	return nil
}

// Create installs the program and starts its daemon.
func (d *Driver) Create(ctx context.Context, m *machine.Machine) error {
	h, err := d.reach(ctx, m)
	if err != nil {
		return err
	}
	if _, err := h.run(ctx, "test ! -e "+runFile, nil); err != nil {
		return fmt.Errorf("%s is a machine already: %s is there; remove it where it was created (legion machine rm), or that file", h.options.Host, runFile)
	}
	c, err := issue(m.Name, h.options.Host, d.now())
	if err != nil {
		return fmt.Errorf("make certificates: %w", err)
	}
	if _, err := h.run(ctx, h.asRoot(claim(runFile)), nil); err != nil {
		return fmt.Errorf("%s can't be claimed (is another command making a machine of it?): %w", h.options.Host, err)
	}
	if err := os.WriteFile(m.Path(begunFile), nil, 0o600); err != nil {
		return err
	}
	for file, content := range map[string][]byte{"ca.pem": c.CA, "cert.pem": c.ClientCert, "key.pem": c.ClientKey} {
		if err := os.WriteFile(m.Path(file), content, 0o600); err != nil {
			return err
		}
	}
	m.Say("installing %s on %s", binary, h.options.Host)
	if err := h.install(ctx, c); err != nil {
		return err
	}
	if !h.systemd {
		m.Say("%s has no systemd: the daemon is started in the background (log: %s); let the host's init run %s at boot", h.options.Host, logFile, runFile)
	}
	return d.start(ctx, h)
}

// reach finds out what the host is.
func (d *Driver) reach(ctx context.Context, m *machine.Machine) (*host, error) {
	o, err := optionsOf(m)
	if err != nil {
		return nil, err
	}
	h := &host{machine: m, options: o}
	out, err := h.run(ctx, "uname -sm; id -u; test -d /run/systemd/system && echo systemd || echo none", nil)
	if err != nil {
		return nil, fmt.Errorf("reach %s@%s port %d by ssh: %w", o.User, o.Host, o.Port, err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) < 3 {
		return nil, fmt.Errorf("%s answers %q: is there a POSIX shell?", o.Host, out)
	}
	lines = lines[len(lines)-3:] // after what a login says
	arch, err := machineOf(lines[0])
	if err != nil {
		return nil, err
	}
	if arch != runtime.GOARCH {
		return nil, fmt.Errorf("%s is %s and this program is for %s: run create with a legion that was built for the host", o.Host, arch, runtime.GOARCH)
	}
	if h.service, h.systemd = byHand(), lines[2] == "systemd"; h.systemd {
		h.service = bySystemd()
	}
	if lines[1] != "0" {
		h.sudo = "sudo -n "
		if _, err := h.run(ctx, h.asRoot("true"), nil); err != nil {
			return nil, fmt.Errorf("user %s of %s is not root and may not use sudo without a password: %w", o.User, o.Host, err)
		}
	}
	return h, nil
}

func (h *host) asRoot(line string) string { return h.sudo + "sh -c " + machine.Quote(line) }

func (h *host) install(ctx context.Context, c certificates) error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer func() { _ = self.Close() }()
	steps := []struct {
		path, mode string
		content    io.Reader
	}{
		{binary, "755", self},
		{caFile, "644", bytes.NewReader(c.CA)},
		{certFile, "644", bytes.NewReader(c.ServerCert)},
		{keyFile, "600", bytes.NewReader(c.ServerKey)},
		{runFile, "755", strings.NewReader(runScript(h.options, h.machine.Engine))},
	}
	for _, s := range steps {
		if _, err := h.run(ctx, h.asRoot(put(s.path, s.mode)), s.content); err != nil {
			return fmt.Errorf("write %s on %s: %w", s.path, h.options.Host, err)
		}
	}
	if !h.systemd {
		return nil
	}
	if _, err := h.run(ctx, h.asRoot(put(unitFile, "644")), strings.NewReader(unit)); err != nil {
		return fmt.Errorf("write %s on %s: %w", unitFile, h.options.Host, err)
	}
	return nil
}

func (d *Driver) start(ctx context.Context, h *host) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if _, err := h.run(ctx, h.asRoot(h.service.start), nil); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	e, err := d.Endpoint(h.machine)
	if err != nil {
		return err
	}
	// A daemon that ends is seen by its own log, which is there.
	polls := 0
	err = machine.Await(ctx, e, func() error {
		const patience, every = 50, 100 // looks
		if polls++; h.systemd || polls < patience || polls%every != patience {
			return nil
		}
		if _, err := h.run(ctx, h.asRoot(running), nil); err != nil {
			return errors.New("the daemon ended")
		}
		return nil
	})
	if err != nil {
		show := "tail -n 5 " + logFile
		if h.systemd {
			show = "journalctl -q --no-pager -n 5 -u " + unitName
		}
		said, _ := h.run(context.WithoutCancel(ctx), h.asRoot(show), nil)
		return fmt.Errorf("%w (is port %d open?); its log says:\n%s", err, h.options.APIPort, strings.TrimSpace(said))
	}
	return nil
}

// Start starts the daemon; the host must be up.
func (d *Driver) Start(ctx context.Context, m *machine.Machine) error {
	h, err := d.reach(ctx, m)
	if err != nil {
		return err
	}
	return d.start(ctx, h)
}

// Stop ends the daemon, not the host; containers go on.
func (d *Driver) Stop(ctx context.Context, m *machine.Machine) error {
	return d.tell(ctx, m, func(s service) string { return s.stop })
}

// Kill ends the daemon at once; the host stays up.
func (d *Driver) Kill(ctx context.Context, m *machine.Machine) error {
	return d.tell(ctx, m, func(s service) string { return s.kill })
}

func (d *Driver) tell(ctx context.Context, m *machine.Machine, line func(service) string) error {
	h, err := d.reach(ctx, m)
	if err == nil {
		_, err = h.run(ctx, h.asRoot(line(h.service)), nil)
	}
	return err
}

// Remove uninstalls Legion from the host. The node's data stays there.
func (d *Driver) Remove(ctx context.Context, m *machine.Machine) error {
	if _, err := os.Stat(m.Path(begunFile)); errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was done to the host
	}
	h, err := d.reach(ctx, m)
	if err != nil {
		return err
	}
	if _, err := h.run(ctx, h.asRoot(h.service.remove+"; "+uninstall), nil); err != nil {
		return err
	}
	if m.Made {
		m.Say("Legion is uninstalled from %s; the node's data stays there, and so do its containers", h.options.Host)
	}
	return nil
}

// State asks the daemon: the host itself is not ours to start and stop.
func (d *Driver) State(ctx context.Context, m *machine.Machine) (machine.State, error) {
	e, err := d.Endpoint(m)
	if err != nil {
		return machine.StateError, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if machine.Ping(ctx, e) != nil {
		return machine.StateStopped, nil
	}
	return machine.StateRunning, nil
}

// Address is the host, as it was given.
func (d *Driver) Address(m *machine.Machine) (string, error) {
	o, err := optionsOf(m)
	return o.Host, err
}

// Endpoint is the API's TLS port.
func (d *Driver) Endpoint(m *machine.Machine) (machine.Endpoint, error) {
	o, err := optionsOf(m)
	if err != nil {
		return machine.Endpoint{}, err
	}
	return machine.Endpoint{URL: o.url(), CertDir: m.Dir}, nil
}

// Run runs ssh.
func (d *Driver) Run(ctx context.Context, m *machine.Machine, c machine.Command) (int, error) {
	o, err := optionsOf(m)
	if err != nil {
		return 0, err
	}
	args := o.args(m.Path("known_hosts"), c.Line == "")
	if c.Line != "" {
		args = append(args, c.Line)
	}
	cmd := exec.CommandContext(ctx, "ssh", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// run runs a line of shell on the host and returns what it says. A line that
// fails is an error with its complaints.
func (h *host) run(ctx context.Context, line string, in io.Reader) (string, error) {
	cmd := exec.CommandContext(ctx, "ssh", append(h.options.args(h.machine.Path("known_hosts"), false), line)...)
	out, bad := &head{most: maxOutput}, &head{most: maxOutput}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, bad
	if err := cmd.Run(); err != nil {
		if text := strings.TrimSpace(bad.String()); text != "" {
			return out.String(), fmt.Errorf("%w: %s", err, text)
		}
		return out.String(), err
	}
	return out.String(), nil
}

// head keeps the beginning of what is written.
type head struct {
	bytes.Buffer

	most int
}

// Write never fails.
func (h *head) Write(b []byte) (int, error) {
	_, _ = h.Buffer.Write(b[:min(len(b), max(0, h.most-h.Len()))])
	return len(b), nil
}
