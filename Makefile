# make run    .venv, the packages, and the whole experiment on real text without network
# make test   .venv, the packages, the linter and the tests
# make faults .venv, the packages, every fault of the matrix in its full count (docs/reliability.md), and every test
#             that takes long
# make docs   .venv, the packages, and the documentation as a site in site/
# make bench  .venv, the packages, the measurements, most on less than their whole work (nothing else should run), and
#             docs/performance.md; FULL=--full does the whole work and compares whole runs, in hours

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
BENCH  := layer step encoding training $(if $(FULL),offline) search metrics growth checkpoint report

.PHONY: run test lint faults docs bench clean

run: $(VENV)/.installed
	$(BIN)/python tier_1.py --preset offline

test: lint
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/faults --faults-full -m ""
	$(BIN)/python -m pytest --ignore tests/faults -m faults

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-bench
	for name in $(BENCH); do $(BIN)/python -m bench.$$name $(FULL) || exit 1; done
	$(BIN)/python -m bench.performance

clean:
	rm -rf $(VENV)

$(VENV)/.installed: requirements.txt requirements-common.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install -r requirements-dev.txt
	touch $@

$(VENV)/.installed-bench: requirements-bench.txt $(VENV)/.installed-dev
	$(BIN)/python -m pip install -r requirements-bench.txt
	touch $@
