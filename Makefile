# Two commands on a fresh machine: `make figures` and `make test`. Both set up the environment first.
PYTHON ?= python3
VENV   ?= .venv
PRESET ?= default
BIN    := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: figures test lab lint slow browser clean
figures: $(VENV)/.ready
	$(BIN)/python -m laser_lab.lab.notebooks --preset $(PRESET)

test: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile  # one thread each: tests/conftest.py

slow: $(VENV)/.ready browser
	$(BIN)/python -m pytest -m slow

# For the tests of the explorer in a real browser; where it cannot be installed they are skipped, and say so.
browser:
	@command -v chromium > /dev/null && command -v chromedriver > /dev/null \
	  || { command -v apt-get > /dev/null && test "$$(id -u)" = 0 && apt-get update -qq \
	       && apt-get install -qq -y --no-install-recommends chromium chromium-driver fonts-dejavu-core; } \
	  || echo "Chromium and chromedriver are not here and cannot be installed (Debian packages, root): those tests skip."

lab: $(VENV)/.ready
	$(BIN)/jupyter lab notebooks

# torch comes first and with pip: asked for by another package it may pull a far larger build.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (make PYTHON=...)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab,gemma,test]'
	touch $@

clean:
	rm -rf $(VENV)
