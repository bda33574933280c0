package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/moby/moby/client"
)

// peer is a daemon with roots of its own.
type peer struct {
	name    string
	command []string

	dir    string
	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has ended
	client *client.Client
}

const (
	startTimeout = 60 * time.Second
	image        = "build/images/web.tar"
)

func (p *peer) start(ctx context.Context) (err error) {
	if p.dir, err = os.MkdirTemp("/var/tmp", "legion-bench-"); err != nil {
		return err
	}
	log, err := os.Create(p.dir + "/log")
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	args := append(p.command[1:], "--data-root", p.dir+"/data", "--exec-root", p.dir+"/exec", "--pidfile", p.dir+"/pid", "-H", "unix://"+p.dir+"/sock")
	p.cmd = exec.Command(p.command[0], args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.ended = make(chan struct{})
	go func() {
		_ = p.cmd.Wait() // how it ended is in its log
		close(p.ended)
	}()
	if p.client, err = client.New(client.WithHost("unix://" + p.dir + "/sock")); err != nil {
		return err
	}
	if _, err := within(ctx, startTimeout, "the daemon answers", func() (bool, error) {
		_, err := p.client.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
		return err == nil, err
	}); err != nil {
		text, _ := os.ReadFile(p.dir + "/log")
		return fmt.Errorf("%w\n%s", err, text[max(0, len(text)-2000):])
	}
	if err := p.load(ctx); err != nil {
		return err
	}
	port := map[bool]string{true: "2377", false: "2378"}[p.name == "legion"]
	_, err = p.client.SwarmInit(ctx, client.SwarmInitOptions{ListenAddr: "127.0.0.1:" + port, AdvertiseAddr: "127.0.0.1:" + port})
	return err
}

func (p *peer) load(ctx context.Context) error {
	f, err := os.Open(image)
	if err != nil {
		return fmt.Errorf("%w (make bench builds it)", err)
	}
	defer func() { _ = f.Close() }()
	r, err := p.client.ImageLoad(ctx, f)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	_, err = discard(r)
	return err
}

// remove ends the daemon and all that it made. It works after a failed start.
func (p *peer) remove() error {
	if p.dir == "" {
		return nil
	}
	if p.client != nil {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		_ = p.removeServices(ctx)
		_, _ = p.client.SwarmLeave(ctx, client.SwarmLeaveOptions{Force: true})
		_ = p.client.Close()
	}
	if p.cmd != nil && p.cmd.Process != nil {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
		case <-time.After(startTimeout):
			_ = p.cmd.Process.Kill()
			<-p.ended
		}
	}
	out, err := exec.Command("scripts/erase", p.dir+"/data", p.dir+"/exec").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("erase %s: %w: %s", p.dir, err, out)
	}
	return errors.Join(err, os.RemoveAll(p.dir))
}

func (p *peer) removeServices(ctx context.Context) error {
	list, err := p.client.ServiceList(ctx, client.ServiceListOptions{})
	if err != nil {
		return err
	}
	for _, s := range list.Items {
		if _, err := p.client.ServiceRemove(ctx, s.ID, client.ServiceRemoveOptions{}); err != nil {
			return err
		}
	}
	_, err = within(ctx, startTimeout, "no container is left", func() (bool, error) {
		left, err := p.client.ContainerList(ctx, client.ContainerListOptions{})
		return err == nil && len(left.Items) == 0, err
	})
	return err
}
