# `make up` runs Hustings, `make test` tests it; both do the set-up first when it is due.
# Arguments go in ARGS:  make up ARGS="--port 8001 --data-dir /srv/hustings"   make test ARGS="-k curator -x"
SHELL := /bin/bash
VENV ?= .venv
ARGS ?=
PY := "$(VENV)/bin/python"
# Two computing processes whose OpenMP threads spin at barriers slow each other down tenfold (docs/adr/0035).
export OMP_WAIT_POLICY ?= PASSIVE
export KMP_BLOCKTIME ?= 0
export GOMP_SPINCOUNT ?= 3000

.PHONY: help setup setup-dev up test test-fast test-slow check format bench clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## the environment for running (skipped in a second when nothing changed)
	@VENV="$(VENV)" deploy/setup/setup.sh run

setup-dev: ## the same with what tests, lint and types need
	@VENV="$(VENV)" deploy/setup/setup.sh test

up: setup ## serve, curate and train under one supervisor; Ctrl-C stops all
	@exec $(PY) -m deploy up $(ARGS)

test: setup-dev ## all tests, the fast ones first
	$(PY) -m pytest -p deploy.setup.fast_first $(ARGS)

test-fast: setup-dev ## the tests that need no engine, broker or trainer
	$(PY) -m pytest -m "not slow and not browser and not gpu" $(ARGS)

test-slow: setup-dev ## the others
	$(PY) -m pytest -m "slow or browser" $(ARGS)

check: setup-dev ## format, lint, strict types, import rules: what CI runs
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	"$(VENV)/bin/lint-imports"

format: setup-dev ## rewrite the sources to the house format
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: setup-dev ## the benchmarks; ARGS="peer" measures TRL beside us (an hour; installs it in the cache folder first)
	$(PY) -m benchmarks $(ARGS)

clean: ## forget the environment and caches; data folders stay
	rm -rf "$(VENV)" .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
