package dockerapi

import (
	"context"
	"io"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// Containers serves /containers and /exec. *engine.Engine implements it. A
// container is named by id, name or unambiguous id prefix everywhere. Start of
// a running container and stop of a stopped one answer api.NotModified.
type Containers interface {
	ContainerCreate(ctx context.Context, o engine.CreateOptions) (*container.CreateResponse, error)
	ContainerStart(ctx context.Context, name string) error
	ContainerStop(ctx context.Context, name string, o engine.StopOptions) error
	ContainerRestart(ctx context.Context, name string, o engine.StopOptions) error
	ContainerKill(ctx context.Context, name, signal string) error
	ContainerPause(ctx context.Context, name string) error
	ContainerUnpause(ctx context.Context, name string) error
	ContainerRename(ctx context.Context, name, newName string) error
	ContainerUpdate(ctx context.Context, name string, u *container.UpdateConfig) (*container.UpdateResponse, error)
	ContainerRemove(ctx context.Context, name string, o engine.RemoveOptions) error
	ContainerPrune(ctx context.Context, f api.Filters) (*container.PruneReport, error)
	ContainerList(ctx context.Context, o engine.ContainerListOptions) ([]container.Summary, error)
	ContainerInspect(ctx context.Context, name string, size bool) (*container.InspectResponse, error)
	ContainerTop(ctx context.Context, name string, psArgs string) (*container.TopResponse, error)
	// ContainerStats calls fn once without stream (primed with two samples
	// unless oneShot), else every second until ctx or the container ends.
	ContainerStats(ctx context.Context, name string, stream, oneShot bool, fn func(*container.StatsResponse) error) error
	ContainerResize(ctx context.Context, name string, width, height uint32) error
	// ContainerLogs calls fn for each message; tty tells how to frame them.
	ContainerLogs(ctx context.Context, name string, o engine.LogsOptions, fn func(engine.LogMessage) error) (tty bool, err error)
	// ContainerTTY tells how a container's attach and log streams are framed.
	ContainerTTY(ctx context.Context, name string) (bool, error)
	ContainerAttach(ctx context.Context, name string, o engine.AttachOptions) error
	// ContainerWait registers before it returns; the channel gives one response.
	ContainerWait(ctx context.Context, name string, c container.WaitCondition) (<-chan container.WaitResponse, error)
	ContainerChanges(ctx context.Context, name string) ([]container.FilesystemChange, error)
	ContainerExport(ctx context.Context, name string, w io.Writer) error
	ContainerStatPath(ctx context.Context, name, path string) (*container.PathStat, error)
	ContainerArchive(ctx context.Context, name, path string, w io.Writer, stat func(*container.PathStat)) error
	ContainerExtract(ctx context.Context, name, path string, r io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error
	ContainerCommit(ctx context.Context, name string, o engine.CommitOptions) (string, error)

	ExecCreate(ctx context.Context, name string, r *container.ExecCreateRequest) (string, error)
	// ExecStart returns when the process ended, or at once when detached
	// (o has no streams).
	ExecStart(ctx context.Context, execID string, detach bool, size *[2]uint, o engine.AttachOptions) error
	ExecResize(ctx context.Context, execID string, width, height uint32) error
	ExecInspect(ctx context.Context, execID string) (*container.ExecInspectResponse, error)
}

// Images serves /images and /distribution. *engine.Engine implements it.
type Images interface {
	ImagePull(ctx context.Context, ref string, o engine.PullOptions, p engine.Progress) error
	ImagePush(ctx context.Context, ref string, o engine.PullOptions, p engine.Progress) error
	ImageLoad(ctx context.Context, r io.Reader, platforms []ocispec.Platform, p engine.Progress) error
	ImageSave(ctx context.Context, names []string, platforms []ocispec.Platform, w io.Writer) error
	ImageImport(ctx context.Context, r io.Reader, ref string, o engine.ImportOptions) (string, error)
	ImageTag(ctx context.Context, name, ref string) error
	ImageList(ctx context.Context, o engine.ImageListOptions) ([]image.Summary, error)
	ImageInspect(ctx context.Context, name string, o engine.ImageInspectOptions) (*image.InspectResponse, error)
	ImageHistory(ctx context.Context, name string, platform *ocispec.Platform) ([]image.HistoryResponseItem, error)
	ImageRemove(ctx context.Context, name string, o engine.ImageRemoveOptions) ([]image.DeleteResponse, error)
	ImagePrune(ctx context.Context, f api.Filters) (*image.PruneReport, error)
	DistributionInspect(ctx context.Context, ref string, auth *registry.AuthConfig) (*registry.DistributionInspect, error)
}

// Volumes serves /volumes. *engine.Engine implements it.
type Volumes interface {
	VolumeCreate(ctx context.Context, r *volume.CreateRequest) (*volume.Volume, error)
	VolumeInspect(ctx context.Context, name string) (*volume.Volume, error)
	VolumeList(ctx context.Context, f api.Filters) (*volume.ListResponse, error)
	VolumeRemove(ctx context.Context, name string, force bool) error
	VolumePrune(ctx context.Context, f api.Filters) (*volume.PruneReport, error)
}

// System serves /info, /version, /auth, /events and /system/df. Package node
// implements it, as what it says is gathered from the engine and the swarm.
type System interface {
	Info(ctx context.Context) (*system.Info, error)
	Version(ctx context.Context) (*system.VersionResponse, error)
	Auth(ctx context.Context, a *registry.AuthConfig) (*registry.AuthResponse, error)
	// DiskUsage reports on the kinds of object asked for; none means all.
	DiskUsage(ctx context.Context, kinds []system.DiskUsageObject, verbose bool) (*system.DiskUsage, error)
	// Events calls fn for past and, unless o.Until has passed, coming events.
	Events(ctx context.Context, o engine.EventsOptions, fn func(events.Message) error) error
	// SwarmState is what _ping's Swarm header says: "inactive", "active/manager"…
	SwarmState() string
}

// Networks serves /networks: the node's own and, on a manager, the cluster's.
// Package node implements it.
type Networks interface {
	NetworkCreate(ctx context.Context, r *network.CreateRequest) (*network.CreateResponse, error)
	NetworkList(ctx context.Context, f api.Filters) ([]network.Summary, error)
	NetworkInspect(ctx context.Context, name, scope string, verbose bool) (*network.Inspect, error)
	NetworkRemove(ctx context.Context, name string) error
	NetworkPrune(ctx context.Context, f api.Filters) (*network.PruneReport, error)
	NetworkConnect(ctx context.Context, name string, r *network.ConnectRequest) error
	NetworkDisconnect(ctx context.Context, name string, r *network.DisconnectRequest) error
}

// Swarm serves /swarm: this node's membership. Package node implements it.
type Swarm interface {
	SwarmInit(ctx context.Context, r *swarm.InitRequest) (nodeID string, err error)
	SwarmJoin(ctx context.Context, r *swarm.JoinRequest) error
	SwarmLeave(ctx context.Context, force bool) error
	SwarmInspect(ctx context.Context) (*swarm.Swarm, error)
	SwarmUpdate(ctx context.Context, version uint64, s *swarm.Spec, f SwarmUpdateFlags) error
	SwarmUnlockKey(ctx context.Context) (string, error)
	SwarmUnlock(ctx context.Context, key string) error
}

// SwarmUpdateFlags say what SwarmUpdate rotates. RotateNetworkKeys is Legion's own.
type SwarmUpdateFlags struct {
	RotateWorkerToken, RotateManagerToken, RotateManagerUnlockKey, RotateNetworkKeys bool
}

// Cluster serves /nodes, /services, /tasks, /secrets and /configs. Objects are
// named by id, name or unambiguous id prefix. Package node implements it: by
// package manager/control on a manager, with Docker's error elsewhere.
type Cluster interface {
	NodeList(ctx context.Context, f api.Filters) ([]swarm.Node, error)
	NodeInspect(ctx context.Context, name string) (*swarm.Node, error)
	NodeUpdate(ctx context.Context, id string, version uint64, s *swarm.NodeSpec) error
	NodeRemove(ctx context.Context, name string, force bool) error

	// ServiceList fills in ServiceStatus when status is set.
	ServiceList(ctx context.Context, f api.Filters, status bool) ([]swarm.Service, error)
	ServiceInspect(ctx context.Context, name string, insertDefaults bool) (*swarm.Service, error)
	ServiceCreate(ctx context.Context, s *swarm.ServiceSpec, o ServiceOptions) (*swarm.ServiceCreateResponse, error)
	ServiceUpdate(ctx context.Context, name string, version uint64, s *swarm.ServiceSpec, o ServiceOptions) (*swarm.ServiceUpdateResponse, error)
	ServiceRemove(ctx context.Context, name string) error
	// ServiceHistory is the service's versions, newest first; ServiceRollback makes
	// one of them the newest.
	ServiceHistory(ctx context.Context, name string) ([]api.VersionInfo, error)
	ServiceRollback(ctx context.Context, name string, to uint64) error
	// ServicePromote lets an update go on after its canaries.
	ServicePromote(ctx context.Context, name string) error
	// ServicePlan says what an update of the service, or its creation if there is
	// none of the name, would do. It changes nothing.
	ServicePlan(ctx context.Context, name string, s *swarm.ServiceSpec) (*api.ServicePlan, error)
	ServiceLogs(ctx context.Context, name string, o engine.LogsOptions, fn func(TaskLog) error) (tty bool, err error)

	TaskList(ctx context.Context, f api.Filters) ([]swarm.Task, error)
	TaskInspect(ctx context.Context, id string) (*swarm.Task, error)
	TaskLogs(ctx context.Context, id string, o engine.LogsOptions, fn func(TaskLog) error) (tty bool, err error)

	SecretList(ctx context.Context, f api.Filters) ([]swarm.Secret, error)
	SecretInspect(ctx context.Context, name string) (*swarm.Secret, error)
	SecretCreate(ctx context.Context, s *swarm.SecretSpec) (id string, err error)
	SecretUpdate(ctx context.Context, name string, version uint64, s *swarm.SecretSpec) error
	SecretRemove(ctx context.Context, name string) error

	ConfigList(ctx context.Context, f api.Filters) ([]swarm.Config, error)
	ConfigInspect(ctx context.Context, name string) (*swarm.Config, error)
	ConfigCreate(ctx context.Context, s *swarm.ConfigSpec) (id string, err error)
	ConfigUpdate(ctx context.Context, name string, version uint64, s *swarm.ConfigSpec) error
	ConfigRemove(ctx context.Context, name string) error
}

// ServiceOptions go with ServiceCreate and ServiceUpdate.
type ServiceOptions struct {
	// RegistryAuth is the encoded X-Registry-Auth header, kept for the agents.
	RegistryAuth string
	// RegistryAuthFrom is "spec" (default) or "previous-spec".
	RegistryAuthFrom string
	// Rollback is "previous" to go back to the previous spec.
	Rollback string
	// QueryRegistry pins the image's tag to its digest.
	QueryRegistry bool
}

// TaskLog is a message of a task, for service and task logs.
type TaskLog struct {
	// Note is set when the line is about logs that are missing, not one of them.
	// It is shown whichever streams were asked for.
	Note bool
	engine.LogMessage
	NodeID, ServiceID, TaskID string
}
