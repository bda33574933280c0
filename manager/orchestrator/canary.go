package orchestrator

import (
	"fmt"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// labels is what the service's labels ask for. They were checked when it was
// written.
func (p *plan) labels() *api.Policy {
	if p.policyOf == nil {
		l, err := api.ParsePolicy(p.Service.Spec.Labels)
		if err != nil {
			l = api.DefaultPolicy()
		}
		p.policyOf = &l
	}
	return p.policyOf
}

// canaries reports whether the update waits, or will wait, after its first tasks.
func (u *updater) canaries() bool {
	return !u.rollback && u.labels().Canary > 0 && u.Service.Promoted != u.Service.SpecVersion
}

// canaryRoom is how many more slots may be updated before the promotion, and
// whether those that were are all up.
func (u *updater) canaryRoom() (room int, up bool) {
	room, up = u.labels().Canary, true
	for _, s := range u.slots {
		if s.created && len(s.tasks) > 0 {
			room, up = room-1, false
			continue
		}
		t := u.live(s)
		if t == nil || t.SpecVersion != u.Service.SpecVersion {
			continue
		}
		room--
		up = up && u.running(t)
	}
	return max(0, room), up && room <= 0
}

// await says that the update waits for its promotion, or promotes it when the
// canaries have been healthy for the time of monitoring.
func (u *updater) await() {
	settled := u.started
	for _, s := range u.fresh {
		if at := since(u.live(s)); at.After(settled) {
			settled = at
		}
	}
	n, of := len(u.fresh), len(u.fresh)+len(u.stale)
	end := settled.Add(u.config.Monitor)
	switch {
	case u.labels().Promote == api.PromoteManual:
		u.say(fmt.Sprintf("%d of %d tasks are canaries of the update and run; it goes on with: legion service promote %s", n, of, u.Service.Spec.Name))
	case u.waits(end, u.config.Monitor):
		u.again(end)
		u.say(fmt.Sprintf("%d of %d tasks are canaries of the update and run; it goes on if they still do after %s", n, of, u.config.Monitor))
	default:
		u.status(swarm.UpdateStateUpdating, "update in progress", false)
		u.out.Update.Promoted = u.Service.SpecVersion
	}
}

// say changes the message of the update that is under way.
func (u *updater) say(message string) {
	if st := u.Service.UpdateStatus; st == nil || st.Message != message {
		u.status(swarm.UpdateStateUpdating, message, false)
	}
}
