package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/moby/moby/client"
)

// maxAnswer bounds what is read of an answer.
const maxAnswer = 64 << 20

// extension calls a route that only Legion has, over the client's connection. in
// is the body if it is not nil; the answer is read into out if that is not nil.
func extension(ctx context.Context, c client.APIClient, method, path string, query url.Values, in, out any) error {
	var body io.Reader = http.NoBody
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	u := url.URL{Scheme: "http", Host: "legion", Path: path, RawQuery: query.Encode()}
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return err
	}
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	dial := c.Dialer()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}
	answer, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return err
	}
	if answer.StatusCode >= http.StatusBadRequest {
		return refusal(answer.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the daemon's answer can't be read: %w", err)
	}
	return nil
}

// refusal is the daemon's error.
func refusal(status int, body []byte) error {
	var m struct{ Message string }
	switch {
	case json.Unmarshal(body, &m) != nil || m.Message == "":
		return fmt.Errorf("the daemon answered %s", http.StatusText(status))
	case m.Message == "page not found":
		return fmt.Errorf("the daemon does not know this command: is it Legion, and of this version?")
	}
	return fmt.Errorf("Error response from daemon: %s", m.Message) //nolint:staticcheck // as Docker's client has it
}
