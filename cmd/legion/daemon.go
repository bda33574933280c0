package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/legion-swarm/legion/collector"
	"github.com/legion-swarm/legion/monitor"
	"github.com/legion-swarm/legion/settings"
)

const daemonName = "daemon"

// monitorSlack lets a goroutine wait for the processor of another one's system call
// for a little less than for that of one that computes (10 ms).
const monitorSlack = 4 * time.Millisecond

// daemonCommand is "legion daemon": it prepares the process and runs a node.
type daemonCommand struct {
	cmd        *cobra.Command
	source     *settings.Source
	configFile string
	validate   bool
}

func newDaemonCommand() *cobra.Command {
	d := &daemonCommand{}
	d.cmd = &cobra.Command{
		Use:   daemonName + " [OPTIONS]",
		Short: "Run a node",
		Long: "Run a node: its containers, its part in a swarm and the Docker API on its socket.\n\n" +
			"Flags and configuration file are dockerd's. SIGTERM ends the daemon and leaves\ncontainers running; SIGHUP reads the configuration file again.",
		Args:                  cobra.NoArgs,
		DisableFlagsInUseLine: true,
		SilenceUsage:          true,
		SilenceErrors:         true,
		// The client's own checks ask a daemon, which this one is about to be.
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
		RunE:              func(cmd *cobra.Command, _ []string) error { return d.run(cmd.Context()) },
	}
	flags := d.cmd.Flags()
	flags.SortFlags = true
	flags.StringVar(&d.configFile, "config-file", settings.DefaultConfigFile, "Daemon configuration file")
	flags.BoolVar(&d.validate, "validate", false, "Validate the configuration and exit")
	_ = d.cmd.MarkFlagFilename("config-file")
	d.source = settings.NewSource(flags)
	d.cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return cli.StatusError{Status: err.Error() + "\nSee 'legion daemon --help'.", StatusCode: 125}
	})
	return d.cmd
}

func (d *daemonCommand) run(ctx context.Context) error {
	if ctx == nil {
		ctx = context.Background()
	}
	conf, notes, err := d.load()
	if err != nil {
		return err
	}
	if d.validate {
		for _, n := range notes {
			_, _ = fmt.Fprintln(os.Stderr, "warning:", n)
		}
		_, _ = fmt.Fprintln(os.Stdout, "configuration OK")
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("legion daemon needs to be run as root: it makes network namespaces, mounts and cgroups")
	}
	level := new(slog.LevelVar)
	level.Set(logLevel(conf))
	log := newLog(os.Stderr, conf.LogFormat, level)
	for _, n := range notes {
		log.Warn(n)
	}
	if err := prepare(conf, log); err != nil {
		return err
	}
	if conf.Pidfile != "" {
		remove, err := writePidfile(conf.Pidfile)
		if err != nil {
			return fmt.Errorf("failed to start daemon, ensure daemon is not running or delete %s: %w", conf.Pidfile, err)
		}
		defer remove()
	}
	if os.Getenv("GOGC") != "" {
		return runNode(ctx, conf, level, log, d.load)
	}
	paced, end := context.WithCancel(ctx)
	var pacer sync.WaitGroup
	pacer.Go(func() { _ = collector.Run(paced) }) // ends with its context
	defer pacer.Wait()
	defer end()
	return runNode(ctx, conf, level, log, d.load)
}

// load reads the configuration file and merges it with the flags. A missing
// file is an error only if the user named it.
func (d *daemonCommand) load() (*settings.Daemon, []string, error) {
	flags := d.cmd.Flags()
	file, err := os.ReadFile(d.configFile)
	if err != nil && (flags.Changed("config-file") || !errors.Is(err, fs.ErrNotExist)) {
		return nil, nil, fmt.Errorf("unable to configure the Legion daemon with file %s: %w", d.configFile, err)
	}
	given := err == nil
	conf, notes, err := d.source.Daemon(file)
	switch {
	case err != nil && given:
		return nil, nil, fmt.Errorf("unable to configure the Legion daemon with file %s: %w", d.configFile, err)
	case err != nil:
		return nil, nil, fmt.Errorf("unable to configure the Legion daemon: %w", err)
	}
	return conf, notes, nil
}

// prepare sets what belongs to the process and not to the node.
func prepare(conf *settings.Daemon, log *slog.Logger) error {
	for name, value := range map[string]string{"HTTP_PROXY": conf.HTTPProxy, "HTTPS_PROXY": conf.HTTPSProxy, "NO_PROXY": conf.NoProxy} {
		if value == "" {
			continue
		}
		if err := errors.Join(os.Setenv(name, value), os.Setenv(strings.ToLower(name), value)); err != nil {
			return err
		}
	}
	if conf.OOMScoreAdjust != 0 {
		if err := os.WriteFile("/proc/self/oom_score_adj", fmt.Appendf(nil, "%d", conf.OOMScoreAdjust), 0); err != nil {
			return fmt.Errorf("set oom-score-adjust to %d: %w", conf.OOMScoreAdjust, err)
		}
	}
	if err := monitor.Relax(monitorSlack); err != nil {
		log.Debug("small writes cost more of the processor than they need to", "err", err)
	}
	for _, dir := range []string{conf.DataRoot, conf.ExecRoot} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make the daemon's folders: %w", err)
		}
	}
	// Links resolved once, so that mounts are recognised by their path later.
	for _, dir := range []*string{&conf.DataRoot, &conf.ExecRoot} {
		real, err := filepath.EvalSymlinks(*dir)
		if err != nil {
			return fmt.Errorf("make the daemon's folders: %w", err)
		}
		*dir = real
	}
	b := readBuild()
	log.Info("Legion starts", "version", b.version, "commit", b.commit, "data-root", conf.DataRoot, "exec-root", conf.ExecRoot, "pid", os.Getpid())
	return nil
}
