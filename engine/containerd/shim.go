package containerd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// shim is one shim process and the connection to it.
type shim struct {
	id   string
	dir  string // State/shims/<id>
	task taskapi.TTRPCTaskService

	client *ttrpc.Client
	log    *os.File
	gone   chan struct{} // closed when the connection is

	// ready is closed when the start is over; err is its outcome.
	ready chan struct{}
	err   error

	// Guarded by shims.mu.
	refs     int  // containers that it has or will have
	creating int  // Create calls under way
	leaving  bool // told to end: not to be used any more
}

// shimEnv is a shim's environment, and runc's. (GOGC changes neither memory nor
// time: measured from 50 to off.)
func shimEnv(events string) []string {
	env := []string{"GOMAXPROCS=2", "GODEBUG=madvdontneed=1", "TTRPC_ADDRESS=" + events}
	for _, e := range os.Environ() {
		switch name, _, _ := strings.Cut(e, "="); name {
		case "PATH", "XDG_RUNTIME_DIR", "TMPDIR":
			env = append(env, e)
		}
	}
	return env
}

// start executes the shim and connects to it.
func (s *shim) start(ctx context.Context, p *shims) error {
	address, err := s.prepare(p)
	if err != nil {
		return err
	}
	if err := s.openLog(p); err != nil {
		return err
	}
	booted, err := s.boot(ctx, p)
	if err != nil {
		// It may have come up all the same: connected, it can be told to end.
		_ = s.connect(ctx, address)
		return err
	}
	if booted != address {
		if err := writeFile(filepath.Join(s.dir, "address"), booted); err != nil {
			return err
		}
	}
	if err := s.connect(ctx, booted); err != nil {
		return err
	}
	return writeFile(filepath.Join(s.dir, "booted"), "")
}

// prepare makes the shim's folder and returns the address that the shim will
// have. It is written down before the shim is executed: a shim outlives a
// daemon that dies meanwhile, and must be found by the next one.
func (s *shim) prepare(p *shims) (string, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return "", err
	}
	// The shim's start command reads its group from the bundle in its working
	// folder; without one the group is the id.
	if err := writeFile(filepath.Join(s.dir, "config.json"), `{"annotations":{}}`); err != nil {
		return "", err
	}
	// As containerd's shim.CreateSocketAddress has it, for no daemon address.
	sum := sha256.Sum256([]byte(filepath.Join(p.namespace, s.id)))
	address := "unix://" + filepath.Join(p.sockets, hex.EncodeToString(sum[:]))
	return address, writeFile(filepath.Join(s.dir, "address"), address)
}

// boot runs the shim's start command, which leaves the shim behind, and
// returns the address of its socket.
func (s *shim) boot(ctx context.Context, p *shims) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, shimStartTimeout)
	defer cancel()
	params := &bootapi.BootstrapParams{
		InstanceID:             s.id,
		Namespace:              p.namespace,
		ContainerdTtrpcAddress: p.events,
		SocketDir:              &p.sockets,
	}
	in, err := proto.Marshal(params)
	if err != nil {
		return "", err
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, p.binary, "-namespace", p.namespace, "-id", s.id, "-address", "", "start")
	cmd.Dir, cmd.Env = s.dir, shimEnv(p.events)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s start: %w: %s", p.binary, err, strings.TrimSpace(errs.String()))
	}
	var result bootapi.BootstrapResult
	if err := proto.Unmarshal(out.Bytes(), &result); err != nil || result.Version != 3 || result.Protocol != "ttrpc" {
		return "", fmt.Errorf("%s speaks another shim protocol (version %d, %q); version 2.3 of containerd's runc shim or a later one is needed", p.binary, result.Version, result.Protocol)
	}
	return result.Address, nil
}

// bootPatience is how long a shim may take to listen after the daemon that
// executed it died.
const bootPatience = 2 * time.Second

// reconnect connects to a shim of an earlier process. One that was not up
// when that died may still be coming up.
func (s *shim) reconnect(ctx context.Context) error {
	address, err := os.ReadFile(filepath.Join(s.dir, "address"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	for {
		err := s.connect(ctx, string(address))
		if err == nil || exists(filepath.Join(s.dir, "booted")) {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

func (s *shim) connect(ctx context.Context, address string) error {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", strings.TrimPrefix(address, "unix://"))
	if err != nil {
		return err
	}
	s.client = ttrpc.NewClient(conn, ttrpc.WithOnClose(sync.OnceFunc(func() { close(s.gone) })))
	s.task = taskapi.NewTTRPCTaskClient(s.client)
	return nil
}

// openLog makes the FIFO that the shim logs to.
func (s *shim) openLog(p *shims) error {
	path := filepath.Join(s.dir, "log")
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("mkfifo %s: %w", path, err)
	}
	// Open for writing too, so that the shim's end of it never blocks or breaks
	// while this process lives.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	s.log = f
	p.wg.Go(func() { forwardLog(f, p.log.With("shim", s.id)) })
	return nil
}

// forwardLog logs a shim's lines until f is closed.
func forwardLog(f io.Reader, log *slog.Logger) {
	r := bufio.NewReaderSize(f, 1024) // longer lines come in pieces
	for {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 {
			level := slog.LevelDebug
			if bytes.Contains(line, []byte("level=error")) || bytes.Contains(line, []byte("level=fatal")) {
				level = slog.LevelWarn
			}
			log.Log(context.Background(), level, "runc shim", "line", string(bytes.TrimSpace(line)))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// disconnect leaves the shim running.
func (s *shim) disconnect() {
	if s.client != nil {
		_ = s.client.Close()
	}
	if s.log != nil {
		_ = s.log.Close()
	}
}

// stop ends the shim, which has no container left, and removes its folder.
func (s *shim) stop(ctx context.Context) error {
	if s.task != nil {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, err := s.task.Shutdown(ctx, &taskapi.ShutdownRequest{ID: s.id})
		if err != nil && !errors.Is(err, ttrpc.ErrClosed) {
			return err
		}
		select {
		case <-s.gone:
		case <-ctx.Done():
			return fmt.Errorf("shim %s does not end: %w", s.id, ctx.Err())
		}
	}
	s.disconnect()
	return os.RemoveAll(s.dir)
}
