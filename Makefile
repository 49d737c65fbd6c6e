# `make demo` shows the closed loop on real flights; `make test` runs every check.
# Both set up all that they need first: the second time that takes a moment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_VERSION := 26.3
DEMO_DIR := build/demo
# Cython's own boilerplate trips the last two; everything else is ours.
STRICT := -Wall -Wextra -Werror -Wno-unused-function -Wno-unused-parameter
DEMO_MONTHS ?= 12

SOURCES := setup.py pyproject.toml constraints.txt build-constraints.txt \
	$(wildcard proto/*.proto _native/*.pyx _native/*.pxi _native/*.h)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types format unit bench bench-peers build clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(VENV)/.installed ## virtual environment, dependencies, compiled modules

$(VENV)/.installed: $(SOURCES)
	@PYTHON=$(PYTHON) .ci/system-packages
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a minute or two the first time) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check pip==$(PIP_VERSION)
	@CFLAGS="$(STRICT)" $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
		--build-constraint build-constraints.txt -e '.[dev]'
	@touch $@

demo: setup $(DEMO_DIR)/flights.parquet ## train on January, serve and replay the year, let the loop act
	$(BIN)/trimtab backtest $(DEMO_DIR)/flights.parquet --target air_time --time time \
		--task regression --last-period $(DEMO_MONTHS) \
		--numeric distance,sched_dep_min,sched_block,dep_delay,seats,plane_year,temp \
		--categorical carrier,origin,dest,manufacturer \
		--order shuffle-within-period --seed 1 --out $(DEMO_DIR)

$(DEMO_DIR)/flights.parquet: examples/flights.py | setup
	$(BIN)/python examples/flights.py $@

test: lint types unit ## all that CI runs: lint, types, build, tests

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

unit: setup
	$(BIN)/pytest

format: setup ## format the code and sort its imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## what serving costs, beside bare gRPC servers: docs/benchmarks.md
	$(BIN)/python benchmarks/serving.py --json build/bench/serving.json

bench-peers: setup ## the same beside MLServer and Triton, which it installs once
	$(BIN)/python benchmarks/serving.py --peers --json build/bench/serving.json

build: setup ## sdist and wheel in dist/
	$(BIN)/python -m build

clean: ## remove everything that make made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f proto/*_pb2* _native/*.so
