// Package swarmpb is what Legion's nodes say to each other: the messages and
// gRPC services of Docker's swarm protocol (package docker.swarmkit.v1, same
// names, numbers and types, so that a stock Docker Engine can take part), and
// the conversions to and from the objects of package api.
//
// The .proto files are in proto/; `make generate` writes the .pb.go files.
// Fields numbered 1000 and up carry what Docker's protocol has no field for:
// image mounts (Mount.image_options and Mount.Type IMAGE), cluster mount
// options, Task.global, NetworkSpec.scope and Network.predefined. Other
// implementations skip them.
//
// Messages come from other machines: conversions accept every message, however
// incomplete, and never panic.
package swarmpb
