package network

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
)

// keysPatience is how long the keys of encrypted networks may be on their way. They
// come with what managers say of a node's first such network, and the leader makes
// them as the first is made, so seconds are usual.
const keysPatience = time.Minute

// withoutKeys takes from a data plane's error what it says of encrypted networks that
// lack keys, and returns these, and what is left.
func withoutKeys(err error) (lacking []string, rest error) {
	var se *SetError
	if !errors.As(err, &se) {
		return nil, err
	}
	others := map[Item]error{}
	for it, e := range se.Items {
		if id, tunnel := strings.CutPrefix(string(it), string(TunnelItem(""))); tunnel && errors.Is(e, ErrNoKeys) && e.Error() == ErrNoKeys.Error() {
			lacking = append(lacking, id)
		} else {
			others[it] = e
		}
	}
	slices.Sort(lacking)
	switch {
	case len(lacking) == 0:
		return nil, err
	case len(others) == 0:
		return lacking, nil
	}
	return lacking, &SetError{Items: others}
}

// reporter says what could not be set. It belongs to Run.
type reporter struct {
	n *Networks
	// keyless is since when some network has lacked keys; zero: none does.
	keyless time.Time
}

// set makes the data plane what it should be, and says what is not.
func (r *reporter) set(ctx context.Context) {
	err := r.n.set.commit(ctx, r.n.config)
	if ctx.Err() != nil {
		return
	}
	lacking, err := withoutKeys(err)
	if err != nil {
		r.n.log.Error("network: not all is as it should be; will try again", "error", err)
	}
	if len(lacking) == 0 {
		r.keyless = time.Time{}
		return
	}
	if r.keyless.IsZero() {
		r.keyless = time.Now()
	}
	say, waited := r.n.log.Debug, time.Since(r.keyless)
	if waited >= keysPatience {
		say = r.n.log.Error
	}
	say("network: encrypted networks have no keys yet, which managers tell: until then they send nothing to other nodes, rather than in clear text",
		"networks", lacking, "for", waited.Round(time.Second))
}
