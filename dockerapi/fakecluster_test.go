package dockerapi

import (
	"context"
	"io"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

func (f *fake) ImagePull(_ context.Context, ref string, o engine.PullOptions, p engine.Progress) error {
	user := ""
	if o.Auth != nil {
		user = o.Auth.Username
	}
	if err := f.call("ImagePull", ref, o.AllTags, user); err != nil {
		return err
	}
	p(jsonstream.Message{Status: "Pulling from library/app", ID: "1"})
	p(jsonstream.Message{Status: "Downloading", ID: "abc", Progress: &jsonstream.Progress{Current: 1, Total: 2}})
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.errors["late"]
}

func (f *fake) ImagePush(_ context.Context, ref string, o engine.PullOptions, p engine.Progress) error {
	p(jsonstream.Message{Status: "The push refers to repository [" + ref + "]"})
	return f.call("ImagePush", ref, o.AllTags)
}

func (f *fake) ImageLoad(_ context.Context, r io.Reader, _ []ocispec.Platform, p engine.Progress) error {
	b, _ := io.ReadAll(r)
	p(jsonstream.Message{Stream: "Loaded image: app:1\n"})
	return f.call("ImageLoad", len(b))
}

func (f *fake) ImageSave(_ context.Context, names []string, _ []ocispec.Platform, w io.Writer) error {
	if err := f.call("ImageSave", names); err != nil {
		return err
	}
	_, err := io.WriteString(w, "tar")
	if err == nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		err = f.errors["late"]
	}
	return err
}

func (f *fake) ImageImport(_ context.Context, r io.Reader, ref string, o engine.ImportOptions) (string, error) {
	b, _ := io.ReadAll(r)
	return "sha256:33", f.call("ImageImport", string(b), ref, o.Message, o.Changes)
}
func (f *fake) ImageTag(_ context.Context, name, ref string) error {
	return f.call("ImageTag", name, ref)
}
func (f *fake) ImageList(_ context.Context, o engine.ImageListOptions) ([]image.Summary, error) {
	return []image.Summary{{ID: "sha256:1111111111111111", RepoTags: []string{"app:1"}, Size: 5 << 20, Created: time.Now().Add(-time.Hour).Unix(), Descriptor: &ocispec.Descriptor{Digest: "sha256:11"}}}, f.call("ImageList", o.All, o.Filters)
}
func (f *fake) ImageInspect(_ context.Context, name string, o engine.ImageInspectOptions) (*image.InspectResponse, error) {
	return &image.InspectResponse{ID: "sha256:11", RepoTags: []string{"app:1"}, Os: "linux", Architecture: "amd64"}, f.call("ImageInspect", name, o.Platform)
}
func (f *fake) ImageHistory(_ context.Context, name string, p *ocispec.Platform) ([]image.HistoryResponseItem, error) {
	return []image.HistoryResponseItem{{ID: "<missing>", CreatedBy: "COPY"}}, f.call("ImageHistory", name, p)
}
func (f *fake) ImageRemove(_ context.Context, name string, o engine.ImageRemoveOptions) ([]image.DeleteResponse, error) {
	return []image.DeleteResponse{{Untagged: name}}, f.call("ImageRemove", name, o.Force, o.PruneChildren, len(o.Platforms))
}
func (f *fake) ImagePrune(_ context.Context, fl api.Filters) (*image.PruneReport, error) {
	return &image.PruneReport{}, f.call("ImagePrune", fl)
}
func (f *fake) DistributionInspect(_ context.Context, ref string, _ *registry.AuthConfig) (*registry.DistributionInspect, error) {
	return &registry.DistributionInspect{Descriptor: ocispec.Descriptor{Digest: "sha256:22"}}, f.call("DistributionInspect", ref)
}

func (f *fake) VolumeCreate(_ context.Context, r *volume.CreateRequest) (*volume.Volume, error) {
	return &volume.Volume{Name: r.Name, Driver: "local"}, f.call("VolumeCreate", r.Name)
}
func (f *fake) VolumeInspect(_ context.Context, name string) (*volume.Volume, error) {
	return &volume.Volume{Name: name, Driver: "local"}, f.call("VolumeInspect", name)
}
func (f *fake) VolumeList(_ context.Context, fl api.Filters) (*volume.ListResponse, error) {
	return &volume.ListResponse{}, f.call("VolumeList", fl)
}
func (f *fake) VolumeRemove(_ context.Context, name string, force bool) error {
	return f.call("VolumeRemove", name, force)
}
func (f *fake) VolumePrune(_ context.Context, fl api.Filters) (*volume.PruneReport, error) {
	return &volume.PruneReport{}, f.call("VolumePrune", fl)
}

