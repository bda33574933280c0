package keeper

import (
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
)

// maxKept bounds how many records wait for a daemon.
const maxKept = 100

// journal keeps what is logged, as JSON, until a daemon is told. Safe for concurrent
// use.
type journal struct {
	poke chan struct{} // there is something

	mu   sync.Mutex
	kept []json.RawMessage
}

func newJournal() *journal { return &journal{poke: make(chan struct{}, 1)} }

func (j *journal) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(j, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// Write takes a record.
func (j *journal) Write(record []byte) (int, error) {
	j.mu.Lock()
	if j.kept = append(j.kept, slices.Clone(record)); len(j.kept) > maxKept {
		j.kept = j.kept[1:]
	}
	j.mu.Unlock()
	select {
	case j.poke <- struct{}{}:
	default:
	}
	return len(record), nil
}

// take returns what waits.
func (j *journal) take() []json.RawMessage {
	j.mu.Lock()
	defer j.mu.Unlock()
	kept := j.kept
	j.kept = nil
	return kept
}
