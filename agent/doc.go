// Package agent runs on every node what the managers assign to it: it keeps a
// session with one of them, hands assignments to task runners, and reports back
// until it is heard.
//
// What it runs depends on no manager: tasks live on while none answers, and
// after a restart of the daemon they are taken up again from disk before any
// session is there. Ending the agent ends no task.
package agent
