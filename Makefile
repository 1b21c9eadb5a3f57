# Every target makes .venv itself when it is missing or older than pyproject.toml or constraints.txt.
PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
FURTHER :=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DOCS := $(VENV)/.ready-docs

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-oldest test-cpus test-pythons lint types format bench docs clean

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Options: PYTHON=python3.12 (for a new $(VENV)), ARGS='...' (passed on by demo, the tests and bench)"

setup: $(READY) ## make or refresh .venv

demo: $(READY) ## pictures without and with the cache, in demo_out/
	$(BIN)/cache-dit demo --out demo_out $(ARGS)

# A worker on each core; tests and models are small, so that more than a few of them only import.
WORKERS := -n auto --maxprocesses 4 --dist worksteal
test: $(READY) ## all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow" $(WORKERS) $(ARGS)

test-all: $(READY) ## all tests, and then those of test-oldest
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)
	$(MAKE) --no-print-directory test-oldest ARGS=

# The same target with other variables, so that this environment too is made and refreshed by itself. diffusers 0.36 needs
# ftfy, warns (under the newest torch and numpy) in a scheduler and when compiled, and offloads groups to accelerators only.
OLDEST := VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt FURTHER=ftfy
OLDEST_ARGS := -W 'ignore:__array__ implementation:DeprecationWarning:diffusers.schedulers.scheduling_unipc_multistep' \
  -W 'ignore:Dynamo detected a call to a:UserWarning:torch._dynamo.variables.functions' \
  --deselect tests/engine/forward/test_blockwise.py::test_blocks_that_are_loaded_together_are_not_skipped
test-oldest: ## models and engine under the oldest diffusers that is supported, in .venv-oldest
	$(MAKE) --no-print-directory test $(OLDEST) ARGS="$(OLDEST_ARGS) tests/models tests/engine tests/caching $(ARGS)"

test-cpus: $(READY) ## the tests that compare results of kernels, as on other processors (slow)
	PYTHON=$(BIN)/python .ci/cpus $(ARGS)

test-pythons: ## what can be tested on Python 3.10 and 3.13, in environments of their own (slow)
	.ci/pythons

lint: $(READY) ## ruff: format and rules, changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(READY) ## ruff: format, and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

# Without ARGS: all benches that need no GPU, in build/, where nothing that is committed lies; an interrupted run goes on.
BENCHES := quality overhead scaling
MEASURED := build/bench/all
bench: $(READY) ## measure quality, costs and scaling (hours), make one page of it; one of them: ARGS='quality --quick'
ifeq ($(strip $(ARGS)),)
	for bench in $(BENCHES); do $(BIN)/cache-dit bench $$bench --out $(MEASURED)/$$bench.json || exit 1; done
	$(BIN)/cache-dit bench report $(MEASURED) --out $(MEASURED)/report.html
else
	$(BIN)/cache-dit bench $(ARGS)
endif

docs: $(READY_DOCS) ## the documentation's site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/site/index.html, or serve it while you write: $(BIN)/mkdocs serve"

clean: ## remove what was built, measured or drawn; keeps .venv, .venv-oldest and .cache
	rm -rf build dist demo_out .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find src tests bench tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# torch comes first and from the constraints, so that nothing below can choose another build of it.
$(READY): pyproject.toml $(CONSTRAINTS)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory new-venv
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[dev]" $(FURTHER)
	@touch $@

# What only the site needs is installed when it is built for the first time.
$(READY_DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[docs]"
	@touch $@

# Some systems ship venv without ensurepip: then the pip that is there installs one.
.PHONY: new-venv
new-venv:
	@command -v $(PYTHON) >/dev/null || { echo "error: no '$(PYTHON)' here; Python 3.10 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: Python 3.10 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1); pass another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version); torch and diffusers are large, so the first time takes some minutes"
	@$(PYTHON) -m venv $(VENV) >/dev/null || { \
	  $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
