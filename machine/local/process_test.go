package local

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProcess(t *testing.T) {
	cmd := exec.Command("/bin/cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := identify(cmd.Process.Pid)
	if err != nil || !p.alive() {
		t.Fatalf("%+v, %v", p, err)
	}
	path := filepath.Join(t.TempDir(), "p")
	if err := p.save(path); err != nil {
		t.Fatal(err)
	}
	if read, err := loadProcess(path); err != nil || read != p {
		t.Errorf("%+v, %v", read, err)
	}
	for _, other := range []process{{}, {p.PID, p.Start + 1, p.Boot}, {p.PID, p.Start, "another"}, {1 << 30, 1, p.Boot}} {
		if other.alive() {
			t.Errorf("%+v is alive", other)
		}
		if err := other.signal(unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.gone(t.Context()); err != nil { // a zombie is gone
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error("signals to others reached it:", err)
	}
	if p, err := loadProcess(path + "x"); err != nil || p.alive() {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestLogStaysShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	for range 20 {
		if n, err := l.Write(chunk); n != len(chunk) || err != nil {
			t.Fatal(n, err)
		}
	}
	for _, name := range []string{path, path + ".1"} {
		if info, err := os.Stat(name); err != nil || info.Size() > maxLog || info.Size() == 0 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if again, err := openLog(path); err != nil || again.size == 0 {
		t.Errorf("it does not go on where it was: %v", err)
	}
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("1\n2\n3\n4\n5\n6\n7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := tail(path); got != "3\n4\n5\n6\n7" {
		t.Errorf("%q", got)
	}
}

func TestInitIsForMachines(t *testing.T) {
	if Init(nil) == 0 {
		t.Error("an init that is not process 1")
	}
}
