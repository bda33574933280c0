// Package containerd runs containers and keeps images with containerd: the
// real engine.Runtime and engine.Images.
//
// By default containerd is inside this process, as a library: its content
// store, metadata database, snapshotter and differ are assembled here by hand
// and called directly. There is no containerd daemon, no gRPC server and no
// plugin registry. With Config.Address an external containerd keeps the images
// and their snapshots instead.
//
// Containers run under containerd's runc shim, many in one shim process. This
// package speaks the shim's task API (version 3, ttrpc) itself, so that a
// container costs no execution of the shim binary and no database write. Shims
// outlive the process: Open finds them again by what is written under
// Config.State.
//
// It is the only package of Legion that imports containerd.
// See design/runtime.md and design/images.md.
package containerd
