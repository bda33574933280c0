package containerd

import (
	"testing"

	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/engine/enginetest"
)

func TestImages(t *testing.T) {
	enginetest.Images(t, func(t *testing.T) engine.Images { return newRig(t, nil).Images() })
}
