# Two commands do all the set-up: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := sslkit tests benchmarks

# Every package that sslkit needs, in the oldest version that pyproject.toml allows.
OLDEST = $(shell $(PYTHON) -c "import tomllib; print(*(line.replace('>=', '==') for line in \
  tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))")
PYTEST := pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-oldest lint faults clean

demo: .venv/.installed
	$(BIN)/sslkit demo

test: lint
	$(BIN)/$(PYTEST)

# The suite again, in an environment of its own; `make test` has the newest of everything.
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/$(PYTEST)

lint: .venv/.installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

# The long versions of what tests/repository/test_faults.py runs briefly: some minutes.
faults: .venv/.installed-dev
	$(BIN)/python tests/faults/kill.py --times 200
	$(BIN)/python tests/faults/rot.py --times 2000
	$(BIN)/python tests/faults/images.py --count 1000
	$(BIN)/python tests/faults/hostile.py

clean:
	rm -rf .venv .venv-oldest .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'sslkit needs Python 3.11 or newer; choose one: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

# Stamps: nothing is installed again while pyproject.toml is unchanged.
.venv/.installed: pyproject.toml .venv/.made
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/.installed-dev: pyproject.toml .venv/.made
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ .venv/.installed

.venv-oldest/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet $(OLDEST) --editable '.[dev]'
	@touch $@
