# Two commands on a fresh machine: `make figures` and `make test`. Both set up the environment first.
PYTHON ?= python3
VENV   ?= .venv
PRESET ?= default
BIN    := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: figures test lab lint slow clean
figures: $(VENV)/.ready
	$(BIN)/python -m laser_lab.notebooks --preset $(PRESET)

test: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow

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
