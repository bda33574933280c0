package machine

import (
	"context"
	"io"
)

// Driver makes and handles machines of one kind. Fleet calls it with the
// machine locked, except for State, Address, Endpoint and Run. Methods may be
// called at once for different machines.
type Driver interface {
	// Prepare reserves what should follow the order in which machines are named,
	// as addresses do. It is quick; Remove undoes it.
	Prepare(ctx context.Context, m *Machine) error
	// Create makes the machine and returns when its daemon answers. What a failed
	// Create leaves is removed by Remove.
	Create(ctx context.Context, m *Machine) error
	// Start brings a stopped machine up with its data, until its daemon answers.
	Start(ctx context.Context, m *Machine) error
	// Stop shuts it down in order.
	Stop(ctx context.Context, m *Machine) error
	// Kill is a power cut. It returns when nothing of the machine runs.
	Kill(ctx context.Context, m *Machine) error
	// Remove removes every trace, whatever the state, but not the folder.
	Remove(ctx context.Context, m *Machine) error
	// State looks at the machine.
	State(ctx context.Context, m *Machine) (State, error)
	// Address is where other machines reach it.
	Address(m *Machine) (string, error)
	// Endpoint is where its daemon's API is reached from here; without a URL when
	// it was made without a daemon.
	Endpoint(m *Machine) (Endpoint, error)
	// Run runs a command inside and returns its exit status.
	Run(ctx context.Context, m *Machine, c Command) (status int, err error)
}

// Endpoint is where a daemon's API is.
type Endpoint struct {
	// URL is unix:///path or tcp://host:port.
	URL string
	// CertDir holds ca.pem, cert.pem and key.pem for a tcp URL.
	CertDir string
}

// Command is something to run inside a machine.
type Command struct {
	// Line is for the machine's shell; empty: an interactive shell.
	Line string
	// Flags are more arguments for a driver that runs ssh.
	Flags []string

	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Cutter is a Driver that can cut the network between its machines. A cut is
// silent: packets are lost both ways, nobody is told. It outlives restarts.
type Cutter interface {
	// Disconnect cuts the machine from those others, or from everything.
	Disconnect(ctx context.Context, m *Machine, from []string) error
	// Connect heals the cuts between the machine and those others, or all.
	Connect(ctx context.Context, m *Machine, to []string) error
	// Cuts are the machines that this one is cut from; everything: from all others,
	// and this computer.
	Cuts(m *Machine) (from []string, everything bool, err error)
}
