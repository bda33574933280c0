// Package templates fills in what services, secrets and configs say in Go's
// template language about the task that they come to: {{.Service.Name}},
// {{.Node.Hostname}}, {{.Task.Slot}}. It is pure, and bounded: no template takes
// more than a limited number of steps or makes more than a limited amount of text,
// whatever it says. Managers check with it what nodes expand with it.
package templates
