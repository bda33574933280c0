package scheduler

import (
	"hash/fnv"
	"math"

	"github.com/legion-swarm/legion/api"
)

// plain reports whether the group's tasks go where the service has none, first
// of all: then few nodes need to be looked at.
func (g *group) plain() bool {
	return len(g.spread) == 0 && len(g.rules) == 0 && g.strategy == api.Spread
}

// rank sets what labels of ours make of a candidate's rank, as it now is.
func (g *group) rank(c *candidate) {
	if len(g.rules) > 0 {
		c.liking = g.liking(c.node)
	}
	switch g.strategy {
	case api.BinPack:
		c.score = c.node.free()
	case api.Random:
		c.score += g.lot(c)
	}
}

// free is the share of the node's CPU and memory that is not reserved; of nodes
// that have the same, those with more tasks are a little less free.
func (n *node) free() float64 {
	const aTask = 1e-9
	have, sum := &n.Description.Resources, -aTask*float64(n.tasks)
	if have.NanoCPUs > 0 {
		sum += float64(have.NanoCPUs-n.cpu) / float64(have.NanoCPUs)
	}
	if have.MemoryBytes > 0 {
		sum += float64(have.MemoryBytes-n.memory) / float64(have.MemoryBytes)
	}
	return sum
}

// lot is the time until the node's turn comes up, in a race that gives every node the
// same chance each time, whatever came before: exponentially distributed. It
// depends on nothing but the names of group and node, and on how many tasks there are, so
// that a plan can be made twice.
func (g *group) lot(c *candidate) float64 {
	h := fnv.New64a()
	for _, s := range [...]string{g.key, c.ID} {
		h.Write([]byte(s))
	}
	x := h.Sum64() + uint64(g.state.tasks.count)<<32 + uint64(c.mine)
	// The last step of splitmix64, as FNV's upper bits are poor.
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	return -math.Log(float64(x>>11+1) / (1 << 53))
}
