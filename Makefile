# make demo: set up, then the whole job on handwritten digits, on this machine.
# make test: set up, then lint, types and tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export ORT_DISABLE_TELEMETRY := 1

.PHONY: demo test lint types tests bench clean

demo: $(READY)
	$(BIN)/python benchmarks/demo.py

test: lint types tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

tests: $(READY)
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadscope

bench: $(READY)
	$(BIN)/python benchmarks/all.py

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
