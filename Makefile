# Every check is defined here once; CI calls these targets.
# Needs Python 3.10 or newer, a Rust toolchain and make. Node.js is used when it is there.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DIST   := dist
RUST   := $(shell find rust -name '*.rs' 2>/dev/null) Cargo.toml Cargo.lock

# Without compiled modules each of the many processes that the tests start compiles all of them again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install build build-debug wheel musl fmt lint lint-rust lint-python typecheck twins test test-rust test-py \
        test-wheel bench bench-full bench-load bench-store bench-transactions bench-micro bench-rust \
        bench-check fuzz soak demo docs clean all

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

install: $(STAMP)  ## Make the virtual environment with every development tool

$(VENV)/.built: $(STAMP) $(RUST) pyproject.toml
	$(BIN)/maturin develop --release --quiet
	touch $@

build: $(VENV)/.built  ## Build the extension, optimised, and install the package editable

$(DIST)/.built: $(STAMP) $(RUST) pyproject.toml README.md $(shell find python -name '*.py*')
	rm -rf $(DIST)
	$(BIN)/maturin build --release --quiet --out $(DIST)
	$(BIN)/maturin sdist --out $(DIST)
	touch $@

wheel: $(DIST)/.built  ## Build the wheel and the sdist that users install, into dist/

musl: $(STAMP)  ## Install what the wheel for musl is cross-built with; tests/package then builds it
	rustup target add x86_64-unknown-linux-musl
	$(BIN)/python -m pip install --quiet --group musl

build-debug: install  ## Build without optimisation (fast to build, slow to run)
	$(BIN)/maturin develop

fmt: install twins  ## Format everything
	cargo fmt
	$(BIN)/ruff format python tests benches scripts examples docs/conf.py

lint: lint-rust lint-python typecheck  ## All static checks

lint-rust:
	cargo fmt --check
	cargo fmt --check --manifest-path rust/fuzz/Cargo.toml
	cargo clippy --all-targets --quiet -- --deny warnings

lint-python: install
	$(BIN)/ruff check python tests benches scripts examples docs/conf.py
	$(BIN)/ruff format --check python tests benches scripts examples docs/conf.py
	$(BIN)/python scripts/async_to_sync.py --check
	$(BIN)/zizmor --offline --quiet .github/workflows
	$(BIN)/deptry python
	$(BIN)/deptry python --extend-exclude '.*/(cli/|demo/|prometheus|opentelemetry)' \
		--optional-dependencies-dev-groups cli,demo,prometheus,opentelemetry

typecheck: build  ## Types of the package and of its users; the stub against the compiled module
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml \
		--allowlist scripts/stubtest-allowlist.txt socketio_postgres._core

twins: install  ## Write the blocking twins of the async modules
	$(BIN)/python scripts/async_to_sync.py

test: test-rust test-py bench-check  ## Everything, against PostgreSQL servers the tests start themselves

test-rust:  ## Rust tests; they need no interpreter
	cargo test --no-default-features --quiet

# Side by side, because most tests wait; see tests/fixtures/side_by_side.py.
WORKERS ?= 8
PYTEST  := -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

test-py: build wheel  ## Python tests; PYTEST_ARGS="tests/unit" for some of them
	SIO_PG_TEST_WHEEL=$$(ls $(CURDIR)/$(DIST)/*.whl) $(BIN)/python $(PYTEST) $(PYTEST_ARGS)

# For another Python than the virtual environment's: PYTHON=python3.10, REQUIRE="python-socketio==5.15.0" PYTEST_ARGS="…"
test-wheel: wheel  ## Python tests of the wheel, in an environment of its own
	$(PYTHON) -m venv --clear .cache/wheel-venv
	.cache/wheel-venv/bin/python -m pip install --quiet --upgrade pip
	.cache/wheel-venv/bin/python -m pip install --quiet --group test $(DIST)/*.whl $(REQUIRE)
	.cache/wheel-venv/bin/python $(PYTEST) $(PYTEST_ARGS)

$(VENV)/.bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

bench: build $(VENV)/.bench  ## Measure beside the published rivals and write benches/REPORT.md, in about ten minutes
	$(MAKE) bench-load bench-store bench-transactions bench-micro
	$(BIN)/python -m benches.report

bench-full: build $(VENV)/.bench  ## The same with more repetitions and messages, about an hour
	$(MAKE) bench-load LOAD_ARGS=--full
	$(MAKE) bench-store STORE_ARGS=--large
	$(MAKE) bench-transactions bench-micro
	$(BIN)/python -m benches.report

bench-load: build $(VENV)/.bench  ## Only the load bench; LOAD_ARGS="--only across" for some rows
	$(BIN)/python -m benches.load $(LOAD_ARGS)

bench-store: build $(VENV)/.bench  ## Only the event store; STORE_ARGS=--large for 10 million events
	$(BIN)/python -m benches.event_store $(STORE_ARGS)

bench-transactions: build $(VENV)/.bench  ## Only transactions that emit, about a minute
	$(BIN)/python -m benches.transactions

bench-micro: build $(VENV)/.bench  ## Only the small pieces, by pytest-benchmark
	$(BIN)/python -m pytest benches -p no:randomly --benchmark-enable --benchmark-only --quiet \
		--benchmark-columns=median,iqr,rounds --benchmark-sort=fullname --benchmark-json=.cache/micro.json
	$(BIN)/python -m benches.micro .cache/micro.json

bench-rust:  ## Only the Rust pieces, by criterion
	cargo bench --no-default-features --quiet

bench-check: build $(VENV)/.bench  ## Run every bench once, unmeasured, so that none rots
	$(BIN)/python -m pytest benches
	$(BIN)/python -m benches.load --check
	$(BIN)/python -m benches.event_store --check
	$(BIN)/python -m benches.transactions --check
	cargo test --benches --no-default-features --quiet  # which runs each of them once

FUZZ_SECONDS ?= 20

fuzz: install  ## Coverage-guided fuzzing of the decoders; FUZZ_SECONDS for each target
	$(BIN)/python scripts/fuzz.py $(FUZZ_SECONDS)

SOAK_SECONDS ?= 600

soak: build  ## The fault tests for longer; SOAK_SECONDS for each of the long ones
	SIO_PG_SOAK=$(SOAK_SECONDS) $(BIN)/python -m pytest tests/faults $(PYTEST_ARGS)

demo: build  ## Two chat servers, an emitter and a PostgreSQL; DEMO_ARGS=--check verifies and exits
	$(BIN)/python -m socketio_postgres demo $(DEMO_ARGS)

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

docs: build $(VENV)/.docs  ## Build the site of the documents into .cache/site; a warning is an error
	$(BIN)/sphinx-build -q -E -W --keep-going -b html docs .cache/site

clean:  ## Remove everything that was built
	cargo clean
	rm -rf $(VENV) dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/peers/node/node_modules

all: lint test fuzz  ## What CI runs
	$(MAKE) docs
	$(MAKE) demo DEMO_ARGS=--check