func (f *fake) Info(context.Context) (*system.Info, error) {
	return &system.Info{ID: "x", Name: "host1", ServerVersion: "1.2.3", OSType: "linux", NCPU: 2, Swarm: swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}}, f.call("Info")
}
func (f *fake) Version(context.Context) (*system.VersionResponse, error) {
	return &system.VersionResponse{Version: "1.2.3", Os: "linux", Arch: "amd64", Platform: system.PlatformInfo{Name: "Legion"}}, f.call("Version")
}
func (f *fake) Auth(_ context.Context, a *registry.AuthConfig) (*registry.AuthResponse, error) {
	return &registry.AuthResponse{Status: "Login Succeeded"}, f.call("Auth", a.Username)
}
func (f *fake) DiskUsage(_ context.Context, kinds []system.DiskUsageObject, verbose bool) (*system.DiskUsage, error) {
	return &system.DiskUsage{
		ImageUsage:     &image.DiskUsage{TotalCount: 1, TotalSize: 7, Items: []image.Summary{{ID: "sha256:11"}}},
		ContainerUsage: &container.DiskUsage{TotalCount: 0},
	}, f.call("DiskUsage", kinds, verbose)
}
func (f *fake) Events(ctx context.Context, o engine.EventsOptions, fn func(events.Message) error) error {
	if err := f.call("Events", o.Since.Unix(), o.Until.Unix(), o.Filters); err != nil {
		return err
	}
	for i := range 2 {
		at := time.Unix(int64(100+i), 0)
		err := fn(events.Message{Type: events.ContainerEventType, Action: events.ActionStart, Scope: "local", Time: at.Unix(), TimeNano: at.UnixNano(), Actor: events.Actor{ID: webID, Attributes: map[string]string{"image": "app:1", "name": "web"}}})
		if err != nil {
			return err
		}
	}
	if o.Until.IsZero() {
		<-ctx.Done()
		f.attached <- ctx.Err()
		return ctx.Err()
	}
	return nil
}
func (f *fake) SwarmState() string { return "active/manager" }

func (f *fake) NetworkCreate(_ context.Context, r *network.CreateRequest) (*network.CreateResponse, error) {
	return &network.CreateResponse{ID: "net1"}, f.call("NetworkCreate", r.Name, r.Driver)
}
func (f *fake) NetworkList(_ context.Context, fl api.Filters) ([]network.Summary, error) {
	return []network.Summary{{Network: network.Network{Name: "bridge", ID: "net1", Driver: "bridge", Scope: "local"}}}, f.call("NetworkList", fl)
}
func (f *fake) NetworkInspect(_ context.Context, name, scope string, verbose bool) (*network.Inspect, error) {
	return &network.Inspect{Network: network.Network{Name: name, ID: "net1"}, Status: &network.Status{}}, f.call("NetworkInspect", name, scope, verbose)
}
func (f *fake) NetworkRemove(_ context.Context, name string) error {
	return f.call("NetworkRemove", name)
}
func (f *fake) NetworkPrune(_ context.Context, fl api.Filters) (*network.PruneReport, error) {
	return &network.PruneReport{}, f.call("NetworkPrune", fl)
}
func (f *fake) NetworkConnect(_ context.Context, name string, r *network.ConnectRequest) error {
	return f.call("NetworkConnect", name, r.Container)
}
func (f *fake) NetworkDisconnect(_ context.Context, name string, r *network.DisconnectRequest) error {
	return f.call("NetworkDisconnect", name, r.Container, r.Force)
}

