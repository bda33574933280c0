package orchestrator

import (
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// maxVersionBytes bounds the specs of all earlier versions of a service
// together, as JSON.
const maxVersionBytes = 4 << 20

// Archive keeps the version of a service that another takes the place of, and
// forgets the oldest ones beyond what is's policy keeps. It does nothing where
// both are the same version.
func Archive(tx *store.Tx, was, is *api.Service) error {
	if was.Number == is.Number {
		return nil
	}
	policy, err := api.ParsePolicy(is.Spec.Labels)
	if err != nil {
		policy = api.DefaultPolicy() // the labels are of a time when they were good
	}
	if policy.History > 0 {
		if err := store.Create(tx, was.Archive()); err != nil {
			return err
		}
	}
	var kept []*api.ServiceVersion
	size := 0
	for v := range store.List[*api.ServiceVersion](tx, store.ByIDPrefix(api.VersionPrefix(was.ID))) {
		kept = append(kept, v)
		size += v.Size
	}
	for len(kept) > policy.History || len(kept) > 1 && size > maxVersionBytes {
		if err := store.Delete[*api.ServiceVersion](tx, kept[0].ID); err != nil {
			return err
		}
		size -= kept[0].Size
		kept = kept[1:]
	}
	return nil
}

// Forget deletes all versions of a service that is removed.
func Forget(tx *store.Tx, service string) error {
	for v := range store.List[*api.ServiceVersion](tx, store.ByIDPrefix(api.VersionPrefix(service))) {
		if err := store.Delete[*api.ServiceVersion](tx, v.ID); err != nil {
			return err
		}
	}
	return nil
}
