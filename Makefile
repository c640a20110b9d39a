# The two commands that matter: `make demo` shows the program, `make test` proves it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# How many test files run at a time. Much of the suite waits for runtimes.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test unit functional conformance nodes cluster faults fuzz lint
.PHONY: bench peer programs screenshots format generate lock audit release clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

# An interpreter that went away makes its environment out of date.
$(BIN)/python: ;

# The demonstration takes only what the program needs.
$(VENV)/.program: pyproject.toml constraints.txt tools/venv.py $(BIN)/python
	@MAKECMDGOALS='$(MAKECMDGOALS)' $(PYTHON) tools/venv.py $(VENV) program

$(VENV)/.made: pyproject.toml constraints.txt tools/venv.py $(BIN)/python
	@MAKECMDGOALS='$(MAKECMDGOALS)' $(PYTHON) tools/venv.py $(VENV) tests

demo: $(VENV)/.program ## The program's whole job on a throw-away node (1 min); needs Python and pip
	$(BIN)/python examples/demo

test: $(VENV)/.made ## Every tier but `cluster` that this machine can run (10 min); REQUIRE_REAL_RUNTIMES=1: all of each
	$(BIN)/python -m tools.tiers --jobs $(JOBS)

unit: $(VENV)/.made ## Pure and in-process tests (30 s)
	$(BIN)/python -m tools.tiers unit --jobs $(JOBS)

functional: $(VENV)/.made ## The program as processes, against fake runtimes (6 min)
	$(BIN)/python -m tools.tiers functional --jobs $(JOBS)

conformance: $(VENV)/.made ## Real executables on our configurations (4 min; root, Go)
	$(BIN)/python -m tools.tiers conformance --jobs $(JOBS)

nodes: $(VENV)/.made ## Booted nodes with real runtimes (15 min; root, Go)
	$(BIN)/python -m tools.tiers nodes --jobs $(JOBS)

cluster: $(VENV)/.made ## Chart, image, a real Kubernetes (6 min; root, Go)
	$(BIN)/python -m tools.tiers cluster --jobs $(JOBS)

faults: $(VENV)/.made ## Kills and errors at system calls (5 min; root); FULL=1: every error at every call
	$(BIN)/python -m $(if $(FULL),tests.faults,tools.tiers faults --jobs $(JOBS))

fuzz: $(VENV)/.made ## Hostile input (2 min); MINUTES=60: for that long
	$(BIN)/python -m $(if $(MINUTES),tests.fuzz --minutes $(MINUTES),tools.tiers fuzz --jobs $(JOBS))

lint: $(VENV)/.made ## Lint, types, import layers, documents (1 min)
	$(BIN)/python -m tools.tiers project --jobs $(JOBS)

bench: $(VENV)/.made ## Measure what a node feels, beside the peer where `make peer` built it; SHORT=1: in a minute
	$(BIN)/python -m benchmarks $(if $(SHORT),--short --table build/bench.md,--write)

peer: $(VENV)/.made ## Build the upstream installer and the toolkit's programs with Go, to compare with
	$(BIN)/python -m benchmarks.peer

programs: ## Build the static wrapper for this machine, so that the checkout has it as well; needs pip
	$(PYTHON) -IB deploy/programs/build.py toolkit/artifacts

screenshots: $(VENV)/.made ## Take the pictures of a terminal in docs/screenshots/ (root, Xvfb, xterm, ImageMagick)
	$(BIN)/python -m tools.screenshots

format: $(VENV)/.made ## Format the code
	$(BIN)/ruff format runtimes toolkit tests examples benchmarks tools
	$(BIN)/ruff check --fix runtimes toolkit tests examples benchmarks tools

generate: $(VENV)/.made ## Write everything that is generated: types of settings, docs/, the manual page, deploy/
	$(BIN)/python -m tools.version
	$(BIN)/python -m tools.values
	$(BIN)/python -m tools.completions
	$(BIN)/python -m tools.docs
	$(BIN)/python -m tools.deploy

lock: $(VENV)/.made ## Write the image's requirements again, with the hashes of the wheels for amd64 and arm64
	$(BIN)/python -m tools.locks

audit: $(VENV)/.made ## Look for known vulnerabilities in the locked packages; fails if the index cannot be asked
	$(BIN)/python -m tools.audit

release: $(VENV)/.made ## Make the files of a release in dist/ (Go, buildah, root): docs/release.md
	$(BIN)/python -m tools.release $(RELEASE)

clean: ## Remove what the other targets made here
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
