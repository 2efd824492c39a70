# Everything that is typed here. `make help` lists it.

CARGO ?= cargo
# Tests of the testbed wait more than they compute.
export RUST_TEST_THREADS ?= 8
CACHE := $(or $(LICTOR_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lictor)
TARGET := $(or $(CARGO_TARGET_DIR),target)
DENY_VERSION := 0.20.2
DENY := $(CACHE)/tools/cargo-deny-$(DENY_VERSION)/bin/cargo-deny
MDBOOK_VERSION := 0.5.4
MDBOOK := $(CACHE)/tools/mdbook-$(MDBOOK_VERSION)/bin/mdbook
CYCLONEDX_VERSION := 0.5.9
CYCLONEDX := $(CACHE)/tools/cargo-cyclonedx-$(CYCLONEDX_VERSION)/bin/cargo-cyclonedx

# Of all that is released.
VERSION := $(shell awk -F '"' '/^version = / { print $$2; exit }' Cargo.toml)
REVISION = $(shell git describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null || echo unknown)
DOCKER ?= docker
IMAGE ?= lictor:$(VERSION)

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-oldest bench e2e lint fmt doc book deny advisories crd reference build image chart sbom version clean-cache

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Watch it work: a real Kubernetes, a real Consul, the operator (DEMO_ONCE=1 ends by itself)
	@$(CARGO) build --locked --release --package lictor --package lictor-demo
	@$(TARGET)/release/demo $(TARGET)/release/lictor

test: ## All that a change must pass
	@tests/run

test-long: ## What takes longer: 100,000 seeds of the simulation, 10,000 random resources, 20 kills of a leader, 10 of each fault of three Consul servers, an hour of logins, old versions
	@LICTOR_SEEDS=$${LICTOR_SEEDS:-100000} tests/run --profile sim --test simulation -- --nocapture
	@LICTOR_FUZZ_RESOURCES=$${LICTOR_FUZZ_RESOURCES:-10000} LICTOR_KILLS=$${LICTOR_KILLS:-20} \
		LICTOR_ENDPOINTS=$${LICTOR_ENDPOINTS:-600} LICTOR_LOGIN_MINUTES=$${LICTOR_LOGIN_MINUTES:-60} LICTOR_SERVER_FAULTS=$${LICTOR_SERVER_FAULTS:-10} \
		LICTOR_IMAGE_FROM=source tests/run --test fuzz_resources --test e2e --test cluster
	@$(MAKE) --no-print-directory test-oldest

test-oldest: ## The tests end to end on the oldest Kubernetes and Consul that are supported
	@LICTOR_TEST_KUBERNETES=1.31 LICTOR_TEST_CONSUL=1.20 tests/run --test e2e --test cluster

bench: ## Measure it on real servers: BENCH="flips --rate 200" for one thing, BASE=REV beside that build and not beside the least program
	@BASE="$(BASE)" bench/run $(BENCH)

e2e: ## Lictor in pods, on nodes within this machine or the cluster of KUBECONFIG (REQUIRE_E2E=1: or fail)
	@E2E_ON_KUBECONFIG=1 tests/run --test cluster

lint: ## Formatting, lints, documentation, licences and sources, the book
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --workspace --no-deps --locked --quiet
	@$(MAKE) --no-print-directory deny book

fmt: ## Format the code
	$(CARGO) fmt --all

doc: ## Build the documentation of the code
	$(CARGO) doc --workspace --no-deps

book: $(MDBOOK) ## Build docs/ as a book: target/book/index.html. A warning is an error
	@said=$$($(MDBOOK) build --dest-dir $(abspath $(TARGET)/book) 2>&1) || failed=1; \
	if [ -n "$$failed" ] || printf '%s\n' "$$said" | grep -qE '^ *(WARN|ERROR)'; then printf '%s\n' "$$said" >&2; exit 1; fi

deny: $(DENY) ## Check licences, bans and sources of all crates
	$(DENY) --all-features check licenses bans sources

advisories: $(DENY) ## Check all crates against the RustSec advisories, which are fetched anew
	$(DENY) --all-features check advisories

$(DENY):
	$(CARGO) install --quiet --locked --root $(CACHE)/tools/cargo-deny-$(DENY_VERSION) --version $(DENY_VERSION) cargo-deny

$(CYCLONEDX):
	$(CARGO) install --quiet --locked --root $(CACHE)/tools/cargo-cyclonedx-$(CYCLONEDX_VERSION) --version $(CYCLONEDX_VERSION) cargo-cyclonedx

$(MDBOOK):
	$(CARGO) install --quiet --locked --root $(CACHE)/tools/mdbook-$(MDBOOK_VERSION) --version $(MDBOOK_VERSION) \
		--no-default-features --features search mdbook

crd: ## Write crds/ anew from the code
	LICTOR_UPDATE=1 $(CARGO) test --quiet --lib crd

reference: ## Write docs/ anew where it is generated from the CRD, a real API server's answers, the end-to-end tests and the readers
	LICTOR_UPDATE=1 $(CARGO) test --quiet --test resource -- the_reference_is what_is_refused_is the_page_of
	LICTOR_UPDATE=1 $(CARGO) test --quiet --test e2e -- the_page_is_current the_table_is_current
	LICTOR_UPDATE=1 $(CARGO) test --quiet --test readers

build: ## Build the operator: target/release/lictor
	$(CARGO) build --release --package lictor

image: ## Build the image IMAGE (lictor:VERSION) with DOCKER, with or without BuildKit; DOCKER_FLAGS for more
	$(DOCKER) build --tag $(IMAGE) --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) $(DOCKER_FLAGS) .

# `helm` on PATH, or else the one of the tests. A release gives the digest of the image, which the chart then runs.
chart: ## Package the Helm chart: target/chart/lictor-VERSION.tgz; DIGEST=sha256:… binds it to that image
	@rm -rf $(TARGET)/chart && mkdir -p $(TARGET)/chart && cp -R charts/lictor $(TARGET)/chart/lictor
	@sed 's|^\(  lictor.dev/image-digest:\) ""$$|\1 "$(DIGEST)"|' charts/lictor/Chart.yaml > $(TARGET)/chart/lictor/Chart.yaml
	@helm=$$(command -v helm || $(CARGO) run --quiet --locked --package lictor-testbed --bin testbed -- tool helm) \
		&& "$$helm" package $(TARGET)/chart/lictor --destination $(TARGET)/chart

# Of the commit's time, so that one commit has one list; without the folder in which it was made. The program writes
# beside the Cargo.toml of each package.
sbom: $(CYCLONEDX) ## List what the program is made of, as CycloneDX: target/lictor.cdx.json
	@mkdir -p $(TARGET)
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(CYCLONEDX) cyclonedx --quiet --format json --spec-version 1.5 \
		--describe binaries --no-build-deps
	@sed 's|path+file://$(CURDIR)#|pkg:cargo/|' lictor_bin.cdx.json > $(TARGET)/lictor.cdx.json
	@rm -f lictor_bin.cdx.json bench/*_bin.cdx.json demo/*_bin.cdx.json tests/testbed/*_bin.cdx.json

version: ## Print the version that is in Cargo.toml
	@echo $(VERSION)

clean-cache: ## Remove the programs of the testbed and the tools that were built
	rm -rf $(CACHE)
