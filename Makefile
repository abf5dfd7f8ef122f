# Everything is installed into $(VENV) from requirements.lock, whose hashes are checked. Start with `make help`.

PYTHON ?= python3
VENV ?= .venv
READERS ?= .venv-readers
JOBS ?= 2
N ?= 20
LOCKFLAGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/pytest -n $(JOBS) --dist loadfile
COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.10 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock" --quiet $(LOCKFLAGS)

.PHONY: help demo test check lint format test-slow test-all test-readers faults lock wheel clean
.DEFAULT_GOAL := help

# So that bytecode is kept, of tests too: without it each process compiles what it imports anew.
unexport PYTHONDONTWRITEBYTECODE

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

demo: $(READY)  ## classify a small corpus with the model in examples/, without the Hub
	$(BIN)/distilbeam demo

test: $(READY)  ## fast tests; with DISTILBEAM_DATA and DISTILBEAM_MODELS set, those on real data too
	$(PYTEST) -m "not slow and not gpu"

check: lint test  ## everything a change has to pass: lint and test

lint: $(READY)  ## style, types and the one-way imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-slow: $(READY)  ## the slow tests alone
	$(PYTEST) -m "slow and not gpu and not readers"

test-all: test test-slow  ## both

test-readers: $(READERS)/.ready  ## readers that need an environment of their own (Spark needs Java 17)
	DISTILBEAM_READERS=$(CURDIR)/$(READERS)/bin/python $(BIN)/pytest -m readers -rs tests/interop
	DISTILBEAM_READERS=$(CURDIR)/$(READERS)/bin/python $(BIN)/python -m tests.interop.table

$(READERS)/.ready: tests/interop/requirements-readers.lock $(READY)
	$(PYTHON) -m venv $(READERS)
	$(BIN)/uv pip install --python $(READERS)/bin/python --quiet --require-hashes -r $<
	@touch $@

faults: $(READY)  ## every fault of the suite, and N jobs killed and run again; prints a table and writes faults.json
	FAULTS_RUNS=$(N) FAULTS_JSON=$(CURDIR)/faults.json $(BIN)/pytest -m "not gpu" --timeout 0 tests/faults

lock: $(BIN)/uv  ## renew the locks after pyproject.toml changed; LOCKFLAGS=--upgrade takes newer versions
	$(COMPILE) --all-extras --output-file requirements.lock
	$(COMPILE) --extra gcs --extra s3 --extra azure --extra delta --extra iceberg --constraints requirements.lock \
		--output-file deploy/docker/requirements.lock
	$(BIN)/uv pip compile tests/interop/readers.in --universal --python-version 3.10 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --quiet $(LOCKFLAGS) \
		--output-file tests/interop/requirements-readers.lock

wheel: $(READY)  ## dist/: an sdist, and the wheel made from it
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

clean:  ## remove the environment and all that was built
	rm -rf $(VENV) $(READERS) build dist demo-output faults.json src/*.egg-info .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip fetches uv as the lock pins it; uv, many times faster, does the rest.
$(BIN)/uv:
	@$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info < (3, 15) or sys.exit("This is Python %d.%d; distilbeam needs 3.10 to 3.14. Name another: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	awk '/^[^ ]/ {wanted = /^uv==/} wanted' requirements.lock > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt

$(READY): requirements.lock pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --python $(BIN)/python --quiet --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@# Not left to the interpreter: where PYTHONDONTWRITEBYTECODE is set, each process would compile torch and Beam anew.
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib src transforms pipelines tests || true # some hold code for Python 2
	@touch $@
