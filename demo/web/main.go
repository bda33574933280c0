// Command web is the demo's front end and the tests' service: a web server of
// one static file. It answers with its host's name, its version and the
// caller's address, and, if it is told of them, with how many visits redis has
// counted and what another web server says, which it finds by name. At /whoami
// it leaves those two out; at /health it says whether it takes requests. How it
// ends on SIGTERM: see drain.
//
// Environment: PORT (8080), VERSION, NAME and NODE (what else it says of
// itself), DELAY (a pause before each answer, as 100ms), REDIS (as redis:6379),
// PAGE (as http://nginx/). "web check" asks a running server for its health,
// for images that hold no other program.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const checkTimeout = 2 * time.Second

func main() {
	log.SetFlags(0)
	port := env("PORT", "8080")
	if len(os.Args) > 1 && os.Args[1] == "check" {
		if err := check("http://127.0.0.1:" + port + "/health"); err != nil {
			log.Fatal(err)
		}
		return
	}
	f, err := newFront()
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := f.serve(ctx, ":"+port); err != nil {
		log.Fatal(err)
	}
}

func env(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

func check(url string) error {
	c := http.Client{Timeout: checkTimeout}
	r, err := c.Get(url)
	if err != nil {
		return err
	}
	_ = r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("unhealthy: %s", r.Status)
	}
	return nil
}
