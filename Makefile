# Everything is set up on first use: `make demo` and `make test` need nothing but git, make, python3-venv.
.DEFAULT_GOAL := help
.PHONY: help setup mosquitto demo quick test debian lowest lint format types floors fuzz audit verify soak bench image wheel release docs dashboards page clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
ARGS ?=
TEST_PROCESSES ?= 4
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
CONTAINER_TOOL ?= docker
BUILD_ARGS ?=
FUZZ_S ?= 30
FUZZ := -max_total_time=$(FUZZ_S) -timeout=5 -verbosity=0 -print_final_stats=1

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Programs in there name this directory and a Python: if it was moved, or that is gone, make it anew.
ifneq ($(shell [ -x "$(BIN)/python" ] && cat $(DEMO_STAMP) 2>/dev/null),$(CURDIR))
$(shell rm -f $(STAMP) $(DEMO_STAMP))
endif

$(STAMP): pyproject.toml constraints.txt
	@deploy/make-venv $(VENV) test $(PYTHON)
	@echo "$(CURDIR)" | tee $@ >$(DEMO_STAMP)

# The demo needs a fifth of what tests need.
$(DEMO_STAMP): pyproject.toml constraints.txt
	@deploy/make-venv $(VENV) demo $(PYTHON)
	@echo "$(CURDIR)" >$@

setup: $(STAMP) mosquitto ## Virtual environment, dependencies, mosquitto

mosquitto:
	@deploy/install-mosquitto $(VENV)

demo: $(DEMO_STAMP) mosquitto ## Database, broker, fleet and service in one command; ARGS="--duration 20 --json"
	@$(BIN)/iov-ingest demo $(ARGS)

quick: lint types floors ## Lint, types, floors and unit tests: an answer within a minute
	$(BIN)/python -m pytest --quiet --numprocesses $(TEST_PROCESSES) --dist loadfile -m "not slow" tests/unit $(ARGS)

test: setup ## All tests, four files at a time; ARGS="-k name", TEST_PROCESSES=0: one after the other
	@tests/install-tools $(VENV)
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

debian: setup ## README's and start.md's commands in a bare Debian, as root, some minutes; DEBIAN_ROOT=directory
	@tests/install-tools $(VENV)
	DEBIAN_ROOT=$(or $(DEBIAN_ROOT),/var/tmp/iov-debian) $(BIN)/python -m pytest -s tests/integration/test_debian.py $(ARGS)

lowest: mosquitto ## Tests with the lowest versions pyproject.toml allows; ARGS="tests" for all of them
	@PATH="$$PATH:$(CURDIR)/$(BIN)" PYTHON=$(PYTHON) .ci/lowest $(or $(ARGS),-m "not slow" tests/unit $(addprefix tests/integration/test_,service.py store.py source.py))

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

fuzz: $(STAMP) ## Coverage-guided fuzzing of check and of the packet reader; FUZZ_S=3600 for an hour each
	@mkdir -p .fuzz
	@$(BIN)/python -c 'import atheris' || echo "atheris has no wheel for this platform: no fuzzing"
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then set -ex; \
	$(BIN)/python tests/fuzz/check.py $(FUZZ) -max_len=8192 -artifact_prefix=.fuzz/check- .fuzz/check; \
	$(BIN)/python tests/fuzz/packets.py $(FUZZ) -close_fd_mask=2 -artifact_prefix=.fuzz/packets- .fuzz/packets; fi

audit: $(STAMP) ## Known vulnerabilities of what is installed (asks PyPI)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9'
	$(BIN)/pip-audit --skip-editable

verify: setup ## Break everything once and account for every message; ARGS="--duration 300 --json"
	@$(BIN)/iov-ingest verify $(ARGS)

soak: setup ## An hour with a fault every 20 s; report and picture in docs/soak
	@$(BIN)/iov-ingest verify --faults all --duration 3600 --every 20 --seed 1 --report docs/soak $(ARGS)

bench: setup ## Committed messages per second, CPU per message; ARGS="--source aiomqtt"
	@$(BIN)/iov-ingest bench $(ARGS)

image: ## The container image iov-ingest; CONTAINER_TOOL=podman, BUILD_ARGS="--build-arg BASE_IMAGE=…"
	$(CONTAINER_TOOL) build --file deploy/Dockerfile --tag iov-ingest --tag iov-ingest:$(VERSION) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse --short HEAD) $(BUILD_ARGS) .

wheel: mosquitto ## Wheel and sdist in dist/, tested as installed; ARGS are pytest's
	@PYTHON=$(PYTHON) .ci/wheel $(or $(ARGS),tests/unit tests/integration/test_cli.py tests/integration/test_service.py)

release: ## Test everything, commit and tag; TO=0.2.0
	@.ci/release $(TO)

docs: $(STAMP) ## What is generated in docs/: settings, streams, a simulated hour, the house
	$(BIN)/iov-ingest settings --markdown > docs/settings.md
	$(BIN)/iov-ingest schema docs --output docs/streams
	$(BIN)/iov-ingest picture --output docs/simulated-hour.png
	$(BIN)/python -m tests.draw_house docs/house.png

dashboards: setup ## The Grafana dashboards with data, drawn: docs/iov-operations.png, docs/iov-fleet.png
	@tests/install-tools $(VENV)
	$(BIN)/python -m tests.draw_dashboards docs

page: setup ## Pictures of the live page in its states; TO=directory
	@tests/install-tools $(VENV)
	@mkdir -p $(or $(TO),page)
	$(BIN)/python -m tests.draw_page $(or $(TO),page)

clean: ## Remove what the targets made
	rm -rf $(VENV) .venv-lowest .fuzz build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
