package raftnode

import (
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/raft/v3"
)

func (n *Node) warnSlow(file string, d time.Duration) {
	n.cfg.Log.Warn("raft log: the disk is slow, and changes wait for it", "file", file, "fdatasync", d)
}

// quiet passes raft's own log on, its information as debugging. Its panics are
// caught by Run.
type quiet struct{ log *slog.Logger }

var _ raft.Logger = quiet{}

func (q quiet) Debug(...any)                {}
func (q quiet) Debugf(string, ...any)       {}
func (q quiet) Info(v ...any)               { q.log.Debug("raft: " + fmt.Sprint(v...)) }
func (q quiet) Infof(f string, v ...any)    { q.log.Debug("raft: " + fmt.Sprintf(f, v...)) }
func (q quiet) Warning(v ...any)            { q.log.Warn("raft: " + fmt.Sprint(v...)) }
func (q quiet) Warningf(f string, v ...any) { q.log.Warn("raft: " + fmt.Sprintf(f, v...)) }
func (q quiet) Error(v ...any)              { q.log.Error("raft: " + fmt.Sprint(v...)) }
func (q quiet) Errorf(f string, v ...any)   { q.log.Error("raft: " + fmt.Sprintf(f, v...)) }
func (q quiet) Fatal(v ...any)              { panic("raft: " + fmt.Sprint(v...)) }
func (q quiet) Fatalf(f string, v ...any)   { panic("raft: " + fmt.Sprintf(f, v...)) }
func (q quiet) Panic(v ...any)              { panic("raft: " + fmt.Sprint(v...)) }
func (q quiet) Panicf(f string, v ...any)   { panic("raft: " + fmt.Sprintf(f, v...)) }
