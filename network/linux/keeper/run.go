package keeper

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/monitor"
)

// Command is the argument after the program's name that makes it a keeper; what
// follows is its socket.
const Command = "keeper"

const (
	// firstFile is the daemon's end of the pair that a keeper begins with.
	firstFile = 3
	// orphanTick is how often a keeper without a daemon looks whether its socket's
	// name is still there.
	orphanTick = 2 * time.Second
	// heapGrowth keeps a process small that allocates next to nothing, in percent.
	heapGrowth = 50
	// monitorSlack is short: carriers don't leave their processors to who answers for
	// names until the monitor has them do so.
	monitorSlack = time.Millisecond
)

// Run is what a keeper does, with the arguments after Command. It returns the exit
// status.
func Run(args []string, stderr io.Writer) int {
	if len(args) != 1 || !filepath.IsAbs(args[0]) {
		_, _ = fmt.Fprintln(stderr, "legion keeper: it is started by legion daemon")
		return 2
	}
	debug.SetGCPercent(heapGrowth)
	_ = monitor.Relax(monitorSlack)                                   // else it costs more of the processor
	_ = os.WriteFile("/proc/self/comm", []byte("legion-"+Command), 0) // else it is called "exe"
	if err := run(args[0], Version); err != nil {
		_, _ = fmt.Fprintln(stderr, "legion keeper:", err)
		return 1
	}
	return 0
}

func run(socket string, version int) error {
	f := os.NewFile(firstFile, "daemon")
	c, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return fmt.Errorf("its daemon: %w", err)
	}
	first, ok := c.(*net.UnixConn)
	if !ok {
		return errors.New("its daemon: not a Unix socket")
	}
	l, err := listen(socket)
	if err != nil {
		return err
	}
	j := newJournal()
	h, err := newHolder(j.logger())
	if err != nil {
		return err
	}
	k := &server{holder: h, journal: j, version: version, socket: socket, comes: make(chan *net.UnixConn)}
	if k.inode, err = inodeOf(socket); err != nil {
		return err
	}
	go k.accept(l)
	k.serve(first)
	return k.unlink()
}

// listen takes the name of the socket, for root alone.
func listen(socket string) (*net.UnixListener, error) {
	dir, name, err := reach(socket)
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: name})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

// reach returns a name for a socket that is short enough for any path, as long as
// the folder is open.
func reach(socket string) (dir *os.File, name string, err error) {
	if dir, err = os.Open(filepath.Dir(socket)); err != nil {
		return nil, "", err
	}
	return dir, fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(socket)), nil
}

func inodeOf(path string) (uint64, error) {
	var s unix.Stat_t
	if err := unix.Lstat(path, &s); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return s.Ino, nil
}

// server serves one daemon after another.
type server struct {
	holder  *holder
	journal *journal
	version int
	socket  string
	inode   uint64 // of the socket
	comes   chan *net.UnixConn
}

// unlink takes the socket's name away, unless it is another's by now.
func (k *server) unlink() error {
	if i, err := inodeOf(k.socket); err != nil || i != k.inode {
		return nil
	}
	return os.Remove(k.socket)
}

// accept takes connections of root's, for as long as the process lives.
func (k *server) accept(l *net.UnixListener) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			time.Sleep(orphanTick) //nolint:sleep // no more files: a while later there may be
			continue
		}
		if who, err := credentials(c); err != nil || who.Uid != 0 {
			_ = c.Close()
			continue
		}
		k.comes <- c
	}
}

// credentials say who has the other end of a connection, or made it.
func credentials(c *net.UnixConn) (who *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	if e := raw.Control(func(fd uintptr) { who, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		return nil, e
	}
	return who, err
}

// serve serves daemons, and returns when the keeper is to end.
func (k *server) serve(c *net.UnixConn) {
	tick := time.NewTicker(orphanTick)
	defer tick.Stop()
	for {
		if c != nil {
			s := session{holder: k.holder, journal: k.journal, version: k.version, wire: wire{c}}
			done := make(chan bool, 1)
			go func() { done <- s.run() }()
			select {
			case end := <-done:
				c = nil
				if end {
					return
				}
			case next := <-k.comes: // another daemon
				_ = c.Close()
				if <-done {
					return
				}
				c = next
				continue
			}
		}
		if k.holder.idle() {
			return
		}
		select {
		case c = <-k.comes:
		case <-tick.C:
			if i, err := inodeOf(k.socket); err != nil || i != k.inode {
				return
			}
		}
	}
}

// session is a daemon's connection.
type session struct {
	holder  *holder
	journal *journal
	version int
	wire    wire
}

// run does what the daemon asks for until it is gone. It reports whether the keeper
// is to end.
func (s session) run() (end bool) {
	out, written := make(chan reply), make(chan struct{})
	go func() {
		defer close(written)
		s.write(out)
	}()
	defer func() {
		s.holder.zones.abandon()
		close(out)
		<-written
		_ = s.wire.c.Close()
	}()
	greeted := false
	for {
		var r request
		files, err := s.wire.receive(&r)
		if err != nil {
			closeFiles(files)
			return false
		}
		if r.Hello != 0 || !greeted {
			closeFiles(files)
			if greeted = s.greet(out, r.Hello); !greeted {
				return false
			}
			continue
		}
		answer := reply{}
		if err := s.holder.do(&r, files); err != nil {
			answer.Error = err.Error()
		}
		if r.Status {
			answer.Status = s.holder.status()
		}
		out <- answer
		if r.End {
			return true
		}
	}
}

// greet tells a daemon of the same version what is held, and another one nothing.
func (s session) greet(out chan<- reply, version int) bool {
	if version != s.version {
		out <- reply{Version: s.version, Error: "the daemon is of another version"}
		return false
	}
	parts := s.holder.held()
	for i, p := range parts {
		out <- reply{Version: s.version, Held: p, More: i+1 < len(parts)}
	}
	return true
}

// write sends replies, and what is logged, until there are no more. If the daemon
// doesn't take them, its connection ends.
func (s session) write(out <-chan reply) {
	failed := false
	send := func(r reply) {
		if !failed && s.wire.send(r, time.Now().Add(patience)) != nil {
			failed = true
			_ = s.wire.c.Close()
		}
	}
	for {
		select {
		case r, more := <-out:
			if !more {
				return
			}
			send(r)
		case <-s.journal.poke:
			for _, record := range s.journal.take() {
				send(reply{Log: record})
			}
		}
	}
}
