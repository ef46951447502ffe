# Each target works alone on a machine that has Python and nothing else: it makes .venv and installs once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/quickstart

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow lint types format clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "magnet-train needs Python 3.11 or newer; say which: make PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV) (about 5 GB with PyTorch, a few minutes, once) ..."
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.developing: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## install into .venv

quickstart: $(VENV)/.installed  ## watch the whole chain learn, offline, about five minutes on two cores
	$(BIN)/magnet-train quickstart --out $(OUT) --overwrite

test: $(VENV)/.developing  ## the fast tests, with coverage of both packages
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -q -m "not slow and not gpu and not network"
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

test-slow: $(VENV)/.developing  ## the tests that take longer: real processes, the notebook, training
	$(BIN)/python -m pytest -q -m "slow and not gpu and not network"

lint: $(VENV)/.developing  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.developing  ## mypy, strict
	$(BIN)/mypy

format: $(VENV)/.developing  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what building and testing left (not .venv, not runs)
	rm -rf build dist *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache
