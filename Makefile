# Every target works on a fresh clone: it builds .venv first when it must.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-all check bench clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/deltalens demo --out demo-out

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --error-on-warning src

test: check
	$(BIN)/python -m pytest

test-all: check
	$(BIN)/python -m pytest -m ""

bench: setup
	$(BIN)/python benchmarks/measure.py

clean:
	rm -rf .venv demo-out