func (f *fake) SwarmInit(_ context.Context, r *swarm.InitRequest) (string, error) {
	return nodeID, f.call("SwarmInit", r.AdvertiseAddr)
}
func (f *fake) SwarmJoin(_ context.Context, r *swarm.JoinRequest) error {
	return f.call("SwarmJoin", r.RemoteAddrs)
}
func (f *fake) SwarmLeave(_ context.Context, force bool) error { return f.call("SwarmLeave", force) }
func (f *fake) SwarmInspect(context.Context) (*swarm.Swarm, error) {
	return &swarm.Swarm{ClusterInfo: swarm.ClusterInfo{ID: "c1"}, JoinTokens: swarm.JoinTokens{Worker: "SWMTKN-1-w", Manager: "SWMTKN-1-m"}}, f.call("SwarmInspect")
}
func (f *fake) SwarmUpdate(_ context.Context, v uint64, _ *swarm.Spec, fl SwarmUpdateFlags) error {
	return f.call("SwarmUpdate", v, fl)
}
func (f *fake) SwarmUnlockKey(context.Context) (string, error) {
	return "SWMKEY-1-x", f.call("SwarmUnlockKey")
}
func (f *fake) SwarmUnlock(_ context.Context, key string) error { return f.call("SwarmUnlock", key) }

func (f *fake) node() swarm.Node {
	return swarm.Node{
		ID:            nodeID,
		Spec:          swarm.NodeSpec{Role: swarm.NodeRoleManager, Availability: swarm.NodeAvailabilityActive},
		Description:   swarm.NodeDescription{Hostname: "host1", Engine: swarm.EngineDescription{EngineVersion: "1.2.3"}},
		Status:        swarm.NodeStatus{State: swarm.NodeStateReady, Addr: "127.0.0.1"},
		ManagerStatus: &swarm.ManagerStatus{Leader: true, Reachability: swarm.ReachabilityReachable, Addr: "127.0.0.1:2377"},
	}
}

func (f *fake) NodeList(_ context.Context, fl api.Filters) ([]swarm.Node, error) {
	return []swarm.Node{f.node()}, f.call("NodeList", fl)
}
func (f *fake) NodeInspect(_ context.Context, name string) (*swarm.Node, error) {
	if err := f.call("NodeInspect", name); err != nil {
		return nil, err
	}
	n := f.node()
	return &n, f.find("no such node", name, nodeID, "self", "host1")
}
func (f *fake) NodeUpdate(_ context.Context, id string, v uint64, s *swarm.NodeSpec) error {
	return f.call("NodeUpdate", id, v, s.Availability)
}
func (f *fake) NodeRemove(_ context.Context, name string, force bool) error {
	return f.call("NodeRemove", name, force)
}

func testService() swarm.Service {
	three, swap := uint64(3), int64(5)
	return swarm.Service{
		ID: svcID, Meta: swarm.Meta{Version: swarm.Version{Index: 11}, CreatedAt: time.Unix(1, 0).UTC(), UpdatedAt: time.Unix(2, 0).UTC()},
		Spec: swarm.ServiceSpec{
			Annotations:  swarm.Annotations{Name: "web", Labels: map[string]string{"team": "a"}},
			Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &three}},
			TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "app:1", Args: []string{"sleep"}}, Resources: &swarm.ResourceRequirements{SwapBytes: &swap}},
		},
		ServiceStatus: &swarm.ServiceStatus{RunningTasks: 3, DesiredTasks: 3},
	}
}

func (f *fake) ServiceList(_ context.Context, fl api.Filters, status bool) ([]swarm.Service, error) {
	if f.services != nil {
		return f.services, nil
	}
	return []swarm.Service{testService()}, f.call("ServiceList", fl, status)
}
func (f *fake) ServiceInspect(_ context.Context, name string, defaults bool) (*swarm.Service, error) {
	if err := f.call("ServiceInspect", name, defaults); err != nil {
		return nil, err
	}
	s := testService()
	return &s, f.find("no such service", name, svcID, "web")
}
func (f *fake) ServiceCreate(_ context.Context, s *swarm.ServiceSpec, o ServiceOptions) (*swarm.ServiceCreateResponse, error) {
	return &swarm.ServiceCreateResponse{ID: svcID}, f.call("ServiceCreate", s.Name, s.TaskTemplate.ContainerSpec, o)
}
func (f *fake) ServiceUpdate(_ context.Context, name string, v uint64, s *swarm.ServiceSpec, o ServiceOptions) (*swarm.ServiceUpdateResponse, error) {
	return &swarm.ServiceUpdateResponse{}, f.call("ServiceUpdate", name, v, s.Name, o)
}
func (f *fake) ServiceRemove(_ context.Context, name string) error {
	return f.call("ServiceRemove", name)
}
func (f *fake) ServiceHistory(_ context.Context, name string) ([]api.VersionInfo, error) {
	return []api.VersionInfo{{Number: 2, Current: true, Image: "app:2", Changes: []string{"image"}}, {Number: 1, Image: "app:1"}}, f.call("ServiceHistory", name)
}
func (f *fake) ServiceRollback(_ context.Context, name string, to uint64) error {
	return f.call("ServiceRollback", name, to)
}
func (f *fake) ServicePromote(_ context.Context, name string) error {
	return f.call("ServicePromote", name)
}
func (f *fake) ServicePlan(_ context.Context, name string, s *swarm.ServiceSpec) (*api.ServicePlan, error) {
	return &api.ServicePlan{Name: s.Name}, f.call("ServicePlan", name, s.Name)
}
func (f *fake) ServiceLogs(_ context.Context, name string, o engine.LogsOptions, fn func(TaskLog) error) (bool, error) {
	if err := f.call("ServiceLogs", name, o.Tail); err != nil {
		return false, err
	}
	for _, m := range logLines() {
		if err := fn(TaskLog{LogMessage: m, NodeID: nodeID, ServiceID: svcID, TaskID: taskID}); err != nil {
			return false, err
		}
	}
	return false, nil
}

