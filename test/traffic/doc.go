// Package traffic loads servers and says what became of it: requests over short
// and kept connections, datagrams, names, streams; every failure with its reason
// and time. It retries nothing, so that what fails is seen. The other end is
// demo/web or Serve. It knows nothing of Legion.
package traffic
