package containerd

type pull struct{}
