package dockerapi

import (
	"bytes"
	"encoding/json"
	"net/http"

	"github.com/legion-swarm/legion/api"
)

// chunk is how much of a long list is gathered before it is sent.
const chunk = 64 << 10

// buffer is a JSON encoder and its output, pooled.
type buffer struct {
	bytes.Buffer
	enc *json.Encoder
}

func newBuffer() any {
	b := new(buffer)
	b.enc = json.NewEncoder(&b.Buffer)
	b.enc.SetEscapeHTML(false)
	return b
}

func (s *Server) getBuffer() *buffer {
	b, _ := s.buffers.Get().(*buffer)
	return b
}

func (s *Server) putBuffer(b *buffer) {
	if b.Cap() > 4*chunk {
		return
	}
	b.Reset()
	s.buffers.Put(b)
}

// encode appends v as JSON and a newline.
func (b *buffer) encode(v any) error { return b.enc.Encode(v) }

// encodeOne appends v as JSON without a newline.
func (b *buffer) encodeOne(v any) error {
	if err := b.enc.Encode(v); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1)
	return nil
}

// list answers with a JSON array, [] for none, sent in chunks so that a long
// one is never whole in memory. one appends the i-th element's JSON.
func (c *call) list(n int, one func(b *buffer, i int) error) error {
	b := c.s.getBuffer()
	defer c.s.putBuffer(b)
	c.w.Header().Set("Content-Type", "application/json")
	b.WriteByte('[')
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := one(b, i); err != nil {
			return api.Errorf(api.Internal, "encode the answer: %w", err)
		}
		if b.Len() >= chunk {
			if c.w.status == 0 {
				c.w.WriteHeader(http.StatusOK)
			}
			if _, err := c.w.Write(b.Bytes()); err != nil {
				return err
			}
			b.Reset()
		}
	}
	b.WriteString("]\n")
	_, err := c.w.Write(b.Bytes())
	return err
}

// listOf answers with a slice, element by element.
func listOf[T any](c *call, all []T, err error) error {
	if err != nil {
		return err
	}
	return c.list(len(all), func(b *buffer, i int) error { return b.encodeOne(&all[i]) })
}

// answer answers with v, or passes the error on.
func answer[T any](c *call, status int, v T, err error) error {
	if err != nil {
		return err
	}
	return c.json(status, v)
}

// some gives an empty slice for nil: lists are [] in the API, never null.
func some[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// someMap gives an empty map for nil, as some does.
func someMap[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return m
}
