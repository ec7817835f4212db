# Backend of Thrones. `make help` lists the targets; sizes and ports are environment variables (see `make help`).
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: docs schemas help setup up down reset demo load bench bench-quick bench-full test check chaos

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# What setup depends on: unchanged files, nothing to do.
PINS := $(shell cat requirements.lock pyproject.toml 2>/dev/null | sha256sum | cut -d' ' -f1)
ARGS ?=
THRONES := $(BIN)/thrones
WORKS := $(THRONES) --version >/dev/null 2>&1

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: API_WORKERS=2 ORDER_WORKERS=1 PAYMENT_WORKERS=1 BROKERS=1 PORT=8080 THRONES_STATE_DIR=.thrones"

setup: ## .venv with pinned dependencies and `thrones`, Kafka's jars; does nothing when done
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.x setup")'
	@if [ "$$(cat $(STAMP) 2>/dev/null)" != "$(PINS)" ]; then $(MAKE) --no-print-directory .venv-anew; fi
	@$(BIN)/thrones setup

.PHONY: .venv-anew
.venv-anew:
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { echo "python's venv module is needed (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "installing pinned dependencies into $(VENV)"
	@$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock || { \
	  echo "pip could not fetch the packages: check that this machine reaches the Python package index (a proxy: set https_proxy), then run make setup again"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@echo "$(PINS)" > $(STAMP)

up: setup ## Everything in the background; returns when ready
	@$(THRONES) up

down: ## Stop everything, keep the state
	@if $(WORKS); then $(THRONES) down; else echo "not set up, so nothing runs"; fi

reset: ## Stop everything, delete the state, keep downloads
	@if $(WORKS); then $(THRONES) reset; else rm -rf "$${THRONES_STATE_DIR:-.thrones}"; fi

demo: up ## A whole sale, the audit and a summary; exit 0 only when the books balance (ARGS=--down stops afterwards)
	@$(THRONES) demo $(ARGS)

SHAPE ?= reference

load: up ## A load test and its books: SHAPE=reference, spike, step, soak or sell-out (ARGS="--scale 0.2": in a fifth of the time)
	@$(BIN)/python -m bench.load $(SHAPE) $(ARGS)

bench: setup ## Every figure beside its goal, on a stack of its own, under 45 minutes; rewrites docs/performance.md and docs/capacity.md
	@$(BIN)/python -m bench.performance run bench

bench-quick: setup ## Most of the figures in under 5 minutes, one short look each, printed only
	@$(BIN)/python -m bench.performance run quick

bench-full: setup ## With a backlog of a million, the 5-minute profile and the soak (more than an hour)
	@$(BIN)/python -m bench.performance run full

test: setup ## Every test, on a stack of its own
	@$(BIN)/python -m pytest $(ARGS)

ROW ?=
SEED ?= 1

chaos: setup ## The fault campaign on a stack of its own: ROW="redis-wiped everything" SEED=7 (ARGS="--seeds 3", --list)
	@$(BIN)/python -m tests.chaos $(ROW) --seed $(SEED) $(ARGS); ended=$$?; $(BIN)/python -m tests.chaos.page && exit $$ended
	@[ -n "$(ROW)" ] || $(MAKE) --no-print-directory chaos-simulation

SEEDS ?= 1000

.PHONY: chaos-simulation chaos-mutants
chaos-simulation: setup ## SEEDS=1000 simulated sales with every fault at once; SEED=17 replays one
	@$(BIN)/python -m tests.simulation $(if $(filter file,$(origin SEED)),--seeds $(SEEDS),--seed $(SEED))

chaos-mutants: setup ## Every known bug planted, one at a time: which book caught it, at which seed
	@$(BIN)/python -m tests.simulation.hunt

check: setup ## Format, lint, types, import walls, dependencies, spelling, the site, unit tests; under 2 minutes
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/deptry .
	@$(BIN)/codespell
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@$(BIN)/python -m pytest -q tests/unit

docs: setup ## The pages as a searchable site in build/site, which works without a network
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

schemas: setup ## schemas/*.schema.json anew from schemas/events.py
	@$(BIN)/python -m schemas.generate
