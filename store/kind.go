package store

import (
	"fmt"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// Kind names a table. The numbers are in the log: they never change.
type Kind uint8

// The kinds of object.
const (
	KindCluster Kind = iota + 1
	KindNode
	KindService
	KindTask
	KindNetwork
	KindSecret
	KindConfig
	KindServiceVersion
)

// kinds is how many there are.
const kinds = int(KindServiceVersion)

func (k Kind) String() string {
	switch k {
	case KindCluster:
		return "cluster"
	case KindNode:
		return "node"
	case KindService:
		return "service"
	case KindTask:
		return "task"
	case KindNetwork:
		return "network"
	case KindSecret:
		return "secret"
	case KindConfig:
		return "config"
	case KindServiceVersion:
		return "service version"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

func (k Kind) valid() bool { return k >= KindCluster && k <= KindServiceVersion }

// named reports whether the kind's names are unique.
func (k Kind) named() bool {
	return k == KindService || k == KindNetwork || k == KindSecret || k == KindConfig
}

func kindOf[T api.Object]() Kind {
	var zero T
	return kindOfAny(zero)
}

func kindOfAny(o any) Kind {
	switch o.(type) {
	case *api.Cluster:
		return KindCluster
	case *api.Node:
		return KindNode
	case *api.Service:
		return KindService
	case *api.Task:
		return KindTask
	case *api.Network:
		return KindNetwork
	case *api.Secret:
		return KindSecret
	case *api.Config:
		return KindConfig
	case *api.ServiceVersion:
		return KindServiceVersion
	}
	return 0
}

// idOf, metaOf and nameOf read what all kinds have.
func idOf(o any) string {
	switch o := o.(type) {
	case *api.Cluster:
		return o.ID
	case *api.Node:
		return o.ID
	case *api.Service:
		return o.ID
	case *api.Task:
		return o.ID
	case *api.Network:
		return o.ID
	case *api.Secret:
		return o.ID
	case *api.Config:
		return o.ID
	case *api.ServiceVersion:
		return o.ID
	}
	return ""
}

func metaOf(o any) *swarm.Meta {
	switch o := o.(type) {
	case *api.Cluster:
		return &o.Meta
	case *api.Node:
		return &o.Meta
	case *api.Service:
		return &o.Meta
	case *api.Task:
		return &o.Meta
	case *api.Network:
		return &o.Meta
	case *api.Secret:
		return &o.Meta
	case *api.Config:
		return &o.Meta
	case *api.ServiceVersion:
		return &o.Meta
	}
	return nil
}

func nameOf(o any) string {
	switch o := o.(type) {
	case *api.Cluster:
		return o.Spec.Name
	case *api.Node:
		return o.Description.Hostname
	case *api.Service:
		return o.Spec.Name
	case *api.Network:
		return o.Spec.Name
	case *api.Secret:
		return o.Spec.Name
	case *api.Config:
		return o.Spec.Name
	case *api.Task:
		if o.Spec != nil {
			return o.Spec.ServiceName
		}
	}
	return ""
}

// fold is how names are compared.
func fold(name string) string { return strings.ToLower(name) }
