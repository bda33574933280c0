package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// grace is how long requests under way may take to finish when Serve ends.
const grace = 5 * time.Second

// Serve answers requests on the listeners until ctx ends or one of them fails,
// and closes them all. At the end streaming answers (logs, events, attach …)
// are cut at once and other requests get some seconds to finish. It returns
// nil when ctx ended. To be called once.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    1 << 20,
		ErrorLog:          slog.NewLogLogger(s.Logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return base },
	}
	g, serving := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve the API on %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	g.Go(func() error {
		<-serving.Done()
		s.stopStreams()
		end, stop := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer stop()
		if err := srv.Shutdown(end); err != nil {
			s.Logger.Warn("api requests cut at the end", "error", err)
			cancel()
			_ = srv.Close() // the listeners are closed already
		}
		s.waitHijacked()
		return nil
	})
	return g.Wait()
}

// waitHijacked waits for attachments to end, which they do when their streams
// are stopped; not for ever, should a backend not heed that.
func (s *Server) waitHijacked() {
	done := make(chan struct{})
	go func() {
		s.hijacks.Wait()
		close(done)
	}()
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		s.Logger.Warn("an attached stream does not end; leaving it")
	}
}
