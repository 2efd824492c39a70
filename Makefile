# Everything that is typed here. `make help` lists it.

CARGO ?= cargo
# Tests of the testbed wait more than they compute.
export RUST_TEST_THREADS ?= 8
CACHE := $(or $(LICTOR_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lictor)
TARGET := $(or $(CARGO_TARGET_DIR),target)
DENY_VERSION := 0.20.2
DENY := $(CACHE)/tools/cargo-deny-$(DENY_VERSION)/bin/cargo-deny

.DEFAULT_GOAL := help
.PHONY: help demo test test-long lint fmt doc deny crd build clean-cache

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Watch it work: a real Kubernetes, a real Consul, the operator (DEMO_ONCE=1 ends by itself)
	@$(CARGO) build --locked --release --package lictor --package lictor-testbed
	@$(TARGET)/release/demo $(TARGET)/release/lictor

test: ## All that a change must pass
	@tests/run

test-long: ## What takes longer: 50,000 seeds of the simulation (LICTOR_SEEDS=N for others)
	@LICTOR_SEEDS=$${LICTOR_SEEDS:-50000} tests/run --test simulation

lint: ## Formatting, lints, documentation, licences and sources
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --workspace --no-deps --locked --quiet
	@$(MAKE) --no-print-directory deny

fmt: ## Format the code
	$(CARGO) fmt --all

doc: ## Build the documentation of the code
	$(CARGO) doc --workspace --no-deps

deny: $(DENY) ## Check licences, bans and sources of all crates
	$(DENY) --all-features check licenses bans sources

$(DENY):
	$(CARGO) install --quiet --locked --root $(CACHE)/tools/cargo-deny-$(DENY_VERSION) --version $(DENY_VERSION) cargo-deny

crd: ## Write crds/ anew from the code
	LICTOR_UPDATE=1 $(CARGO) test --quiet --lib crd

build: ## Build the operator: target/release/lictor
	$(CARGO) build --release --package lictor

clean-cache: ## Remove the programs of the testbed and the tools that were built
	rm -rf $(CACHE)
