package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/legion-swarm/legion/network"
)

// patience is how long one of both waits for the other: a keeper that takes longer
// is ended.
const patience = 10 * time.Second

var (
	errGone    = errors.New("the keeper is gone")
	errVersion = errors.New("the keeper is of another version")
)

// refusal is what a keeper says that could not do what it was asked for.
type refusal struct{ text string }

func (e refusal) Error() string { return e.text }

// link is a connection to a keeper. It is used by who has the client's turn.
type link struct {
	wire    wire
	process *process
	replies chan reply
	gone    chan struct{} // closed when the connection has ended
	ended   chan struct{} // closed when nobody waits for replies any more

	named    bool // zones have been told
	zones    map[string]*network.Zone
	settings *Settings // that were told
	peers    map[string]Peers
}

// newLink greets a keeper and returns what it holds.
func (c *Client) newLink(w wire, p *process) (*link, *held, error) {
	l := &link{wire: w, process: p, replies: make(chan reply), gone: make(chan struct{}), ended: make(chan struct{}), peers: map[string]Peers{}}
	c.readers.Go(func() { l.read(c.log) })
	all := &held{}
	r, err := l.call(request{Hello: Version})
	for err == nil {
		if r.Version != Version || r.Held == nil {
			err = errVersion
			break
		}
		all.At = r.Held.At
		all.Taps = append(all.Taps, r.Held.Taps...)
		all.Resolvers = append(all.Resolvers, r.Held.Resolvers...)
		if r.Held.Peers != nil {
			applyPeers(l.peers, r.Held.Peers)
		}
		if !r.More {
			return l, all, nil
		}
		r, err = l.next()
	}
	return nil, nil, errors.Join(err, l.kill())
}

// read passes replies on and logs what the keeper does, until the connection ends.
func (l *link) read(log *slog.Logger) {
	defer close(l.gone)
	for {
		var r reply
		files, err := l.wire.receive(&r)
		closeFiles(files)
		if err != nil {
			return
		}
		if r.Log != nil {
			relog(log, r.Log)
			continue
		}
		select {
		case l.replies <- r:
		case <-l.ended:
			return
		}
	}
}

// relog logs what a keeper has.
func relog(log *slog.Logger, record json.RawMessage) {
	var all map[string]any
	var level slog.Level
	if json.Unmarshal(record, &all) != nil {
		return
	}
	text, _ := all[slog.LevelKey].(string)
	said, _ := all[slog.MessageKey].(string)
	if level.UnmarshalText([]byte(text)) != nil {
		return
	}
	for _, k := range []string{slog.LevelKey, slog.MessageKey, slog.TimeKey} {
		delete(all, k)
	}
	attrs := make([]any, 0, 2*len(all))
	for _, k := range slices.Sorted(maps.Keys(all)) {
		attrs = append(attrs, k, all[k])
	}
	log.Log(context.Background(), level, said, attrs...)
}

// call asks for something. The error is a refusal, or the link is of no use any more.
func (l *link) call(r request, files ...int) (reply, error) {
	if err := l.wire.send(r, time.Now().Add(patience), files...); err != nil {
		return reply{}, errors.Join(errGone, err)
	}
	return l.next()
}

// next waits for a reply.
func (l *link) next() (reply, error) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case r := <-l.replies:
		if r.Error != "" && r.Version == 0 {
			return r, refusal{r.Error}
		}
		return r, nil
	case <-l.gone:
		return reply{}, errGone
	case <-t.C:
		return reply{}, fmt.Errorf("%w: it has not answered for %v", errGone, patience)
	}
}

// leave ends the connection.
func (l *link) leave() {
	close(l.ended)
	_ = l.wire.c.Close()
	<-l.gone
}

// kill ends the keeper, if it has not ended, and the connection.
func (l *link) kill() error {
	l.leave()
	return l.process.end()
}
