# `make demo` and `make test` need Python 3.11 or newer, git and make; everything else they set up.
PYTHON ?= python3.11
BIN := .venv/bin
SHEET := runs/search-red-sneakers.png
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
RUN_STAMP := .venv/.coembed-run
DEV_STAMP := .venv/.coembed-dev

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo test test-slow lint bench

help:  ## Show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(RUN_STAMP)  ## Make .venv with the pinned packages

setup-dev: $(DEV_STAMP)  ## The same, with what tests and lint need

demo: $(RUN_STAMP)  ## Draw the shop, retrain on it, search it
	@$(BIN)/coembed demo-pool --audio
	@$(BIN)/coembed retrain
	@$(BIN)/coembed search "red sneakers" --sheet $(SHEET)

test: $(DEV_STAMP)  ## Run the tests (about fifteen minutes on 2 cores)
	$(BIN)/python -m pytest -n auto --dist loadfile --durations 12

test-slow: $(DEV_STAMP)  ## Run the slow tests: whole pipelines, kills
	$(BIN)/python -m pytest -n auto --dist loadfile -m "slow and not gpu" --timeout 1200 --durations 12

lint: $(DEV_STAMP)  ## Style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(DEV_STAMP)  ## Run every benchmark in its quick form
	@for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file --quick || exit 1; done

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11, or run make PYTHON=python3" >&2; exit 2; }
	$(PYTHON) -m venv .venv

# Byte-compiling five gigabytes of packages would cost more than the few modules that get imported.
$(RUN_STAMP): constraints.txt pyproject.toml | .venv/bin/python
	@echo "Installing the pinned packages into .venv: some minutes, once"
	$(PIP) install --quiet --quiet --no-compile -c constraints.txt --editable .
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	$(PIP) install --quiet --quiet --no-compile -c constraints.txt --editable '.[dev]'
	@touch $@
