# Everything that a person does with this repository. `make help` lists it.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test check bench load docs stop-engines

# Build output lives outside the work tree, so that every clone on a machine shares the compiled libraries.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kontorion/target

# Arguments passed on, for example: make demo ARGS=--once
ARGS ?=

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Install what is missing, build, run a month of usage to checked bills (ARGS=--once stops at the end)
	@dev/setup.sh demo
	@cargo build --package server
	@"$$CARGO_TARGET_DIR/debug/kontorion" demo $(ARGS)

test: ## Every test, with its own PostgreSQL, Kafka and ClickHouse (ARGS="-p ledger" for one crate)
	@dev/test.sh $(ARGS)

check: ## Formatting, lints, links of the documents; dependencies too where cargo-deny is installed
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	dev/check-docs.sh
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; \
	  else echo "cargo-deny is not installed: licences and sources of the dependencies were not checked"; fi

bench: ## Criterion benchmarks (ARGS="-- rating" for some)
	cargo bench --package benches $(ARGS)

load: ## Open-loop load with verified totals, release build (ARGS="--help" for its shapes)
	@dev/setup.sh
	@cargo build --quiet --release --package server --package loadtest
	@cargo run --quiet --release --package loadtest -- $(ARGS)

docs: ## Build the reference of the code, refusing broken links
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
	dev/check-docs.sh

stop-engines: ## Stop the engines that single tests left running
	@cargo run --quiet --package engines --bin dev-engines -- stop
