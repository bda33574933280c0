// Package ssh is the driver of machines that are there already: hosts reached
// by ssh, on which it installs this program and runs its daemon, as a systemd
// unit where there is systemd. It runs the ssh command of this computer, so the
// user's agent and configuration count. See design/machine.md.
package ssh
