# flypg. `make up` needs nothing but Python 3.11+ and, to install what is missing, apt.

PYTHON := .venv/bin/python
FLYPG := .venv/bin/flypg
SEEDS ?= 20000
RUNS ?= $(or $(BENCH_RUNS),5)
NODES ?= 3

.DEFAULT_GOAL := help
.PHONY: help up status drill down test check unit simulation integration e2e bench bench-peers bench-backups bench-containers bench-outage soak lint format lock image sbom wheel wheels clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/.ready: requirements.lock scripts/bootstrap
	@scripts/bootstrap

.venv/.ready-dev: requirements.lock requirements-dev.lock scripts/bootstrap
	@scripts/bootstrap --dev

up: .venv/.ready  ## start a cluster of three nodes on this machine, and wait until it is healthy
	@$(FLYPG) local up --nodes $(NODES)

status: .venv/.ready  ## how it is
	@$(FLYPG) status

drill: .venv/.ready  ## kill the primary under a write load: outage, phases, lost writes
	@$(FLYPG) drill run kill-postgres --local $(ARGS)

down: .venv/.ready  ## stop it; the data stays (make down ARGS=--destroy removes it)
	@$(FLYPG) local down $(ARGS)

test: .venv/.ready-dev  ## everything: style, types, unit tests, simulation, real PostgreSQL and etcd
	@scripts/test

lint: .venv/.ready-dev  ## style and types
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

format: .venv/.ready-dev  ## lay the code out
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

unit: .venv/.ready-dev  ## unit tests only
	@$(PYTHON) -m pytest tests/unit -q

simulation: .venv/.ready-dev  ## simulation only
	@$(PYTHON) -m pytest tests/simulation -q

integration: .venv/.ready-dev  ## tests with real servers only
	@$(PYTHON) -m pytest tests/integration -q -n 2

e2e: .venv/.ready-dev  ## the containers for real: builds the images, needs Docker, takes many minutes
	@FLYPG_E2E=$(or $(FLYPG_E2E),1) $(PYTHON) -m pytest tests/e2e/test_compose.py -q -s

soak: .venv/.ready-dev  ## simulate SEEDS=… runs
	@$(PYTHON) -m tests.simulation.soak --seeds $(SEEDS)

bench: .venv/.ready-dev  ## measure every fault RUNS=… times, and checks and scrapes
	@$(FLYPG) drill bench --runs $(RUNS)
	@$(PYTHON) -m benchmarks.http

bench-backups: .venv/.ready-dev  ## snapshots, restores and WAL beside pg_basebackup and pgBackRest, 2 GB (needs radosgw, pgbackrest; ARGS=--scale=20)
	@$(PYTHON) -m benchmarks.backups $(ARGS)

bench-containers: .venv/.ready-dev  ## the compose cluster: up, kill, stop, pause, and ten minutes of load on 256 MB nodes (needs Docker; RUNS=…)
	@$(PYTHON) -m benchmarks.containers --runs $(RUNS) --pause 60 --pgbench 600 $(ARGS)

bench-outage: .venv/.ready-dev  ## an hour without the repository of backups, at full write load (needs radosgw; MINUTES=60)
	@$(PYTHON) -m benchmarks.outage --minutes $(or $(MINUTES),60) $(ARGS)

PROFILES ?= quorum async
PEERS = --runs $(or $(BENCH_RUNS),1) --profiles $(PROFILES) $(if $(ONLY),--only $(ONLY))

bench-peers: .venv/.ready-dev  ## flypg beside Patroni, each fault BENCH_RUNS=1 times; fills docs/comparison.md (needs root; ONLY=…, PROFILES=…)
	@mkdir -p build
	@PATRONI=$$(scripts/peers) $(PYTHON) -m benchmarks.peers $(PEERS) --output build/peers.json --page docs/comparison.md

lock: .venv/.ready-dev  ## pin the newest versions that pyproject.toml allows
	@scripts/lock

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= flypg

image:  ## build the images: node, etcd member, drill (IMAGE=flypg, BUILD="--build-arg PG_MAJOR=17 --build-arg PGDG=1")
	docker build -f images/Dockerfile --target node -t $(IMAGE):latest $(BUILD) .
	docker build -f images/Dockerfile --target node -t $(IMAGE):$(VERSION) -t $(IMAGE):latest \
	  --build-arg PG_VERSION=$$(docker run --rm --network none --entrypoint postgres $(IMAGE) --version | sed 's/[^0-9]*\([0-9.]*\).*/\1/') \
	  $(BUILD) .
	docker build -f images/Dockerfile --target etcd -t $(IMAGE)-etcd:latest $(BUILD) .
	docker build -f images/Dockerfile --target drill -t $(IMAGE)-drill:latest $(BUILD) .

wheel: .venv/.ready-dev  ## build dist/flypg-VERSION-py3-none-any.whl
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip >/dev/null
	@$(PYTHON) -m pip wheel -q --no-deps -w dist .
	@ls dist/flypg-$(VERSION)-*.whl

sbom:  ## print the bill of materials of the image (CycloneDX; IMAGE=flypg)
	@docker run --rm --network none --entrypoint cat $(IMAGE) /usr/share/flypg/sbom.json

# FOR=3.13: also those of another Python than this one, for a base image that has it
wheels: wheels/.ready$(FOR)  ## put the packages of requirements.lock into wheels/, for image builds that reach no index (FOR=3.13)

wheels/.ready: requirements.lock | .venv/.ready-dev
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip >/dev/null
	@rm -rf wheels
	@$(PYTHON) -m pip wheel -q --no-deps -r requirements.lock -w wheels
	@touch $@

wheels/.ready%: wheels/.ready
	@$(PYTHON) -m pip download -q --no-deps --only-binary=:all: --python-version $* --find-links wheels -r requirements.lock -d wheels
	@touch $@

clean:  ## remove what builds and tests leave behind (not a cluster's data)
	@rm -rf .venv build dist wheels *.egg-info .mypy_cache .ruff_cache .pytest_cache
