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
	$(wildcard proto/*.proto _native/*.pyx _native/*.pxi _native/*.h _native/*.cpp)

# The data plane alone, with nothing of Python or gRPC in it.
NATIVE := $(addprefix _native/,plane.cpp request_queue.cpp served_version.cpp infer_decode.cpp \
	infer_encode.cpp parsed_request.cpp typed_contents.cpp)
SANITIZED := build/sanitized
CAN_FUZZ := echo 'extern "C" int LLVMFuzzerTestOneInput(const char *, unsigned long) { return 0; }' \
	| clang++ -x c++ -fsanitize=fuzzer,address - -o /dev/null 2>/dev/null
STRESS_SECONDS ?= 5
FUZZ_SECONDS ?= 10

# How many of the checks run side by side.
JOBS ?= $(shell nproc 2>/dev/null || echo 1)
# The make that a test starts has nothing to do with that.
PYTEST := MAKEFLAGS= MFLAGS= $(BIN)/pytest
# What trains has a lane of its own: two trainings at once, each with a thread per core, would spend
# their time waiting for one another.
TRAINING_TESTS := tests/trainer tests/e2e

# The tests start a hundred processes, which shall not compile our modules each time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test checks lint types format unit unit-training test-native fuzz bench \
	bench-peers bench-drift simulate simulate-loop build clean

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

test: setup ## all that CI runs: lint, types, build, tests, sanitizers
	@echo "Checking, $(JOBS) at a time; each says what it found when it has ended ..."
	@$(MAKE) --no-print-directory --jobs=$(JOBS) --output-sync=target --keep-going checks

checks: unit-training lint types unit test-native # what takes longest comes first

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

unit: setup
	$(PYTEST) $(addprefix --ignore=,$(TRAINING_TESTS))

unit-training: setup
	$(PYTEST) $(TRAINING_TESTS)

test-native: $(SANITIZED)/stress-address $(SANITIZED)/stress-thread ## the data plane under sanitizers and a short fuzz
	$(SANITIZED)/stress-address $(STRESS_SECONDS) 1
	$(SANITIZED)/stress-thread $(STRESS_SECONDS) 2
	@$(CAN_FUZZ) || PYTHON=$(PYTHON) WANTED="clang libclang-rt-14-dev" .ci/system-packages
	@if $(CAN_FUZZ); then $(MAKE) --no-print-directory fuzz; \
		else echo "clang++ with libFuzzer is not here: nothing was fuzzed"; fi

fuzz: $(SANITIZED)/fuzz setup ## any bytes as requests; FUZZ_SECONDS=3600 for longer
	$(BIN)/python tests/native/sanitized/seeds.py $(SANITIZED)/corpus
	$(SANITIZED)/fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -verbosity=0 -print_funcs=0 \
		-print_final_stats=1 -artifact_prefix=$(SANITIZED)/ $(SANITIZED)/corpus

SANITIZE := -std=c++17 -O1 -g -fno-omit-frame-pointer -Wall -Wextra -Werror -I_native -pthread

$(SANITIZED)/stress-address: tests/native/sanitized/stress.cpp $(NATIVE) $(wildcard _native/*.h)
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE) -fsanitize=address,undefined -fno-sanitize-recover=all -o $@ $< $(NATIVE)

$(SANITIZED)/stress-thread: tests/native/sanitized/stress.cpp $(NATIVE) $(wildcard _native/*.h)
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE) -fsanitize=thread -o $@ $< $(NATIVE)

$(SANITIZED)/fuzz: tests/native/sanitized/fuzz.cpp $(NATIVE) $(wildcard _native/*.h)
	@mkdir -p $(@D)
	clang++ $(SANITIZE) -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -o $@ $< $(NATIVE)

format: setup ## format the code and sort its imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## what serving costs, beside bare gRPC servers: docs/benchmarks.md
	$(BIN)/python benchmarks/serving.py --json build/bench/serving.json

bench-peers: setup ## the same beside MLServer and Triton, which it installs once
	$(BIN)/python benchmarks/serving.py --peers --json build/bench/serving.json

bench-drift: setup ## what counting and judging cost, beside other libraries
	$(BIN)/python benchmarks/drift_update.py --peers --json build/bench/drift_update.json

simulate: setup $(DEMO_DIR)/flights.parquet ## false alarms and delays of the drift statistics, as in docs/drift.md: eight minutes
	$(BIN)/python benchmarks/january.py $(DEMO_DIR)/flights.parquet
	$(BIN)/python benchmarks/drift_simulation.py --json build/bench/drift_simulation.json

simulate-loop: setup ## streams that the loop must act well on, as in docs/backtest.md: ten minutes
	$(BIN)/python benchmarks/streams.py --json build/bench/streams.json

build: setup ## sdist and wheel in dist/
	$(BIN)/python -m build

clean: ## remove everything that make made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f proto/*_pb2* _native/*.so
