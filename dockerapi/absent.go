package dockerapi

import (
	"net/http"

	"github.com/moby/moby/api/types/build"

	"github.com/legion-swarm/legion/api"
)

// absentRoutes are the routes of the API reference that are not served. They
// say so, rather than 404, so that users know it is not their mistake.
func absentRoutes() []route {
	var all []route
	for _, a := range []struct{ tag, operation, spec, what string }{
		{"Container", "ContainerAttachWebsocket", "GET /containers/{name}/attach/ws", "attaching over a web socket is not served: use POST /containers/{id}/attach"},
		{"Checkpoint", "CheckpointList", "GET /containers/{name}/checkpoints", "checkpoints are not served"},
		{"Checkpoint", "CheckpointCreate", "POST /containers/{name}/checkpoints", "checkpoints are not served"},
		{"Checkpoint", "CheckpointDelete", "DELETE /containers/{name}/checkpoints/{name}", "checkpoints are not served"},
		{"Image", "ImageBuild", "POST /build", "building images is not served: build them with docker or buildctl elsewhere and pull or load them"},
		{"Image", "BuildCancel", "POST /build/cancel", "building images is not served"},
		{"Image", "ImageSearch", "GET /images/search", "searching registries is not served: use the registry's own web site"},
		{"Image", "ImageAttestations", "GET /images/{name...}/attestations", "attestations of images are not served"},
		{"Session", "Session", "POST /session", "sessions are not served: building images is not"},
		{"Session", "Grpc", "POST /grpc", "gRPC over the API is not served: building images is not"},
		{"Volume", "VolumeUpdate", "PUT /volumes/{name}", "cluster volumes are not served, and volumes of a node can't be changed"},
		{"Plugin", "GetPluginPrivileges", "GET /plugins/privileges", "plugins are not served"},
		{"Plugin", "PluginPull", "POST /plugins/pull", "plugins are not served"},
		{"Plugin", "PluginCreate", "POST /plugins/create", "plugins are not served"},
	} {
		all = append(all, newRoute(a.tag, a.operation, a.spec, func(*call) error {
			return api.Errorf(api.Unimplemented, "%s", a.what)
		}))
	}
	for i := range all {
		if all[i].Operation == "ImageAttestations" {
			all[i].Since = 55
		}
	}
	// Tools list plugins to see which drivers there are: none but the built-in ones.
	none := func(c *call) error { return listOf[struct{}](c, nil, nil) }
	all = append(all, newRoute("Plugin", "PluginList", "GET /plugins", none))
	// docker inspect asks for a plugin last, and takes only 404 for an answer.
	noPlugin := func(c *call) error { return api.Errorf(api.NotFound, "plugin %q not found", c.name) }
	for _, a := range []struct{ operation, spec string }{
		{"PluginInspect", "GET /plugins/{name...}/json"},
		{"PluginDelete", "DELETE /plugins/{name...}"},
		{"PluginEnable", "POST /plugins/{name...}/enable"},
		{"PluginDisable", "POST /plugins/{name...}/disable"},
		{"PluginUpgrade", "POST /plugins/{name...}/upgrade"},
		{"PluginPush", "POST /plugins/{name...}/push"},
		{"PluginSet", "POST /plugins/{name...}/set"},
	} {
		all = append(all, newRoute("Plugin", a.operation, a.spec, noPlugin))
	}
	// docker system prune includes it.
	noCache := func(c *call) error {
		return c.json(http.StatusOK, &build.CachePruneReport{CachesDeleted: []string{}})
	}
	return append(all, newRoute("Image", "BuildPrune", "POST /build/prune", noCache))
}
