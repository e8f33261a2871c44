# Every target sets up what it needs: a virtual environment in .venv and the pinned dependencies.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN ?= runs/demo

.PHONY: install demo test test-fast test-slow lint format bench clean help

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("cehrxgpt needs Python >= 3.11; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "Setting up $(VENV): a few minutes, about 2 GB (PyTorch first, then the rest)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@echo "PyTorch is in; now what constraints.txt pins"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

install: $(STAMP) ## the package and what it needs in .venv, nothing else

demo: $(STAMP) ## simulate, train, embed, forecast, synthesise; ends with runs/demo/report.html
	$(BIN)/cehrxgpt demo --out $(RUN)

test: $(STAMP) ## the fast lane and the documented commands, under ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -m 'not slow and not gpu'

test-fast: $(STAMP) ## the fast lane alone, under two minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

test-slow: $(STAMP) ## the slow lane as well
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -m 'not gpu'

lint: $(STAMP) ## ruff, mypy, import directions
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## rewrite in the house style
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

# Those of minutes that need nothing given; the others (hours, an accelerator, a finished run) say in their first lines how they are called.
BENCHMARKS := simulate ingest timeline train rollout
bench: $(STAMP) ## the benchmarks of minutes, one after the other
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

clean: ## remove the environment and the runs
	rm -rf $(VENV) runs