func testTask() swarm.Task {
	return swarm.Task{
		ID: taskID, ServiceID: svcID, NodeID: nodeID, Slot: 1, DesiredState: swarm.TaskStateRunning,
		Spec:   testService().Spec.TaskTemplate,
		Status: swarm.TaskStatus{State: swarm.TaskStateRunning, Timestamp: time.Now().Add(-time.Minute), ContainerStatus: &swarm.ContainerStatus{ContainerID: webID, PID: 77}},
	}
}

func (f *fake) TaskList(_ context.Context, fl api.Filters) ([]swarm.Task, error) {
	if f.extra != nil {
		return f.extra, nil
	}
	return []swarm.Task{testTask()}, f.call("TaskList", fl)
}
func (f *fake) TaskInspect(_ context.Context, id string) (*swarm.Task, error) {
	if err := f.call("TaskInspect", id); err != nil {
		return nil, err
	}
	t := testTask()
	return &t, f.find("no such task", id, taskID)
}
func (f *fake) TaskLogs(ctx context.Context, id string, o engine.LogsOptions, fn func(TaskLog) error) (bool, error) {
	return f.ServiceLogs(ctx, id, o, fn)
}

func (f *fake) SecretList(_ context.Context, fl api.Filters) ([]swarm.Secret, error) {
	return []swarm.Secret{{ID: "sec1", Spec: swarm.SecretSpec{Data: []byte("hidden")}}}, f.call("SecretList", fl)
}
func (f *fake) SecretInspect(_ context.Context, name string) (*swarm.Secret, error) {
	return &swarm.Secret{ID: "sec1", Spec: swarm.SecretSpec{Data: []byte("hidden")}}, f.call("SecretInspect", name)
}
func (f *fake) SecretCreate(_ context.Context, s *swarm.SecretSpec) (string, error) {
	return "sec1", f.call("SecretCreate", s.Name, len(s.Data))
}
func (f *fake) SecretUpdate(_ context.Context, name string, v uint64, _ *swarm.SecretSpec) error {
	return f.call("SecretUpdate", name, v)
}
func (f *fake) SecretRemove(_ context.Context, name string) error {
	return f.call("SecretRemove", name)
}
func (f *fake) ConfigList(_ context.Context, fl api.Filters) ([]swarm.Config, error) {
	return nil, f.call("ConfigList", fl)
}
func (f *fake) ConfigInspect(_ context.Context, name string) (*swarm.Config, error) {
	return &swarm.Config{ID: "cfg1", Spec: swarm.ConfigSpec{Data: []byte("seen")}}, f.call("ConfigInspect", name)
}
func (f *fake) ConfigCreate(_ context.Context, s *swarm.ConfigSpec) (string, error) {
	return "cfg1", f.call("ConfigCreate", s.Name)
}
func (f *fake) ConfigUpdate(_ context.Context, name string, v uint64, _ *swarm.ConfigSpec) error {
	return f.call("ConfigUpdate", name, v)
}
func (f *fake) ConfigRemove(_ context.Context, name string) error {
	return f.call("ConfigRemove", name)
}
