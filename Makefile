# Everything is set up on first use: `make demo` and `make test` need nothing but git, make, python3-venv.
.DEFAULT_GOAL := help
.PHONY: help setup mosquitto demo test lint format types floors bench docs clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "iov-ingest needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

setup: $(STAMP) mosquitto ## Virtual environment, dependencies, mosquitto

mosquitto:
	@PATH="$$PATH:/usr/sbin"; command -v mosquitto >/dev/null || deploy/install-mosquitto

demo: setup ## Database, broker, fleet and service in one command; ARGS="--duration 20 --json"
	@$(BIN)/iov-ingest demo $(ARGS)

test: setup ## All tests, against real servers; ARGS="-k name"
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## Let ruff put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

floors: $(STAMP) ## import-linter: which module may know which
	$(BIN)/lint-imports

bench: setup ## Committed messages per second, CPU per message; ARGS="--source aiomqtt"
	@$(BIN)/iov-ingest bench $(ARGS)

docs: $(STAMP) ## What is generated in docs/: a page for each stream, the picture of a simulated hour
	$(BIN)/iov-ingest schema docs --output docs/streams
	$(BIN)/iov-ingest picture --output docs/simulated-hour.png

clean: ## Remove what the targets made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
