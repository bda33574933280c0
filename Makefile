# Legion. `make` builds bin/legion, `make up` shows it at work, `make test` proves it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := all
MAKEFLAGS += --no-print-directory

VERSION ?= $(shell git describe --tags --match 'v*' --dirty 2>/dev/null | sed 's/^v//' | grep . || echo 0.1.0-dev)
LDFLAGS := -s -w -X github.com/docker/cli/cli/version.Version=$(VERSION)
SEED    ?= $(shell date +%s)
MINUTES ?= 10
# About 200 simulated swarms a minute, on two cores.
SIM_SEEDS ?= $(shell echo $$(($(MINUTES) * 200)))

export PATH := $(CURDIR)/build/bin:$(PATH)

.PHONY: all deps bundle up down test check bench bench-scale soak fuzz generate clean

all: deps bundle ## bin/legion, with the programs that travel in it
	CGO_ENABLED=0 go build -buildvcs=auto -trimpath -tags bundle -ldflags '$(LDFLAGS)' -o bin/legion ./cmd/legion

deps:
	@scripts/install-deps

bundle:
	@scripts/build-bundle build/bundle

up: all ## a node, a swarm, the demo's services
	@scripts/up

down: ## removes every trace of the demo
	@scripts/down

test: all check ## static checks, unit and end-to-end tests; needs root, or SHORT=1
	@scripts/test

check: deps ## static checks
	@scripts/check

bench: all ## side by side with dockerd: the installed one, else Debian's
	@demo/build-images build/images web load
	@go build -o build/bench ./test/bench
	@CGO_ENABLED=0 go build -o build/load ./test/load
	@if command -v dockerd >/dev/null; then build/bench; else scripts/fetch-dockerd build/dockerd && \
		PATH=$$PATH:$(CURDIR)/build/dockerd/bin LD_LIBRARY_PATH=$(CURDIR)/build/dockerd/lib build/bench; fi

bench-scale: ## a million tasks on ten thousand simulated agents, through three managers: SCALE=-tenth for less
	@go build -o build/bin/scale ./test/scale
	@build/bin/scale $(SCALE)

soak: all ## random faults in a simulated swarm and on a real node: SEED=n MINUTES=m SIM_SEEDS=k
	@demo/build-images build/images web
	SIM_SEED=$(SEED) SIM_SEEDS=$(SIM_SEEDS) go test -count 1 -timeout $$(($(SIM_SEEDS) / 60 + 10))m ./sim
	SOAK_SEED=$(SEED) SOAK_MINUTES=$(MINUTES) go test -count 1 -timeout $$(($(MINUTES) * 2 + 30))m -v -run 'Soak$$' ./test

fuzz: ## every decoder, FUZZTIME each
	@scripts/fuzz

generate: ## code from swarmpb/proto, eBPF programs from network/linux/bpf
	@scripts/generate
	@scripts/build-bpf

clean: ## what was built here
	rm -rf bin build bundle/embedded
