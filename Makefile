# `make demo` and `make test` are all that a newcomer needs; each sets up what it needs in .venv.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
CONFIG ?=
ARGS ?=
IMAGE ?= tidegauge
BASE ?= python:3.13-slim
CPU ?= generic

.PHONY: help demo run test check e2e tools bench soak fuzz gpu-record image sizes sbom lock clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(READY) ## a real model server beside the agent; ARGS="--seconds 40" ends by itself
	$(BIN)/python examples/demo/run.py $(ARGS)

run: $(READY) ## the agent; CONFIG=FILE for a configuration
	$(BIN)/tidegauge run $(if $(CONFIG),--config $(CONFIG))

test: $(READY) ## the tests that need PyPI alone
	$(BIN)/pytest -m "not e2e" $(ARGS)

check: $(READY) ## lint, format, types, and known vulnerabilities where there is a network
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/audit.py

e2e: $(READY) tools ## the tests with a real Prometheus and OpenTelemetry Collector
	$(BIN)/pytest -m e2e $(ARGS)

tools: ## fetch or build what e2e talks to, into a cache outside this folder
	$(PYTHON) tests/e2e/tools.py

bench: $(READY) ## figures beside peers, in one run; ARGS=--quick for a short one
	$(BIN)/python -m bench $(ARGS)

soak: $(READY) ## rising load up to twice what the agent can take; ARGS="--minutes N", 3 by default
	$(BIN)/python -m bench.soak $(ARGS)

fuzz: $(READY) ## fuzz the readers of OTLP, guided by coverage; ARGS="traces --runs 1000000" for more of one
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[fuzz]"
	$(BIN)/python tests/fuzz/run.py $(ARGS)

gpu-record: $(READY) ## record what NVML answers here, and compare with nvidia-smi; OUT=FILE
	$(BIN)/tidegauge gpu record -o $(or $(OUT),gpu-recording.json) $(ARGS)

image: ## the container image; BASE=IMAGE for another Python base, CPU=x86-64-v2 for newer CPUs alone
	docker build --build-arg BASE=$(BASE) --build-arg CPU=$(CPU) -t $(IMAGE) \
		--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null) \
		--build-arg CREATED=$$(date -u +%Y-%m-%dT%H:%M:%SZ) .

sizes: ## the image's parts, in megabytes
	@$(call inside,sizes.txt)

sbom: ## the image's bill of materials, SPDX as JSON
	@$(call inside,sbom.spdx.json)

inside = docker run --rm --network none --read-only --entrypoint python $(IMAGE) \
	-ISc "print(open('/opt/tidegauge/$(1)').read(), end='')"

# Without fuzz: few machines have a wheel of atheris, and `make fuzz` fetches it.
lock: $(READY) ## renew the locks from pyproject.toml (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		pyproject.toml -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--extra build --extra check --extra demo --extra test \
		-c requirements.lock pyproject.toml -o requirements-dev.lock

clean: ## forget the virtual environment and the caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(READY): requirements-dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.13 with venv was found; set PYTHON=..." >&2; exit 1; }
	@echo "setting up $(VENV): a minute or two"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
