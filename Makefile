# What a developer types. Each target does its own set-up and may be run twice. CI (.ci/run) is `make lint test bench`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
CARGO ?= cargo
CACHE := $(or $(WALDEN_CACHE_DIR),$(CURDIR)/.cache)
# Where the libraries' own tests find servers and the object store.
export WALDEN_TEST_PG_DIR := $(CACHE)/pg
export WALDEN_TEST_WEED := $(CACHE)/bin/weed

.PHONY: help setup demo test fast lint bench soak

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## /{ printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Fetch PostgreSQL 14-18, SeaweedFS, age, lz4 and Chromium for the tests
	scripts/setup test

demo: ## Lose a table, get it back: a throwaway cluster under the checkout, under a minute
	scripts/setup demo
	$(CARGO) build --quiet --bin walden
	scripts/demo

test: setup ## All tests: unit, property, doctests, tidy, integration with real servers
	$(CARGO) test --workspace --no-fail-fast

fast: ## Unit and property tests only, no servers
	$(CARGO) test --workspace --lib --bins --test tidy

soak: setup ## What `make test` does a little of, for longer: ROUNDS=20 or MINUTES=60, SEED= to do one again, PART= of the names
	scripts/soak

lint: ## Formatting, clippy and documentation, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	# The ban on stray file mutation (clippy.toml) is for what ships; tests may write where they like.
	$(CARGO) clippy --workspace --lib --bins -- -D warnings -D clippy::disallowed_methods
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items

bench: ## Short benchmarks, as figures and as ratios to the bare libraries
	scripts/setup test
	scripts/sample-wal
	WALDEN_CACHE_DIR=$(CACHE) $(CARGO) bench --workspace --bench seal --bench wal_scan --bench log --bench window --bench commit_latency
