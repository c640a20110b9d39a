# The two commands that matter: `make demo` shows the program, `make test` proves it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 10
# How many test files run beside each other. Much of the suite waits for runtimes.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test quick faults fuzz bench peer lint format manifests lock docs clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

$(VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: $(VENV)/.made ## Plan, install, repeat and revert on a throw-away node; needs no root
	$(BIN)/python examples/demo.py

test: $(VENV)/.made ## The whole suite: laws, cases, real runtimes, lint, types, layers, docs
	$(BIN)/python -m tests.prepare
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder

quick: $(VENV)/.made ## The suite without real runtimes and injected faults
	$(BIN)/python -m pytest -m 'not node and not binary and not faults'

faults: $(VENV)/.made ## A kill and every error at each system call that changes a file; prints the count
	$(BIN)/python -m tests.faults

fuzz: $(VENV)/.made ## Hostile input for as many MINUTES as wanted
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

bench: $(VENV)/.made ## Measure what a node feels, beside the peer where `make peer` built it; SHORT=1: in a minute
	$(BIN)/python -m benchmarks $(if $(SHORT),--short --table build/bench.md,--write)

peer: $(VENV)/.made ## Build the upstream installer and the toolkit's programs with Go, to compare with
	$(BIN)/python -m benchmarks.peer

lint: $(VENV)/.made ## Lint, types and layers alone
	$(BIN)/python -m pytest tests/test_house.py

format: $(VENV)/.made ## Format the code
	$(BIN)/ruff format runtimes toolkit tests examples benchmarks
	$(BIN)/ruff check --fix runtimes toolkit tests examples benchmarks

manifests: $(VENV)/.made ## Write what is generated below deploy/ anew: the schema's variables, the plain manifests
	$(BIN)/python -m tests.deploy

lock: $(VENV)/.made ## Write the image's requirements anew, with the hashes of the wheels for amd64 and arm64
	$(BIN)/python -m tests.locks

docs: $(VENV)/.made ## Write the generated parts of docs/ anew
	$(BIN)/python -m tests.docs

clean: ## Remove what the other targets made here
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
