# The two commands that matter: `make demo` shows the program, `make test` proves it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test quick lint format docs clean

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
	$(BIN)/python -m pytest

quick: $(VENV)/.made ## The suite without real runtimes
	$(BIN)/python -m pytest -m 'not node and not binary'

lint: $(VENV)/.made ## Lint, types and layers alone
	$(BIN)/python -m pytest tests/test_house.py

format: $(VENV)/.made ## Format the code
	$(BIN)/ruff format runtimes toolkit tests examples
	$(BIN)/ruff check --fix runtimes toolkit tests examples

docs: $(VENV)/.made ## Write the generated parts of docs/ anew
	$(BIN)/python -m tests.docs

clean: ## Remove what the other targets made here
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
