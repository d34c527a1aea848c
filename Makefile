# Both targets do all the set-up on a fresh machine; VENV=path reuses an environment that you have.
VENV ?= .venv
PYTHON ?= python3
OUT ?= runs/demo
# Waiting OpenMP threads otherwise spin, which costs more than half of the speed on a few cores.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint format proof
demo: $(VENV)/.installed
	$(VENV)/bin/unmix-clip demo --out $(OUT)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

proof: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/proof.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -e '.[dev]'
	touch $@ $(VENV)/.installed
