package dispatcher

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// Keys are told to nodes that are in an encrypted network, when they change, and
// taken back from those that are in none any more.
func TestKeysFor(t *testing.T) {
	st, err := store.NewLocal(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	set := func(send uint32, ids ...uint32) {
		t.Helper()
		if _, err := st.Update(t.Context(), func(tx *store.Tx) error {
			c := &api.Cluster{}
			for old := range store.List[*api.Cluster](tx) {
				*c = *old
			}
			c.NetworkKeys = api.NetworkKeys{OverlayKeys: api.OverlayKeys{Send: send}}
			for _, id := range ids {
				c.NetworkKeys.Keys = append(c.NetworkKeys.Keys, api.OverlayKey{ID: id, Secret: [32]byte{byte(id)}})
			}
			if c.ID != "" {
				return store.Put(tx, c)
			}
			c.ID = "c"
			for id, option := range map[string]string{"plain": "false", "secret": ""} {
				n := &api.Network{}
				n.ID, n.Spec.Name = id, id
				n.DriverState.Options = map[string]string{api.OptionEncrypted: option}
				if err := store.Create(tx, n); err != nil {
					return err
				}
			}
			return store.Create(tx, c)
		}); err != nil {
			t.Fatal(err)
		}
	}
	in := func(ids ...string) map[string]struct{} {
		m := map[string]struct{}{}
		for _, id := range ids {
			m[id] = struct{}{}
		}
		return m
	}
	set(1, 1, 2)
	none := keysFor(st.View(), in("plain", "gone"), nil)
	if none == nil || len(none.GetKeys()) != 0 || none.GetSend() != 0 {
		t.Errorf("who is in no encrypted network is told %v", none)
	}
	if k := keysFor(st.View(), in("plain"), none); k != nil {
		t.Errorf("and again %v", k)
	}
	told := keysFor(st.View(), in("plain", "secret"), none)
	if len(told.GetKeys()) != 2 || told.GetSend() != 1 || len(told.GetKeys()[1].GetSecret()) != 32 || told.GetKeys()[1].GetSecret()[0] != 2 {
		t.Errorf("who is in one is told %v", told)
	}
	if k := keysFor(st.View(), in("secret"), told); k != nil {
		t.Errorf("and again %v", k)
	}
	set(2, 1, 2, 3)
	next := keysFor(st.View(), in("secret"), told)
	if len(next.GetKeys()) != 3 || next.GetSend() != 2 {
		t.Errorf("of a change %v", next)
	}
	if k := keysFor(st.View(), in("plain"), next); !proto.Equal(k, none) {
		t.Errorf("who leaves keeps %v", k)
	}
}
