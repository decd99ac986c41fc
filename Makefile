# Every target sets up what it needs: `make test` and `make demo` work on a fresh clone.
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
DEMO_DIR := demo-data

.DEFAULT_GOAL := help
.PHONY: help setup kafka demo test lint check soak bench fmt clean

help:  ## list the targets
	@grep -E '^[a-z]+: .*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: .venv/.ready  ## make .venv with pinned packages (fast when nothing changed)

.venv/.ready: pyproject.toml requirements-dev.lock .ci/setup
	@PYTHON='$(PYTHON)' sh .ci/setup

kafka:  ## fetch the Apache Kafka that tests run (fast when it is there); needs Java 17 and Maven
	@.ci/kafka/fetch

demo: setup  ## run the main job: earthquakes into an Iceberg table, no server needed
	@DEMO_DATA=$(DEMO_DIR) sh examples/demo.sh

# What is skipped is told by its reason (without `make kafka` that is what needs a real broker), what failed by its name,
# last. Tests are dealt out a few at a time, or one worker would be left with the slow ones at the end.
test: setup  ## the tests, under ten minutes on two cores
	$(PYTEST) -q -n 2 --maxschedchunk 8 -rEf

lint: setup  ## ruff, mypy --strict, import contracts, flake8-async, sizes and habits
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/flake8 $$(grep -rlE 'async def|import trio' --include='*.py' conveyord tests)  # it is slow, and knows async code only
	$(PYTEST) -q tests/test_tidy.py

check: setup kafka  ## longer proofs, and all that needs a real broker: kill loops, faults; under 30 minutes
	-@.ci/object_stores
	$(PYTEST) -q -n 2 --maxschedchunk 1 -rEf -m "check or (kafka and not soak)"

soak: setup kafka  ## hours of the same, before an issue is resolved
	HYPOTHESIS_PROFILE=soak $(PYTEST) -q -m "check or soak or kafka" -o faulthandler_timeout=7200

bench: setup  ## ratios against the bare loops, see benchmarks/
	$(BIN)/python -m benchmarks

fmt: setup  ## format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove everything that was made here, .venv included
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist $(DEMO_DIR)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
