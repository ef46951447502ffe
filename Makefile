# Each target works alone on a machine that has Python and nothing else: it makes .venv and installs once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/quickstart
CONSTRAINTS ?= constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow lint types format clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "magnet-train needs Python 3.11 or newer; for example: make PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV) (about 5 GB with PyTorch, a few minutes, once) ..."
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[plots]'
	@touch $@

$(VENV)/.developing: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## install into .venv, with what the quickstart needs

quickstart: $(VENV)/.installed  ## train a small model on synthetic sound and measure it: offline, at most ten minutes on two cores
	$(BIN)/magnet-train quickstart --out $(OUT) --overwrite

test: $(VENV)/.developing  ## the fast tests in two processes, with coverage of both packages
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=20 \
	  --cov --cov-report=term-missing:skip-covered -m "not slow and not gpu and not network"

test-slow: $(VENV)/.developing  ## the slow tests: several processes, the notebook, training
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=20 -m "slow and not gpu and not network"

lint: $(VENV)/.developing  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.developing  ## mypy, strict
	$(BIN)/mypy

format: $(VENV)/.developing  ## apply what ruff can fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove build and test files (keeps .venv and runs)
	rm -rf build dist *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache
