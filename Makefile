# All tasks of a checkout. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
# What `make breaking` compares the wire contract with: any git ref, e.g.
# AGAINST='.git#tag=v0.1.0'. The default is the main branch of this clone, so that on main itself
# only what is not committed yet is checked. Without its backslash the # would begin a comment.
AGAINST ?= .git\#branch=main

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
# `pip install .` puts a copy of the sources in the place of the link to this checkout. What it
# leaves has no such file, and is installed again.
LINK := $(wildcard $(VENV)/lib/python3*/site-packages/__editable__.treadle-*)

# Compiled kernels go where `make clean` finds them.
export NUMBA_CACHE_DIR ?= $(abspath $(VENV))/kernels

# Python keeps the bytecode of modules, whatever the caller's environment says: the tests start
# hundreds of processes, and each would compile every module.
export PYTHONDONTWRITEBYTECODE =

# Test processes at the same time. On two processors the third works while others wait, as for a
# server to start or to end. A file's tests stay in one process, with what they share; the slow
# files come first, in the order of tests/conftest.py.
WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder -n $(WORKERS)

# What runs uncompiled as well, for the coverage of kernels/: the tests that measure kernels.
UNCOMPILED := tests/kernels tests/model/test_baseline.py tests/model/test_engine.py \
    tests/model/test_sequence.py tests/model/test_step_series.py

# What `make fuzz` tries: a kind and a count; without a kind, all of them. With MINUTES, as many
# cases of all kinds as there is time for.
FUZZ ?=
MINUTES ?=

# What `make test-bounds` runs.
BOUNDS ?= tests/kernels tests/model

# What `make test-shared` runs.
SHARED ?= tests

.DEFAULT_GOAL := help
.PHONY: help venv not-linked demo examples example-go example-java example-browser bench kernels test lint type test-jit test-nojit test-bounds test-shared fuzz proto breaking format docs man screenshots lock audit sbom image image-test clean

help: ## List these targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(STAMP) ## Create .venv and install Treadle and its tools into it.

$(STAMP): pyproject.toml $(if $(LINK),,not-linked)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Treadle needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[server,dev]'
	@touch $@

demo: $(STAMP) ## Train on Shakespeare for a minute, generate, score. Leaves nothing behind.
	@PATH="$(BIN):$$PATH" examples/demo.sh

examples: example-go example-java example-browser ## Run the examples of other languages, where their tools are.

example-go: $(STAMP) ## Build and run the example for Go.
	@PATH="$(BIN):$$PATH" examples/run.sh go

example-java: $(STAMP) ## Build and run the example for Java.
	@PATH="$(BIN):$$PATH" examples/run.sh java

example-browser: $(STAMP) ## Build and run the example for the browser.
	@PATH="$(BIN):$$PATH" examples/run.sh browser

# Peers are measured where they are in this environment, and nothing is installed for it.
bench: $(STAMP) ## Check the kernels on this machine and measure them: ARGS='--quick --only check,train'
	@$(BIN)/treadle-bench $(ARGS)

# The kernels are compiled by one processor while the other checks style and types and runs kernels
# uncompiled. Then the compiled tests have both.
test: $(STAMP) ## Everything that must hold before a commit.
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target kernels lint type test-nojit WORKERS=1
	$(MAKE) --no-print-directory test-jit

lint: $(STAMP) ## Check style, formatting, the imports between packages and layers, the Dockerfile.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/hadolint Dockerfile

type: $(STAMP) ## Check types, strictly.
	$(BIN)/mypy

kernels: $(STAMP) ## Compile every kernel into the cache, where it is not there yet.
	$(BIN)/treadle-server --warm

# The kernels first: each test process would compile them for itself.
test-jit: kernels ## Run every test, kernels compiled: WORKERS=4
	$(PYTEST)

# Compiled code cannot be traced, so coverage comes from running kernels as plain Python.
test-nojit: $(STAMP) ## Run the tests of kernels uncompiled and measure coverage.
	NUMBA_DISABLE_JIT=1 $(PYTEST) -m "not jit" --cov --cov-report=term $(UNCOMPILED)

# Compiled with checks, and kept apart from those without: see kernels/jit.py.
test-bounds: $(STAMP) ## Run the kernels' and the model's tests with checked indices: BOUNDS=tests
	NUMBA_BOUNDSCHECK=1 $(BIN)/treadle-server --warm
	NUMBA_BOUNDSCHECK=1 $(PYTEST) $(BOUNDS)

# Quick tests against the same servers are part of `make test`, where the servers are installed.
test-shared: $(STAMP) kernels ## Run the slow tests of shared storage, install what they need: SHARED=...
	tests/services/install.sh
	tests/services/install_azurite.sh $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[ray]'
	$(BIN)/python -m pytest -m 'shared or azure' $(SHARED)

fuzz: $(STAMP) ## Try many odd requests, files, states: MINUTES=10, or FUZZ='state 1000'
	PYTHONPATH=tests $(BIN)/python -m fuzz.campaign $(FUZZ) $(if $(MINUTES),--minutes $(MINUTES))

proto: $(STAMP) ## Generate the Python code next to the .proto files.
	PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto \
	    --grpc_python_out=proto --mypy_out=proto --mypy_grpc_out=proto \
	    proto/treadle/v1/*.proto
	$(BIN)/buf lint

breaking: $(STAMP) ## Check that the wire contract breaks nobody: AGAINST='.git#tag=v0.1.0'
	$(BIN)/buf breaking --against '$(AGAINST)'

format: $(STAMP) ## Format the code and repair what ruff can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site's tools come with the first build.
docs: $(VENV)/.docs ## Build the docs site in build/site; warnings are errors.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

man: $(STAMP) ## Write the manual page of the command: build/treadle.1
	@mkdir -p build
	$(BIN)/treadle help --man > build/treadle.1

screenshots: $(STAMP) ## Take the pictures of docs/page.md again; needs Chromium.
	@PYTHONPATH=tests $(BIN)/python -m page_screenshots

# After a change of what the image requires. Versions that are locked stay where they fit.
lock: $(STAMP) ## Lock the versions and hashes of what the image installs: ARGS=--upgrade
	@PATH="$(BIN):$$PATH" requirements/lock.sh $(ARGS)

audit: $(STAMP) ## Ask for known vulnerabilities of what is locked: ARGS='-s osv'
	@$(BIN)/python requirements/audit.py $(ARGS)

# Without building the image, which has its own list in /opt/treadle/sbom.json.
sbom: $(STAMP) ## List what the image installs in CycloneDX: build/sbom.json
	@PATH="$(BIN):$$PATH" requirements/sbom.sh build/sbom.json

image: ## Build the container image `treadle`.
	tests/image/build.sh treadle

image-test: $(STAMP) ## Build the image, run it and use it; skips with a reason where podman is missing.
	@PATH="$(BIN):$$PATH" tests/image/run.sh

clean: ## Remove the environment and everything generated outside version control.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	    .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
